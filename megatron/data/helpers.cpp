// Loops that pay in C++, each with a Python twin that gives the same arrays: fill_blend of blend.py, build_sample_idx of
// reference_order.py (whose shuffles have numpy's own for a twin), and the places on a circle (circle.cpp). Arguments are checked: none reads or writes out of range.
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>

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
    constexpr int64_t AHEAD = 24;                   // documents are in no order: their sizes are asked for in time
    int64_t known = 1, begin = 0;                   // samples whose place is found, tokens before document d
    for (int64_t d = 0; d < num_entries && known <= num_samples; ++d) {
        const int32_t document = documents[d], later = documents[d + AHEAD < num_entries ? d + AHEAD : d];
        if (later >= 0 && later < num_sizes)
            __builtin_prefetch(size_of + later);
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

// numpy's legacy generator, MT19937 (Matsumoto & Nishimura 1998), on the state of a RandomState.
struct Twister {
    static constexpr int64_t SIZE = 624, AHEAD = 397;
    uint32_t* key;
    int64_t at;

    void mix(int64_t i, int64_t next, int64_t ahead) {
        const uint32_t y = (key[i] & 0x80000000U) | (key[next] & 0x7fffffffU);
        key[i] = key[ahead] ^ (y >> 1) ^ ((0U - (y & 1U)) & 0x9908b0dfU);
    }
    void refill() {
        for (int64_t i = 0; i < SIZE - AHEAD; ++i)
            mix(i, i + 1, i + AHEAD);
        for (int64_t i = SIZE - AHEAD; i < SIZE - 1; ++i)
            mix(i, i + 1, i + AHEAD - SIZE);
        mix(SIZE - 1, 0, AHEAD - 1);
        at = 0;
    }
    uint32_t next() {
        if (at == SIZE)
            refill();
        uint32_t y = key[at++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680U;
        y ^= (y << 15) & 0xefc60000U;
        return y ^ (y >> 18);
    }
};

// RandomState.shuffle of 32-bit words: word i changes places with one drawn from [0, i], by masked rejection, from the last
// on. The draws do not depend on the words, so a block of them is made first, and its cache misses overlap. `key` is left as
// numpy would leave it; its new position is returned.
int64_t shuffle_words(Vector<uint32_t> words, Vector<uint32_t> key, int64_t position) {
    constexpr int64_t BLOCK = 512;
    if (words.ndim() != 1 || words.size() > UINT32_MAX)
        throw std::invalid_argument("shuffle_words takes a one-dimensional array of fewer than 2^32 words");
    if (key.ndim() != 1 || key.size() != Twister::SIZE || position < 0 || position > Twister::SIZE)
        throw std::invalid_argument("shuffle_words needs the key and position of an MT19937");
    uint32_t* word = words.mutable_data();          // mutable_data throws for a read-only array
    Twister draw{key.mutable_data(), position};
    py::gil_scoped_release unlocked;
    uint32_t places[BLOCK];
    for (int64_t i = words.size() - 1; i >= 1;) {
        int64_t half = 1;                           // the largest power of two up to i: numbers from here to i share a mask
        while (half <= i / 2)
            half *= 2;
        const uint32_t mask = static_cast<uint32_t>(2 * half - 1);
        const int64_t count = i - half + 1 < BLOCK ? i - half + 1 : BLOCK;
        for (int64_t found = 0; found < count;) {
            places[found] = draw.next() & mask;
            found += places[found] <= i - found;
        }
        for (int64_t k = 0; k < count; ++k)
            __builtin_prefetch(word + places[k], 1);
        for (int64_t k = 0; k < count; ++k)
            std::swap(word[i - k], word[places[k]]);
        i -= count;
    }
    return draw.at;
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
    m.def("shuffle_words", &shuffle_words, py::arg("words").noconvert(), py::arg("key").noconvert(), py::arg("position"));
    add_circle(m);
}
