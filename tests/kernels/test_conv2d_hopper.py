"""The Hopper convolutions, run by the emulator: exact sums of small integers against the reference, and planted faults."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from kernels import conv2d_hopper
from pycap.backends import reference
from tests.kernels.gluon_emulator import BFLOAT16, TensorMap, emulate

pytestmark = pytest.mark.triton

FLOAT16 = np.dtype(np.float16)
# n, h, w, c, k; the box; BN, NB, OUT, RESIDENT; programs
CASES = {
    "one program, all weights held": ((2, 16, 16, 64, 64), (1, 8, 8), (64, 9, 1, True), 1),
    "blocks of channels, several programs": ((2, 16, 16, 128, 64), (1, 8, 8), (64, 3, 1, False), 3),
    "blocks of channels, one program": ((2, 16, 16, 128, 64), (1, 8, 8), (64, 3, 1, False), 1),
    "filters in blocks, images left over": ((3, 8, 16, 64, 256), (2, 8, 4), (128, 2, 2, False), 2),
    "boxes over the edge": ((3, 10, 14, 64, 128), (4, 8, 2), (128, 4, 1, False), 2),
    "many images in a box": ((5, 6, 4, 64, 64), (16, 2, 2), (64, 2, 1, False), 1),
    "channels that 64 does not divide": ((1, 8, 8, 72, 64), (1, 16, 8), (64, 18, 1, True), 1),
    "odd sizes": ((3, 9, 7, 64, 64), (2, 8, 4), (64, 3, 1, False), 2),
    "more programs than tiles": ((1, 8, 8, 64, 64), (1, 8, 8), (64, 3, 1, False), 4),
}


def by_rows(array: np.ndarray, block: list[int]) -> TensorMap:
    """The tensor map of an NHWC array as [H,N,W,C]."""
    return TensorMap(array.transpose(1, 0, 2, 3), block)


def integers(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype = BFLOAT16, limit: int = 2
) -> np.ndarray:
    return rng.integers(-limit, limit + 1, shape).astype(dtype)


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def blank(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An output before it is written: NaN, or ones all over."""
    return np.full(shape, 255 if dtype == np.uint8 else np.nan, dtype)


def setting(case: str, dtype: np.dtype, reduced: str) -> SimpleNamespace:
    """Sizes, random x, w, bias and dy of a case, and the constexprs and tensor maps that all its kernels share."""
    (n, h, w, c, k), (IMG, BH, BW), (BN, NB, OUT, RESIDENT), programs = CASES[case]
    rng = np.random.default_rng(len(case))
    if reduced == "K":
        c, k = k, c
    this = SimpleNamespace(n=n, h=h, w=w, c=c, k=k, BN=BN, box=[BH, IMG, BW], grid=(programs,))
    this.x = integers(rng, (n, h, w, c), dtype)
    this.filters = integers(rng, (k, 3, 3, c), dtype, 1)
    this.bias = rng.integers(-9, 10, k).astype(np.float32)
    this.dy = integers(rng, (n, h, w, k), dtype)
    source = this.x if reduced == "C" else this.dy
    block = [BN, 64] if reduced == "C" else [64, BN]
    this.args = {
        "x" if reduced == "C" else "dy": by_rows(source, [*this.box, 64]),
        "halo": by_rows(source, [2, IMG, BW, 64]),
        "w": TensorMap(this.filters.reshape(k, 9 * c), block),
    }
    this.args |= {
        "N": n,
        "H": h,
        "W": w,
        "C": c,
        "K": k,
        "IMG": IMG,
        "BH": BH,
        "BW": BW,
        "BN": BN,
        "NB": NB,
        "OUT": OUT,
        "RESIDENT": RESIDENT,
    }
    return this


def run_forward(
    case: str,
    dtype: np.dtype = BFLOAT16,
    relu: bool = True,
    bias: bool = True,
    seed: int = 0,
    module: Any = conv2d_hopper,
) -> None:
    this = setting(case, dtype, "C")
    y = blank((this.n, this.h, this.w, this.k), dtype)
    b = this.bias if bias else None
    args = {"y": by_rows(y, [*this.box, 64]), "bias": b, "RELU": relu}
    emulate(module, "forward", this.grid, this.args | args, seed)
    expected = blank(y.shape, np.float32)
    reference.conv2d_forward(expected, wide(this.x), wide(this.filters), b, 1, 1, relu)
    np.testing.assert_array_equal(wide(y), wide(expected.astype(dtype)))


@pytest.mark.parametrize("case", CASES)
def test_forward(case: str) -> None:
    run_forward(case)


@pytest.mark.parametrize(
    ("dtype", "relu", "bias"), [(FLOAT16, True, True), (BFLOAT16, False, True), (BFLOAT16, True, False)]
)
def test_forward_variants(dtype: np.dtype, relu: bool, bias: bool) -> None:
    run_forward("boxes over the edge", dtype, relu, bias)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0][4] % 64 == 0])
