// The inner loop of blending corpora. Its Python twin is fill_blend in gpt_dataset.py: same arguments, same arrays.
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

template <typename T>
using Vector = py::array_t<T, py::array::c_style>;

void check(const Vector<double>& weights, const Vector<int64_t>& counts, int64_t first, const Vector<int32_t>& dataset_ids,
           const Vector<int64_t>& positions) {
    if (weights.ndim() != 1 || counts.ndim() != 1 || dataset_ids.ndim() != 1 || positions.ndim() != 1)
        throw std::invalid_argument("fill_blend takes one-dimensional arrays");
    if (weights.size() < 1 || weights.size() > INT32_MAX || weights.size() != counts.size())
        throw std::invalid_argument("fill_blend needs at least one weight, and as many counts as weights");
    if (dataset_ids.size() != positions.size())
        throw std::invalid_argument("fill_blend needs as many positions as dataset ids");
    if (first < 0 || first > INT64_MAX - positions.size())
        throw std::invalid_argument("fill_blend needs a first sample that is not negative");
    for (py::ssize_t d = 0; d < weights.size(); ++d)
        if (!std::isfinite(weights.at(d)) || weights.at(d) < 0 || counts.at(d) < 0 || counts.at(d) > INT64_MAX - positions.size())
            throw std::invalid_argument("fill_blend needs finite weights and counts that are not negative");
}

// Sample i comes from the dataset that is furthest behind its share: argmax_d(weights[d] * max(i, 1) - counts[d]), the
// lowest d in a tie. Samples `first` and on fill `dataset_ids` and `positions`; `counts` holds the samples drawn so far.
void fill_blend(Vector<double> weights, Vector<int64_t> counts, int64_t first, Vector<int32_t> dataset_ids,
                Vector<int64_t> positions) {
    check(weights, counts, first, dataset_ids, positions);
    const double* share = weights.data();
    int64_t* drawn = counts.mutable_data();         // mutable_data throws for a read-only array
    int32_t* ids = dataset_ids.mutable_data();
    int64_t* places = positions.mutable_data();
    const int64_t num_datasets = weights.size(), num_samples = positions.size();
    for (int64_t i = 0; i < num_samples; ++i) {
        const double number = static_cast<double>(first + i > 1 ? first + i : 1);
        int64_t best = 0;
        double behind = share[0] * number - static_cast<double>(drawn[0]);
        for (int64_t d = 1; d < num_datasets; ++d) {
            const double error = share[d] * number - static_cast<double>(drawn[d]);
            if (error > behind) {
                behind = error;
                best = d;
            }
        }
        ids[i] = static_cast<int32_t>(best);
        places[i] = drawn[best]++;
    }
}

PYBIND11_MODULE(_helpers, m) {
    m.doc() = "The compiled loop of gpt_dataset.py.";
    m.def("fill_blend", &fill_blend, py::arg("weights").noconvert(), py::arg("counts").noconvert(), py::arg("first"),
          py::arg("dataset_ids").noconvert(), py::arg("positions").noconvert());
}
