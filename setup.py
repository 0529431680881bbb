"""Builds pycap._cpu and, where nvcc is, pycap._cuda with CMake; `build_emulation` builds pycap._cuda_emu, for tests.

The packages, kernels/ as pycap.kernels among them, are listed in pyproject.toml; environment variables in docs/env.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = (
    ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
)  # of a checkout: objects stay, so the next build is quick
CPU = os.environ.get("PYCAP_CPU", "ON").upper() not in ("OFF", "0", "NO", "FALSE")
CUDA = os.environ.get("PYCAP_CUDA", "AUTO").upper()


def cmake(build: Path, output: Path, **options: str) -> None:
    """Configure and build in the folder `build`, with the modules left in `output`."""
    program = shutil.which("cmake")
    if program is None:
        raise RuntimeError("cmake was not found: pip install cmake ninja")
    build.mkdir(parents=True, exist_ok=True)
    configure = [program, "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DPYCAP_OUTPUT_DIR={output}", *(f"-DPYCAP_{name}={value}" for name, value in options.items())]
    if shutil.which("ninja") or importlib.util.find_spec("ninja"):
        configure += ["-G", "Ninja"]
    for command in (configure, [program, "--build", str(build), "--parallel", str(os.cpu_count() or 1)]):
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(
                "the kernels could not be built (the reason stands above): pycap needs a C++17 compiler with OpenMP, for "
                "instance g++ 9 or newer (apt install g++); without nvcc's part: PYCAP_CUDA=OFF"
            ) from error


class CMakeBuild(build_ext):
    """Runs CMake once for all modules, and puts them where setuptools wants them (beside the sources when editable)."""

    def run(self) -> None:
        self.in_checkout = bool(self.inplace or self.editable_mode)  # while it runs, setuptools says False for both
        super().run()

    def build_extensions(self) -> None:
        output = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        for extension in self.extensions:
            if extension.optional:  # it may not come to be this time
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        if not CPU and CUDA == "OFF":
            return
        build = BUILD if self.in_checkout else Path(self.build_temp).resolve() / "cmake"
        cmake(build, output, CPU="ON" if CPU else "OFF", CUDA=CUDA, EMU="OFF")

    def copy_extensions_to_source(self) -> None:
        build_py = self.get_finalized_command("build_py")
        for extension in self.extensions:
            inplace, built = (Path(path) for path in self._get_inplace_equivalent(build_py, extension))
            if extension.optional and not built.exists():
                inplace.unlink(missing_ok=True)  # of an earlier build, of older sources
        super().copy_extensions_to_source()


class BuildEmulation(Command):
    """Builds pycap._cuda_emu beside the sources; no other command does, and no wheel holds it."""

    description = "build pycap._cuda_emu, which runs the CUDA kernels on the CPU for tests"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        """There are no options."""

    def finalize_options(self) -> None:
        """There are no options."""

    def run(self) -> None:
        cmake(BUILD.with_name(f"{BUILD.name}-emulation"), ROOT / "pycap", CPU="OFF", CUDA="OFF", EMU="ON")


setup(
    ext_modules=[
        *([Extension("pycap._cpu", sources=[])] if CPU else []),
        Extension("pycap._cuda", sources=[], optional=CUDA != "ON"),
    ],
    cmdclass={"build_ext": CMakeBuild, "build_emulation": BuildEmulation},
)
