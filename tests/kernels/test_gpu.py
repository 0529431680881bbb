"""The Triton backend on a GPU: every primitive's cases by the rule of two, repeated bit for bit, and launches in a graph."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import numpy as np
import pytest

from pycap import backends
from pycap.device import bfloat16
from pycap.testing import CASES, ComparisonError, compare
from pycap.testing.on_device import OnDevice

pytestmark = pytest.mark.gpu

#: Products of float32 in TensorFloat-32 round both factors to 11 bits: an error of 2**-11 each, relative to the largest
#: sum of products in the array, which is at most about four times its largest value in the cases here.
TF32_SLACK = 4 * 2.0**-11


@pytest.fixture(autouse=True)
def _on_the_gpu():
    with backends.use("triton", "cuda"):
        yield


def _failures(primitive, offset, dtype, slack=0.0):
    backend = OnDevice(importlib.import_module("pycap.backends.triton"), offset)
    failures = []
    for case in CASES[primitive]:
        try:
            compare(dataclasses.replace(case, slack=case.slack + slack), backend, dtype)
        except ComparisonError as error:
            failures.append(str(error))
    return failures


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("primitive", backends.PRIMITIVES)
def test_rule_of_two(primitive, offset):
    failures = _failures(primitive, offset, np.float32)
    assert not failures, f"{len(failures)} of {len(CASES[primitive])} cases:\n" + "\n".join(failures)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("primitive", backends.BFLOAT16)
def test_rule_of_two_in_bfloat16(primitive, offset):
    failures = _failures(primitive, offset, bfloat16())
    assert not failures, f"{len(failures)} of {len(CASES[primitive])} cases:\n" + "\n".join(failures)


PRODUCTS = [p for p in backends.PRIMITIVES if p.startswith(("conv2d", "linear", "lstm"))]


@pytest.mark.parametrize("primitive", PRODUCTS)
def test_tensorfloat32_errs_by_its_own_rounding_only(primitive):
    backends.set_float32_products("tf32")
    failures = _failures(primitive, 0, np.float32, TF32_SLACK)
    assert not failures, f"{len(failures)} of {len(CASES[primitive])} cases:\n" + "\n".join(failures)


def test_torch_is_not_imported():
    assert "torch" not in sys.modules


SMALL = [
    case for primitive in backends.PRIMITIVES for case in CASES[primitive] if case.name in ("primes", "one", "odd")
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.primitive}-{case.name}")
def test_sanitized(case):
    """Few and small, for a run under compute-sanitizer."""
    compare(case, OnDevice(importlib.import_module("pycap.backends.triton"), 1))


class _Recorder:
    """A backend whose outputs are kept as bytes."""

    def __init__(self, backend):
        self.backend, self.seen = backend, []

    def __getattr__(self, name):
        def call(*arguments):
            getattr(self.backend, name)(*arguments)
            self.seen.append([a.tobytes() for a in arguments if isinstance(a, np.ndarray)])

        return call


@pytest.mark.parametrize("primitive", PRODUCTS)
def test_results_repeat_bit_for_bit(primitive):
    backend = OnDevice(importlib.import_module("pycap.backends.triton"))
    for case in CASES[primitive][::4]:
        runs = [_Recorder(backend) for _ in range(2)]
        for recorder in runs:
            compare(case, recorder)
        assert runs[0].seen == runs[1].seen, f"{primitive}[{case.name}]"


def test_launches_are_captured_in_a_graph():
    """Two launches into one graph, replayed on new contents of the same arrays."""
    import cupy

    triton = importlib.import_module("pycap.backends.triton")
    x = cupy.arange(5000, dtype=np.float32)
    half, back = cupy.empty(5000, bfloat16()), cupy.empty_like(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(2):  # code is loaded before the capture
            triton.cast(half, x, 0.0)
            triton.cast(back, half, 0.0)
        stream.synchronize()
        stream.begin_capture()
        triton.cast(half, x, 0.0)
        triton.cast(back, half, 0.0)
        graph = stream.end_capture()
        x[...] = 3.0
        graph.launch(stream)
    stream.synchronize()
    assert (back.get() == 3.0).all()
