"""The CUDA backend on the primitives' common cases by the rule of two: those that its own kernels serve, and no others."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap import backends
from pycap.backends.cuda import native
from pycap.device import bfloat16
from pycap.testing import CASES, ComparisonError, compare
from pycap.testing.on_device import OnDevice

PRIMITIVES = [p for p in backends.PRIMITIVES if p.startswith(("conv2d", "lstm"))]


class LeftToTritonError(Exception):
    """The CUDA backend left a case to Triton's kernels, which have tests of their own."""


@pytest.fixture
def alone(monkeypatch):
    """A primitive that the CUDA backend leaves to Triton raises LeftToTritonError."""
    triton = importlib.import_module("pycap.backends.triton")

    def left(*arguments, **named):
        raise LeftToTritonError

    for primitive in PRIMITIVES:
        module = importlib.import_module(getattr(triton, primitive).__module__)
        monkeypatch.setattr(module, primitive, left)
        monkeypatch.setattr(triton, primitive, left)


def results(primitive, backend, dtype):
    """(failures, how many cases were served). Emulated, convolutions have every second case: they take a third of a second."""
    failures, served = [], 0
    for case in CASES[primitive][:: 2 if native.emulated() and primitive.startswith("conv2d") else 1]:
        try:
            compare(case, backend, dtype)
        except LeftToTritonError:
            continue
        except ComparisonError as error:
            failures.append(str(error))
        served += 1
    return failures, served


@pytest.mark.parametrize(
    ("primitive", "dtype"),
    [
        (p, dtype)
        for p in PRIMITIVES
        for dtype in ("float32", "bfloat16")
        if dtype == "float32" or p in backends.BFLOAT16
    ],
)
def test_rule_of_two(cuda, alone, primitive, dtype):
    failures, served = results(primitive, cuda, bfloat16() if dtype == "bfloat16" else np.float32)
    assert not failures, f"{len(failures)} of {served} cases:\n" + "\n".join(failures)
    assert served >= 2


def test_a_kernel_that_errs_is_found(cuda, alone, monkeypatch):
    module = importlib.import_module("pycap.backends.cuda")
    forward = module.conv2d_forward

    def wrong(y, *arguments):
        forward(y, *arguments)
        y *= 1.01

    monkeypatch.setattr(module, "conv2d_forward", wrong)
    failures, served = results("conv2d_forward", cuda, np.float32)
    assert len(failures) >= served / 2 > 0
    monkeypatch.setattr(module, "conv2d_forward", lambda *arguments: importlib.import_module(
        "pycap.backends.triton"
    ).conv2d_forward(*arguments))  # fmt: skip
    assert results("conv2d_forward", OnDevice(module), np.float32) == ([], 0)
