"""How pycap is built: with and without an nvcc that works, and what a wheel holds."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


# Configuring ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def configure(tmp_path):
    """configure(nvcc, PYCAP_...=...) runs CMake where that script is the nvcc; gives (status, what it said)."""
    cmake = shutil.which("cmake") or pytest.skip("cmake was not found")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("building needs pybind11")

    def run(nvcc, **options):
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (tools / "nvcc").chmod(0o755)
        command = [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython_EXECUTABLE={sys.executable}"]
        command += ["-DPYCAP_CPU=OFF", *(f"-D{name}={value}" for name, value in options.items())]
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        for name in ("CUDA_PATH", "CUDA_HOME"):
            environment.pop(name, None)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def test_an_nvcc_that_cannot_is_told_and_left_out(configure):
    status, said = configure("echo 'nvcc fatal: Unsupported gpu architecture' >&2; exit 1", PYCAP_CUDA="AUTO")
    assert status == 0, said
    assert "pycap._cuda is not built" in said and "CUDA 12.0 or newer is needed" in said
    assert "nvcc fatal: Unsupported gpu architecture" in said


def test_an_nvcc_that_cannot_is_an_error_where_cuda_was_asked_for(configure):
    status, said = configure("echo 'nvcc fatal: Unsupported gpu architecture' >&2; exit 1", PYCAP_CUDA="ON")
    assert status != 0 and "PYCAP_CUDA=ON, but" in said and "nvcc fatal: Unsupported gpu architecture" in said


def test_without_cuda_nvcc_is_not_asked(configure, tmp_path):
    status, said = configure(f"touch {tmp_path}/asked; exit 1", PYCAP_CUDA="OFF", PYCAP_EMU="ON")
    assert status == 0 and not (tmp_path / "asked").exists(), said


# A wheel --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The files of a wheel that is built without compiled modules, from a tree that may hold some."""
    return wheel_of(ROOT, tmp_path_factory.mktemp("wheel"))


def wheel_of(tree, folder):
    """The files of a wheel that is built, without compiled modules, from the tree into the folder."""
    try:
        version = int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        version = 0
    if version < 77:
        pytest.skip("building needs setuptools 77 or newer")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    command += ["build", "--build-base", str(folder / "build")]
    command += ["bdist_wheel", "--dist-dir", str(folder), "--bdist-dir", str(folder / "bdist")]
    environment = {**os.environ, "PYCAP_CPU": "OFF", "PYCAP_CUDA": "OFF"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_the_packages(contents):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pycap").rglob("*.py")}
    recipes = {f"pycap/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert {"pycap/config/options.py", "pycap/backends/cuda/native.py"} <= modules and len(recipes) > 10
    assert modules | recipes | {"pycap/kernels/configs.py"} <= contents
    assert not [name for name in contents if name.startswith(("tests", "benchmarks", "csrc", "kernels"))]


def test_it_holds_the_pages(contents):
    """And whatever else stands among the modules and is read from there."""
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pycap").rglob("*")
        if path.is_file()
        and path.suffix not in {".py", ".so"}
        and path.name != ".gitkeep"
        and path.parent.name != "__pycache__"
    }
    assert {"pycap/pages/style.css", "pycap/web/static/serve.html", "pycap/web/static/serve.js"} <= data
    assert data <= contents


def test_the_dockerfile_copies_all_of_it(contents, tmp_path):
    """The wheel of what .dockerignore lets through, which is what the image is built from, is that of the tree."""
    context = tmp_path / "context"
    for path in (path for top in ROOT.iterdir() if let_through(top.name) for path in (top, *top.rglob("*"))):
        relative = path.relative_to(ROOT).as_posix()
        if path.is_file() and let_through(relative):
            (context / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, context / relative)
    assert (context / "csrc" / "cpu" / "CMakeLists.txt").exists()
    assert not list(context.rglob("*.so")) and not (context / "tests").exists()
    gpu = {name for name in contents if name.startswith("pycap/kernels/cubins/")}  # where `make cubins` has run
    assert wheel_of(context, tmp_path) == contents - gpu


def let_through(path):
    """What .dockerignore says of a path relative to it: its last line that matches the path, or a folder it is in."""
    through = True
    for rule in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = rule.removeprefix("!").removeprefix("**/")
        folders = [path.rsplit("/", up)[0] for up in range(path.count("/") + 1)]
        names = [folder.rsplit("/", 1)[-1] for folder in folders] if "**/" in rule else folders
        if pattern and not rule.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in names):
            through = rule.startswith("!")
    return through


@pytest.mark.emu
def test_the_emulation_stays_at_home(contents):
    """It stands in the tree, beside what is packed."""
    assert list((ROOT / "pycap").glob("_cuda_emu.*"))
    assert not [name for name in contents if "emu" in name or name.endswith(".so")]
