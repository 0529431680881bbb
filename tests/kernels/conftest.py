"""An op's kernels in the interpreter and on a GPU: a test file names its op in `OP`."""

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
