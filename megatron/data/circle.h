// What circle.cpp adds to the extension module.
#pragma once
#include <pybind11/pybind11.h>

void add_circle(pybind11::module_& m);
