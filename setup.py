"""Builds megatron.data._helpers where there is a C++ compiler; everything else stands in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SOURCES = ["megatron/data/helpers.cpp", "megatron/data/circle.cpp"]


class OptionalBuild(build_ext):
    """Without a compiler the package installs all the same; its loops then run in Python."""

    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except Exception as error:
            print(f"megatron.data._helpers was not built ({error}): reading data will be slower, with the same result")


# Without contraction a product and a sum are rounded apart, as in Python: both draw the same samples on every processor.
helpers = Pybind11Extension(
    "megatron.data._helpers",
    SOURCES,
    depends=["megatron/data/circle.h"],
    cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=off"],
    optional=True,
)

setup(ext_modules=[helpers], cmdclass={"build_ext": OptionalBuild})
