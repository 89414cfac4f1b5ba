"""The one thing pyproject.toml can't say: which cffi modules to compile."""

from setuptools import setup

setup(
    cffi_modules=[
        "pyvmm/host_build.py:ffibuilder",
        "pyvmm/kvm/kvm_build.py:ffibuilder",
    ],
)
