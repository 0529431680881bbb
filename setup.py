"""Builds pycap._cpu with CMake; the packages, kernels/ as pycap.kernels among them, are listed in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake once, and puts the module where setuptools wants it (beside the sources when editable)."""

    def build_extension(self, ext: Extension) -> None:
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake was not found: pip install cmake ninja")
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        in_checkout = self.inplace or self.editable_mode  # there the objects stay: the next build is quick
        base = (
            ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" if in_checkout else Path(self.build_temp).resolve()
        )
        build = base / ext.name
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPYCAP_OUTPUT_DIR={output}",
            f"-DPYCAP_CUDA={os.environ.get('PYCAP_CUDA', 'AUTO')}",
        ]
        if shutil.which("ninja") or importlib.util.find_spec("ninja"):
            configure += ["-G", "Ninja"]
        for command in (configure, [cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)]):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                raise RuntimeError(
                    "the C++ kernels could not be built (the reason stands above): pycap needs a C++17 compiler with "
                    "OpenMP, for instance g++ 9 or newer (apt install g++)"
                ) from error


setup(
    ext_modules=[Extension("pycap._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
