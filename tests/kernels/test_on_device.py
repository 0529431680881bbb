"""The host side of the GPU backend on arrays that are not NumPy's: a stand-in for CuPy's, kernels in the interpreter."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pycap import backends, device
from pycap.backends.triton import launching
from pycap.device import bfloat16
from pycap.testing import CASES, ComparisonError, compare
from pycap.testing.on_device import OnDevice
from tests import cupy_standin

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """New arrays are the stand-in's; the interpreter gets the memory beneath them."""
    cupy = cupy_standin.make()
    interpreter = launching.kernel_module("_interpret")
    run = interpreter.run

    def on_memory(kernel, grid, arguments, constants):
        assert not any(isinstance(a, np.ndarray) for a in arguments), f"{kernel} was given an array of the host"
        run(kernel, grid, [a._host if isinstance(a, cupy.ndarray) else a for a in arguments], constants)

    monkeypatch.setattr(interpreter, "run", on_memory)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with backends.use("reference", "cuda"):
        yield


def _small(primitive):
    """Two cases of moderate size."""
    size = {case.name: sum(a.size for a in case.arguments() if isinstance(a, np.ndarray)) for case in CASES[primitive]}
    return [case for case in CASES[primitive] if case.name in sorted(size, key=size.get)[2:8:3]] or CASES[primitive][:1]


@pytest.mark.parametrize("primitive", backends.PRIMITIVES)
def test_primitives_keep_to_the_device(primitive):
    """And read nothing back, but for the one that returns a number."""
    function = getattr(importlib.import_module("pycap.backends.triton"), primitive)

    def counted(*arguments, **named):
        before = cupy_standin.ndarray.reads
        returned = function(*arguments, **named)
        assert (cupy_standin.ndarray.reads > before) == (primitive == "sum_squares")
        return returned

    backend = SimpleNamespace(**{primitive: counted})
    for case in _small(primitive):
        compare(case, OnDevice(backend, 1))
        if primitive in backends.BFLOAT16:
            compare(case, OnDevice(backend), bfloat16())


def test_a_host_array_in_a_kernel_is_found():
    strays = SimpleNamespace(
        linear_forward=lambda y, x, w, b, relu: y.__setitem__(..., np.maximum(x @ w.T, 0)),
        cast=lambda y, x, beta: importlib.import_module("pycap.backends.triton").cast(y, x.get(), beta),
    )
    with pytest.raises(TypeError):
        compare(CASES["linear_forward"][4], OnDevice(strays))
    with pytest.raises(AssertionError, match=r"cast\.forward was given an array of the host"):
        compare(CASES["cast"][2], OnDevice(strays))


def test_an_input_that_a_backend_changes_is_found():
    def spoil(y, x, beta):
        importlib.import_module("pycap.backends.triton").cast(y, x, beta)
        x[0] = 7.0

    with pytest.raises(ComparisonError, match="was modified"):
        compare(CASES["cast"][2], OnDevice(SimpleNamespace(cast=spoil)))
