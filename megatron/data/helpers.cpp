// Loops that pay in C++, each with a Python twin that gives the same arrays: fill_blend of blend.py, build_sample_idx of
// reference_order.py, and the places on a circle (circle.cpp). Arguments are checked: none reads or writes out of range.
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "circle.h"

namespace py = pybind11;

namespace {

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

// Where sample k begins: token k * seq_length of the documents in the order of `document_index`, as the place there and the
// offset in that document. Token counts are 64 bits wide; T holds places and offsets.  -> T [num_samples + 1, 2]
template <typename T>
py::array_t<T> build_sample_idx(Vector<int32_t> sizes, Vector<int32_t> document_index, int64_t seq_length, int64_t num_samples) {
    if (sizes.ndim() != 1 || document_index.ndim() != 1)
        throw std::invalid_argument("build_sample_idx takes one-dimensional arrays");
    if (seq_length < 1 || num_samples < 0 || num_samples > (INT64_MAX / 4) / seq_length)
        throw std::invalid_argument("build_sample_idx needs 0 or more samples of 1 or more tokens");
    const int64_t num_sizes = sizes.size(), num_entries = document_index.size();
    if (sizeof(T) == 4 && num_entries > INT32_MAX)
        throw std::invalid_argument("build_sample_idx_int32 is too narrow for a document index of this length");
    if (num_samples > 0 && num_samples * seq_length / INT32_MAX >= num_entries)         // before memory is asked for
        throw std::invalid_argument("build_sample_idx: the documents end before the last sample begins");
    py::array_t<T> index({static_cast<py::ssize_t>(num_samples + 1), static_cast<py::ssize_t>(2)});
    T* out = index.mutable_data();
    const int32_t *size_of = sizes.data(), *documents = document_index.data();
    py::gil_scoped_release unlocked;
    out[0] = out[1] = 0;                            // also where document 0 is empty
    int64_t known = 1, begin = 0;                   // samples whose place is found, tokens before document d
    for (int64_t d = 0; d < num_entries && known <= num_samples; ++d) {
        const int32_t document = documents[d];
        if (document < 0 || document >= num_sizes || size_of[document] < 0)
            throw std::invalid_argument("build_sample_idx: a document is outside `sizes`, or has a size below 0");
        const int64_t end = begin + size_of[document];
        for (; known <= num_samples && known * seq_length < end; ++known) {
            out[2 * known] = static_cast<T>(d);
            out[2 * known + 1] = static_cast<T>(known * seq_length - begin);
        }
        begin = end;
    }
    if (known <= num_samples)
        throw std::invalid_argument("build_sample_idx: the documents end before the last sample begins");
    return index;
}

template <typename T>
void add_build_sample_idx(py::module_& m, const char* name) {
    m.def(name, &build_sample_idx<T>, py::arg("sizes").noconvert(), py::arg("document_index").noconvert(), py::arg("seq_length"),
          py::arg("num_samples"));
}

}  // namespace

PYBIND11_MODULE(_helpers, m) {
    m.doc() = "The compiled loops of blend.py, reference_order.py and gpt_dataset.py.";
    m.def("fill_blend", &fill_blend, py::arg("weights").noconvert(), py::arg("counts").noconvert(), py::arg("first"),
          py::arg("dataset_ids").noconvert(), py::arg("positions").noconvert());
    add_build_sample_idx<int32_t>(m, "build_sample_idx_int32");
    add_build_sample_idx<int64_t>(m, "build_sample_idx_int64");
    add_circle(m);
}
