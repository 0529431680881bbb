"""The Hopper convolutions on a GPU: the rule of two, the same bits twice. A file of its own, since a fault there may hang."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap import backends
from pycap.backends.triton import launching
from pycap.device import bfloat16
from pycap.testing import CASES, compare
from pycap.testing.on_device import OnDevice

pytestmark = pytest.mark.gpu

PRIMITIVES = ("conv2d_forward", "conv2d_pool_forward", "conv2d_backward_data", "conv2d_backward_weight")
# n, h, w, c, k: VGG16's layers at a small batch, and sizes that no box divides
LAYERS = [
    (2, 224, 224, 64, 64),
    (2, 112, 112, 64, 128),
    (2, 56, 56, 256, 256),
    (4, 28, 28, 512, 512),
    (18, 14, 14, 512, 512),
]
LAYERS += [(3, 37, 23, 72, 192), (1, 2, 2, 64, 64), (5, 14, 9, 128, 320)]


@pytest.fixture(autouse=True)
def _hopper(monkeypatch):
    with backends.use("triton", "cuda"):
        if launching.arch() != "sm_90":
            pytest.skip(f"this GPU is {launching.arch()}")
        monkeypatch.setitem(launching.forced, "conv2d.form", launching.Row({"FORM": "hopper"}))
        yield


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_rule_of_two(primitive):
    for case in CASES[primitive]:
        compare(case, OnDevice(importlib.import_module("pycap.backends.triton")), bfloat16())


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_as_the_portable_kernels(layer, monkeypatch):
    """Twice with the same bits; and what the portable form gives, whose sums have another order."""
    import cupy

    n, h, w, c, k = layer
    rng = cupy.random.default_rng(1)
    x = cupy.maximum(rng.standard_normal((n, h, w, c), dtype=np.float32), 0).astype(bfloat16())
    dy = rng.standard_normal((n, h, w, k), dtype=np.float32).astype(bfloat16())
    filters = rng.standard_normal((k, 3, 3, c), dtype=np.float32) * np.float32((2 / (9 * c)) ** 0.5)
    b = rng.standard_normal(k, dtype=np.float32)
    triton = importlib.import_module("pycap.backends.triton")

    def results():
        y, pooled = cupy.empty((n, h, w, k), bfloat16()), cupy.empty((n, h // 2, w // 2, k), bfloat16())
        argmax = cupy.empty((n, h // 2, w // 2, k // 4), np.uint8)
        dx, dw, db = cupy.empty_like(x), cupy.empty_like(filters), cupy.empty_like(b)
        triton.conv2d_forward(y, x, filters, b, 1, 1, True)
        triton.conv2d_pool_forward(pooled, argmax, x, filters, b, 1, 1)
        triton.conv2d_backward_data(dx, dy, filters, None, None, 1, 1, 0.0)
        triton.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 0.0, 0.0)
        return [array.get().astype(np.float32) for array in (y, pooled, dx, dw, db)]

    first, second = results(), results()
    monkeypatch.delitem(launching.forced, "conv2d.form")
    for one, two, portable in zip(first, second, results(), strict=True):
        assert one.tobytes() == two.tobytes()
        assert np.linalg.norm(one - portable) <= 2.0**-8 * np.linalg.norm(portable)  # each rounded once to 8 bits