def test_forward_pool(case: str) -> None:
    this = setting(case, BFLOAT16, "C")
    pooled = (this.n, this.h // 2, this.w // 2)
    y, argmax = blank((*pooled, this.k), BFLOAT16), blank((*pooled, this.k // 4), np.uint8)
    half = [this.box[0] // 2, this.box[1], this.box[2] // 2]
    args = {"y": by_rows(y, [*half, 64]), "argmax": by_rows(argmax, [*half, 16]), "bias": this.bias}
    emulate(conv2d_hopper, "forward_pool", this.grid, this.args | args)
    full, expected, winners = (
        blank((*this.x.shape[:3], this.k), np.float32),
        blank(y.shape, np.float32),
        blank(argmax.shape, np.uint8),
    )
    reference.conv2d_forward(full, wide(this.x), wide(this.filters), this.bias, 1, 1, True)
    reference.maxpool_forward(expected, winners, wide(full.astype(BFLOAT16)))
    np.testing.assert_array_equal(wide(y), expected)
    np.testing.assert_array_equal(argmax, winners)


def test_nan_is_kept() -> None:
    """A NaN in x is in the nine outputs around it and in their windows, after ReLU and pooling too."""
    this = setting("one program, all weights held", BFLOAT16, "C")
    this.x[0, 5, 6, 0] = np.nan
    this.filters[...] = 1
    this.args["bias"] = this.bias
    y = blank((this.n, this.h, this.w, this.k), BFLOAT16)
    emulate(conv2d_hopper, "forward", this.grid, this.args | {"y": by_rows(y, [*this.box, 64]), "RELU": True})
    expected = np.zeros((this.n, this.h, this.w), bool)
    expected[0, 4:7, 5:8] = True
    np.testing.assert_array_equal(np.isnan(y).all(3), expected)
    np.testing.assert_array_equal(np.isnan(y).any(3), expected)
    pooled = blank((this.n, this.h // 2, this.w // 2, this.k), BFLOAT16)
    winners = blank((*pooled.shape[:3], this.k // 4), np.uint8)
    half = [this.box[0] // 2, this.box[1], this.box[2] // 2]
    maps = {"y": by_rows(pooled, [*half, 64]), "argmax": by_rows(winners, [*half, 16])}
    emulate(conv2d_hopper, "forward_pool", this.grid, this.args | maps)
    expected = expected.reshape(this.n, this.h // 2, 2, this.w // 2, 2).any((2, 4))
    np.testing.assert_array_equal(np.isnan(pooled).all(3), expected)
    np.testing.assert_array_equal(np.isnan(pooled).any(3), expected)


def run_backward_data(case: str, masked: bool, summed: bool, seed: int = 0, module: Any = conv2d_hopper) -> None:
    this = setting(case, BFLOAT16, "K")
    dx = blank(this.x.shape, BFLOAT16)
    boxes = np.prod([-(-size // length) for size, length in zip((this.h, this.n, this.w), this.box, strict=True)])
    sums = blank((boxes + boxes % 2, this.c), np.float32)
    args = {
        "dx": by_rows(dx, [*this.box, 64]),
        "x": by_rows(this.x, [*this.box, 64]) if masked else None,
        "sums": sums if summed else None,
    }
    emulate(module, "backward_data", this.grid, this.args | args, seed)
    expected = blank(dx.shape, np.float32)
    reference.conv2d_backward_data(expected, wide(this.dy), wide(this.filters), None, None, 1, 1, 0.0)
    if masked:
        expected *= this.x > 0
    np.testing.assert_array_equal(wide(dx), wide(expected.astype(BFLOAT16)))
    if summed:
        np.testing.assert_array_equal(sums.sum(0), expected.sum((0, 1, 2)))
    else:
        assert np.isnan(sums).all()


@pytest.mark.parametrize(("masked", "summed"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("case", CASES)
def test_backward_data(case: str, masked: bool, summed: bool) -> None:
    run_backward_data(case, masked, summed)


# n, h, w, c, k; the box; BN, NB, BY_PIXELS; boxes a program takes, splits
WEIGHT_CASES = {
    "pixels shared out": ((2, 16, 16, 64, 64), (1, 8, 8), (64, 2, True), 2, 2),
    "several rounds of boxes": ((3, 16, 16, 64, 64), (1, 8, 8), (64, 2, True), 6, 1),
    "channels shared out": ((2, 16, 8, 128, 128), (1, 8, 8), (128, 2, False), 2, 2),
    "blocks of channels and filters": ((1, 8, 8, 256, 128), (1, 8, 8), (64, 1, False), 1, 1),
    "boxes over the edge and past the end": ((3, 10, 6, 72, 96), (2, 8, 4), (64, 3, False), 3, 3),
    "many images in a box": ((5, 6, 4, 64, 72), (16, 2, 2), (64, 2, True), 2, 2),
}


def run_backward_weight(case: str, dtype: np.dtype = BFLOAT16, seed: int = 0, module: Any = conv2d_hopper) -> None:
    (n, h, w, c, k), (IMG, BH, BW), (BN, NB, BY_PIXELS), boxes, splits = WEIGHT_CASES[case]
    rng = np.random.default_rng(len(case))
    x, dy = integers(rng, (n, h, w, c), dtype), integers(rng, (n, h, w, k), dtype)
    partials = blank((splits * (2 if BY_PIXELS else 1), k, 9, c), np.float32)
    args = {
        "x": by_rows(x, [BH, IMG, BW, 64]),
        "halo": by_rows(x, [2, IMG, BW, 64]),
        "dy": by_rows(dy, [BH, IMG, BW, BN]),
        "partials": partials,
    }
    args |= {
        "N": n,
        "H": h,
        "W": w,
        "C": c,
        "K": k,
        "boxes": boxes,
        "BY_PIXELS": BY_PIXELS,
        "IMG": IMG,
        "BH": BH,
        "BW": BW,
        "BN": BN,
        "NB": NB,
    }
    columns = -(-k // BN) * -(-c // (64 if BY_PIXELS else 128))
    emulate(module, "backward_weight", (3 * columns, splits), args, seed)
    expected = blank((k, 3, 3, c), np.float32)
    reference.conv2d_backward_weight(expected, None, wide(dy), wide(x), None, None, 1, 1, 0.0, 0.0)
    np.testing.assert_array_equal(partials.sum(0).reshape(k, 3, 3, c), expected)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("case", WEIGHT_CASES)
def test_backward_weight(case: str, dtype: np.dtype) -> None:
    run_backward_weight(case, dtype)
