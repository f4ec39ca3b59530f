// megatron.engine._cpp_step: the forward and backward pass of small models on a CPU, in fp32, one row of tokens after the other.
//
// torch calls a kernel for each operation and each kernel walks memory that a small model's row would keep in cache: most of a
// tiny step is that. cpp_step.h has the arithmetic, compiled for each instruction set here; the processor says which runs.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace py = pybind11;

struct Shape {
  long layers, h, f, n, d, ids, v, s;
  bool causal;
  float eps, score, branch, logit;  // what scores, branches and logits are multiplied by
};

struct Row {  // one of tokens
  const int64_t *inputs, *targets, *asked;  // [s], [m], [m] positions in it
  const float *weights, *cos, *sin;         // [m], [s, d/2] x 2
  float *nll, *hit;                         // [m]
  long m;
  float per_weight;  // what a weight is multiplied by in the loss
};

struct Step {
  virtual ~Step() = default;
  virtual void read(const std::vector<const float*>& weights) = 0;
  virtual void write(const std::vector<float*>& gradients) = 0;
  virtual void row(const Row& row, bool learn) = 0;
};

struct Matrix {
  static constexpr long LINE = 16;  // floats of a cache line, the widest vector
  long rows = 0, columns = 0, stride = 0;
  std::unique_ptr<float, decltype(&std::free)> data{nullptr, &std::free};
  void size(long r, long c, long spare = 0) {
    rows = r, columns = c, stride = (c + spare + LINE - 1) / LINE * LINE;
    void* made = nullptr;
    if (posix_memalign(&made, 64, std::max(1L, rows) * stride * sizeof(float))) throw std::bad_alloc();
    data.reset(static_cast<float*>(made));
    clear();
  }
  void clear() { std::memset(data.get(), 0, rows * stride * sizeof(float)); }
  INLINE float* row(long i) { return data.get() + i * stride; }
  INLINE const float* row(long i) const { return data.get() + i * stride; }
};

#define LANES 4
#define REGISTERS 16
namespace plain {
#include "cpp_step.h"
}
#undef LANES
#undef REGISTERS

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LANES 8
#define REGISTERS 16
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "cpp_step.h"
}
#pragma GCC pop_options
#undef LANES
#undef REGISTERS
#define LANES 16
#define REGISTERS 32
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,avx2")
namespace avx512 {
#include "cpp_step.h"
}
#pragma GCC pop_options
#define FASTER 1
#endif

static std::vector<std::string> sets() {
  std::vector<std::string> found{"plain"};
#ifdef FASTER
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back("avx2");
  if (found.size() > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    found.push_back("avx512");
#endif
  return found;
}

static std::unique_ptr<Step> make(const Shape& shape, const std::string& set) {
#ifdef FASTER
  if (set == "avx2") return std::make_unique<avx2::Net>(shape);
  if (set == "avx512") return std::make_unique<avx512::Net>(shape);
#endif
  return std::make_unique<plain::Net>(shape);
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

class Model {
  Shape shape;
  std::unique_ptr<Step> step;

 public:
  Model(const Shape& o, const std::string& set) : shape(o), step(make(o, set)) {}

  void read(const std::vector<Array<float>>& weights) {
    std::vector<const float*> pointers;
    for (const auto& one : weights) pointers.push_back(one.data());
    check(weights), step->read(pointers);
  }
  void write(std::vector<Array<float>> gradients) {
    std::vector<float*> pointers;
    for (auto& one : gradients) pointers.push_back(one.mutable_data());
    check(gradients), step->write(pointers);
  }
  // inputs [b, s], targets and asked [n] (flat, ascending), weights [n], cos and sin [1 or b, s, d/2] -> fills nll and hit [n]
  void run(Array<int64_t> inputs, Array<int64_t> targets, Array<int64_t> asked, Array<float> weights, Array<float> cos,
           Array<float> sin, Array<float> nll, Array<float> hit, double per_weight, bool learn) {
    const long b = inputs.shape(0), s = shape.s, half = shape.d / 2, n = asked.size();
    const long angles = cos.size() == s * half ? 0 : s * half;  // from row to row
    if (inputs.size() != b * s || targets.size() != n || weights.size() != n || nll.size() != n || hit.size() != n ||
        cos.size() != sin.size() || (angles && cos.size() != b * angles))
      throw std::invalid_argument("arrays of a batch do not belong together");
    if (!std::all_of(inputs.data(), inputs.data() + b * s, [&](int64_t id) { return id >= 0 && id < shape.ids; }) ||
        !std::all_of(targets.data(), targets.data() + n, [&](int64_t id) { return id >= 0 && id < shape.v; }))
      throw std::invalid_argument("an id lies outside the table");
    std::vector<int64_t> places(asked.data(), asked.data() + n);
    if (std::adjacent_find(places.begin(), places.end(), std::greater_equal<int64_t>()) != places.end() || (n && (places.front() < 0 || places.back() >= b * s)))
      throw std::invalid_argument("asked positions do not ascend within the batch");
    float *nlls = nll.mutable_data(), *hits = hit.mutable_data();
    const int64_t *ids = inputs.data(), *wanted = targets.data();
    const float *counts = weights.data(), *cosines = cos.data(), *sines = sin.data();
    py::gil_scoped_release unlocked;
    for (long i = 0, from = 0, to; i < b; i++, from = to) {
      for (to = from; to < n && places[to] < (i + 1) * s; to++) places[to] -= i * s;
      step->row({ids + i * s, wanted + from, places.data() + from, counts + from, cosines + i * angles, sines + i * angles,
                 nlls + from, hits + from, to - from, static_cast<float>(per_weight)}, learn);
    }
  }

 private:
  template <class Arrays>
  void check(const Arrays& given) const {
    const long w = shape.n * shape.d, h = shape.h, f = shape.f;
    std::vector<long> sizes{shape.ids * h};
    for (long l = 0; l < shape.layers; l++) sizes.insert(sizes.end(), {h, 3 * w * h, h * w, h, 2 * f * h, h * f});
    sizes.push_back(h);
    if (given.size() == sizes.size() + 1) sizes.push_back(shape.ids * h);
    bool same = given.size() == sizes.size();
    for (size_t i = 0; same && i < sizes.size(); i++) same = given[i].size() == sizes[i];
    if (!same) throw std::invalid_argument("weights or gradients are not those of the model");
  }
};

PYBIND11_MODULE(_cpp_step, m) {
  m.def("sets", &sets);
  py::class_<Model>(m, "Model")
      .def(py::init([](long layers, long h, long f, long n, long d, long ids, long v, long s, bool causal, float eps, float score,
                       float branch, float logit, const std::string& set) {
             return Model({layers, h, f, n, d, ids, v, s, causal, eps, score, branch, logit}, set);
           }),
           py::kw_only(), py::arg("layers"), py::arg("hidden"), py::arg("ffn"), py::arg("heads"), py::arg("channels"),
           py::arg("ids"), py::arg("columns"), py::arg("positions"), py::arg("causal"), py::arg("eps"), py::arg("score"),
           py::arg("branch"), py::arg("logit"), py::arg("instructions"))
      .def("read", &Model::read)
      .def("write", &Model::write)
      .def("run", &Model::run);
}
