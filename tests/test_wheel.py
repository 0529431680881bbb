"""What a wheel holds: the packages that pyproject.toml lists, and no module that is for tests only."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The files of a wheel that is built without compiled modules, from a tree that may hold some."""
    try:
        version = int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        version = 0
    if version < 77:
        pytest.skip("building needs setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    command += ["build", "--build-base", str(folder / "build")]
    command += ["bdist_wheel", "--dist-dir", str(folder), "--bdist-dir", str(folder / "bdist")]
    environment = {**os.environ, "PYCAP_CPU": "OFF", "PYCAP_CUDA": "OFF"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_the_packages(contents):
    assert {"pycap/__init__.py", "pycap/backends/cuda/native.py", "pycap/kernels/configs.py"} <= contents
    assert "pycap/recipes/coco.yaml" in contents
    assert not [name for name in contents if name.startswith(("tests", "benchmarks", "csrc", "kernels"))]


@pytest.mark.emu
def test_the_emulation_stays_at_home(contents):
    """It stands in the tree, beside what is packed."""
    assert list((ROOT / "pycap").glob("_cuda_emu.*"))
    assert not [name for name in contents if "emu" in name or name.endswith(".so")]
