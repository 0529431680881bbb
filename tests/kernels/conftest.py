"""An op's kernels in the interpreter, in the emulation and on a GPU: a test file names its op in `OP`."""

from __future__ import annotations

import importlib

import pytest

from pycap import backends
from pycap.testing.on_device import OnDevice


@pytest.fixture
def inside(request):
    """The op's module in the Triton backend itself, for what cannot be seen from its results."""
    return importlib.import_module(f"pycap.backends.triton.{request.module.OP}")


@pytest.fixture(
    params=[pytest.param("interpreter", marks=pytest.mark.triton), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def kernels(request, inside):
    """The same for NumPy arrays, wherever the kernels run."""
    if request.param == "interpreter":
        yield inside
        return
    with backends.use("triton", "cuda"):
        yield OnDevice(inside)


@pytest.fixture(params=[pytest.param("emulation", marks=pytest.mark.emu), pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request):
    """The CUDA backend, asked for by name, for NumPy arrays: in the emulation, and on a GPU. Its kernels get arrays at
    multiples of 256 bytes, so that those serve that want aligned arrays."""
    device = "cpu" if request.param == "emulation" else "cuda"
    reason = backends.available("cuda", device)
    if reason:
        pytest.skip(f"backend cuda: {reason}")
    with backends.use("cuda", device):
        yield OnDevice(importlib.import_module("pycap.backends.cuda"))


@pytest.fixture
def called(monkeypatch):
    """A list of the names of the CUDA backend's compiled functions that are called with arrays, in order."""
    names: list[str] = []

    class Functions(dict):
        """Those that have been called before, by name: each call asks for one."""

        def get(self, name):
            names.append(name)
            return super().get(name)

    monkeypatch.setattr(importlib.import_module("pycap.backends.cuda.native"), "_functions", Functions())
    return names
