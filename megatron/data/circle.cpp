// Where samples begin on a corpus' circle: Circle.place of gpt_dataset.py is its Python twin, with the same arrays.
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "circle.h"

namespace py = pybind11;

namespace {

using Numbers = py::array_t<int64_t, py::array::c_style>;

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15;
constexpr int FEISTEL_ROUNDS = 8;
constexpr uint64_t ROTATION = 0, ORDER = 1;

uint64_t mixed(uint64_t h, uint64_t word) {     // one word more of hash64
    h += word + GOLDEN;
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB;
    return h ^ (h >> 31);
}

uint64_t permuted(uint64_t place, uint64_t size, uint64_t key) {
    const uint64_t height = static_cast<uint64_t>(std::ceil(std::sqrt(static_cast<double>(size))));
    const uint64_t width = (size + height - 1) / height;
    do {
        uint64_t row = place / width, column = place % width, round = key;
        for (int i = 0; i < FEISTEL_ROUNDS; ++i) {
            row = (row + mixed(0, round + column) % height) % height;
            round += GOLDEN;
            column = (column + mixed(0, round + row) % width) % width;
            round += GOLDEN;
        }
        place = row * width + column;
    } while (place >= size);
    return place;
}

// Entries, stays and returns of Circle.place.  numbers int64 [b] -> int64 [3, b]
Numbers place_on_circle(Numbers numbers, int64_t size, int64_t s, uint64_t key) {
    if (numbers.ndim() != 1)
        throw std::invalid_argument("place_on_circle takes a one-dimensional array of sample numbers");
    if (s < 1 || size <= s || size > INT64_MAX / 8)
        throw std::invalid_argument("place_on_circle needs at least one whole sample on the circle");
    const py::ssize_t count = numbers.size();
    const int64_t* given = numbers.data();
    for (py::ssize_t i = 0; i < count; ++i)
        if (given[i] < 0 || given[i] > (INT64_MAX - 4 * size) / s)
            throw std::invalid_argument("place_on_circle needs sample numbers from 0 to 2**63 tokens");
    Numbers out({static_cast<py::ssize_t>(3), count});
    int64_t *entries = out.mutable_data(), *stays = entries + count, *returns = stays + count;
    for (py::ssize_t i = 0; i < count; ++i) {
        const int64_t epoch = given[i] * s / size, before = epoch * size;
        const int64_t head = (s - before % s) % s, num_whole = (size - head) / s;
        const int64_t place = given[i] - (before + head) / s;
        const bool whole = place < num_whole;
        const uint64_t of_epoch = mixed(mixed(0, key), static_cast<uint64_t>(epoch));
        const uint64_t of_next = mixed(mixed(0, key), static_cast<uint64_t>(epoch + 1));
        const int64_t window = whole ? static_cast<int64_t>(permuted(place, num_whole, mixed(of_epoch, ORDER))) : num_whole;
        const uint64_t turn = mixed(of_epoch, ROTATION) % static_cast<uint64_t>(size);
        entries[i] = static_cast<int64_t>((turn + static_cast<uint64_t>(head) + static_cast<uint64_t>(window) * s) % size);
        stays[i] = whole ? s + 1 : size - head - num_whole * s;
        returns[i] = static_cast<int64_t>(mixed(of_next, ROTATION) % static_cast<uint64_t>(size));
    }
    return out;
}

}  // namespace

void add_circle(py::module_& m) {
    m.def("place_on_circle", &place_on_circle, py::arg("numbers").noconvert(), py::arg("size"), py::arg("seq_length"),
          py::arg("key"));
}
