"""Builds megatron.data._helpers and megatron.engine._cpp_step with a C++ compiler; all else stands in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SOURCES = ["megatron/data/helpers.cpp", "megatron/data/circle.cpp"]
WITHOUT = {
    "megatron.data._helpers": "reading data will be slower, with the same result",
    "megatron.engine._cpp_step": "--cpp-step is refused",
}


class OptionalBuild(build_ext):
    """Without a compiler the package installs all the same."""

    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except Exception as error:
            print(f"{extension.name} was not built ({error}): {WITHOUT[extension.name]}")


# Without contraction a product and a sum are rounded apart, as in Python: both draw the same samples on every processor.
helpers = Pybind11Extension(
    "megatron.data._helpers",
    SOURCES,
    depends=["megatron/data/circle.h"],
    cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=off"],
    optional=True,
)

cpp_step = Pybind11Extension(
    "megatron.engine._cpp_step",
    ["megatron/engine/cpp_step.cpp"],
    depends=["megatron/engine/cpp_step.h"],
    cxx_std=17,
    extra_compile_args=["-O2", "-Wno-psabi"],
    optional=True,
)

setup(ext_modules=[helpers, cpp_step], cmdclass={"build_ext": OptionalBuild})
