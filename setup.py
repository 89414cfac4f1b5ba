"""What pyproject.toml can't say: which cffi modules to compile, and how the BIOS is built."""

import os
import runpy
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build


class BuildFirmware(Command):
    """Build pyvmm/bios.rom: into the wheel, or into the checkout if the install is editable."""

    description = "assemble the BIOS"
    user_options: ClassVar = []

    def initialize_options(self):
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        here = Path(__file__).resolve().parent
        functions = runpy.run_path(str(here / "firmware/build.py"))
        root = here if self.editable_mode else Path(self.build_lib)
        functions["build"](root / "pyvmm/bios.rom")

    def get_outputs(self):
        return [os.path.join(self.build_lib, "pyvmm/bios.rom")]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return []


class Build(build):
    sub_commands: ClassVar = [*build.sub_commands, ("build_firmware", None)]


setup(
    cffi_modules=[
        "pyvmm/host_build.py:ffibuilder",
        "pyvmm/kvm/kvm_build.py:ffibuilder",
    ],
    cmdclass={"build": Build, "build_firmware": BuildFirmware},
)
