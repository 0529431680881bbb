"""One registry of cases for every primitive: shapes and inputs that break careless kernels.

Sizes are primes, one off the edges of tiles (4n +- 1 for Winograd tiles, 15..17, 31..33), batches of 0 and 1. A case
builds the argument list of its primitive, in order, with markers for what the primitive writes (`arguments.py`);
`compare.py` runs it on any backend. Here stand the layers over images and rows, `cases_sequence.py` holds the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pycap.backends import reference
from pycap.testing.arguments import Beta, Case, Grad, Out, Parameter, Rng, normal
from pycap.testing.cases_beam import beam_cases
from pycap.testing.cases_sequence import sequence_cases


def _relu_output(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """What a ReLU may have put out: about half zeros, some of them -0."""
    y = np.maximum(normal(rng, *shape), 0)
    y[y == 0] = np.where(rng.random(int((y == 0).sum())) < 0.1, np.float32(-0.0), np.float32(0.0))
    return y


def _winners(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Random packed 2-bit winners; the unused bits of the last byte are random too, and must be ignored."""
    n, p, q, k = shape
    return rng.integers(0, 256, (n, p, q, -(-k // 4)), np.uint8)


def unpack_winners(argmax: np.ndarray, channels: int) -> np.ndarray:
    """Packed winners [N,P,Q,ceil(C/4)] -> one of 0..3 a channel, [N,P,Q,C]."""
    return np.stack([(argmax[..., k // 4] >> (2 * (k % 4))) & 3 for k in range(channels)], -1)


def _parameter(rng: Rng, *shape: int, scale: float = 1.0) -> Parameter:
    return Parameter(normal(rng, *shape, scale=scale))


# Convolution ----------------------------------------------------------------------------------------------------------

# name: (N, H, W, C, K, R, S, stride, padding)
CONVOLUTIONS = {
    "batch0": (0, 8, 8, 16, 16, 3, 3, 1, 1),
    "vgg_first": (2, 9, 11, 3, 64, 3, 3, 1, 1),
    "one_channel": (1, 7, 5, 1, 1, 3, 3, 1, 1),
    "tile_minus_1": (1, 7, 11, 16, 17, 3, 3, 1, 1),
    "tile_plus_1": (2, 5, 13, 17, 16, 3, 3, 1, 1),
    "tile_exact": (2, 8, 12, 32, 32, 3, 3, 1, 1),
    "channels_31_33": (1, 9, 7, 31, 33, 3, 3, 1, 1),
    "channels_64": (3, 6, 6, 64, 64, 3, 3, 1, 1),
    "smaller_than_a_tile": (3, 2, 3, 33, 31, 3, 3, 1, 1),
    "one_pixel": (2, 1, 1, 16, 16, 3, 3, 1, 1),
    "wide_1_row": (1, 1, 29, 16, 5, 3, 3, 1, 1),
    # Channels in multiples of 16, which vectorised and Winograd kernels want, on images that are not.
    "c16_k48_tile_minus_1": (1, 7, 11, 16, 48, 3, 3, 1, 1),
    "c48_k16_tile_plus_1": (2, 5, 13, 48, 16, 3, 3, 1, 1),
    "c32_k16_3x3_image": (3, 3, 3, 32, 16, 3, 3, 1, 1),
    "c16_k32_row": (1, 1, 29, 16, 32, 3, 3, 1, 1),
    "c16_k32_column": (2, 17, 2, 16, 32, 3, 3, 1, 1),
    "c16_k32_many_tiles": (5, 31, 29, 16, 32, 3, 3, 1, 1),
    "c256_k64": (1, 6, 7, 256, 64, 3, 3, 1, 1),
    "c3_k16_2x2_image": (3, 2, 2, 3, 16, 3, 3, 1, 1),
    "c3_k32_row": (1, 1, 13, 3, 32, 3, 3, 1, 1),
    "c3_k64_many_pixels": (2, 33, 37, 3, 64, 3, 3, 1, 1),
    "no_padding": (2, 11, 9, 16, 7, 3, 3, 1, 0),
    "padding_2": (1, 6, 7, 16, 17, 3, 3, 1, 2),
    "stride_2": (2, 11, 8, 16, 17, 3, 3, 2, 1),
    "stride_3_rest": (1, 12, 13, 5, 3, 3, 3, 3, 0),
    "1x1": (2, 5, 7, 31, 17, 1, 1, 1, 0),
    "1x1_stride_2": (2, 5, 7, 3, 16, 1, 1, 2, 0),
    "1x1_padding_1": (1, 4, 3, 3, 2, 1, 1, 1, 1),
    "5x5": (1, 9, 7, 3, 17, 5, 5, 1, 2),
    "5x5_stride_2": (2, 9, 8, 16, 3, 5, 5, 2, 1),
    "7x7_is_the_image": (3, 7, 7, 5, 33, 7, 7, 1, 0),
    "7x7_stride_2": (1, 13, 11, 3, 16, 7, 7, 2, 3),
    "1x3": (2, 5, 7, 16, 3, 1, 3, 1, 1),
    "3x1": (2, 7, 5, 3, 16, 3, 1, 1, 0),
}


def winograd_slack(channels: int) -> float:
    """Error allowed to F(4x4,3x3) and F(3x3,4x4) in float32, relative to the largest output.

    The transforms' entries (up to 5 in B and 8 in A, each applied twice) make rounding errors grow: Winograd written in
    plain NumPy float32 errs by 2e-6 to 8e-6 of the largest output for 1 to 64 channels and by 1e-5 at 256. That is ten
    times the error of the direct sum, growing like the root of the number of channels summed (Lavin & Gray 2016 report
    the like), so the rule of two against the direct sum cannot hold. This bound is the most that plain Winograd errs by.
    """
    return 8e-6 * max(1.0, (channels / 64) ** 0.5)


def _slack(c: int, k: int, r: int, s: int, stride: int) -> float:
    return winograd_slack(max(c, k)) if (r, s, stride) == (3, 3, 1) else 0.0


def _output_size(h: int, w: int, r: int, s: int, stride: int, padding: int) -> tuple[int, int]:
    return (h + 2 * padding - r) // stride + 1, (w + 2 * padding - s) // stride + 1


def _filters(rng: Rng, k: int, r: int, s: int, c: int) -> Parameter:
    return _parameter(rng, k, r, s, c, scale=(r * s * c) ** -0.5)


def _conv2d_forward(dims: tuple[int, ...], bias: bool, relu: bool, rng: Rng) -> list[Any]:
    n, h, w, c, k, r, s, stride, padding = dims
    p, q = _output_size(h, w, r, s, stride, padding)
    b = _parameter(rng, k, scale=0.5) if bias else None
    x = normal(rng, n, h, w, c)
    return [Out("y", (n, p, q, k)), x, _filters(rng, k, r, s, c), b, stride, padding, relu]


def _conv2d_pool_forward(dims: tuple[int, ...], bias: bool, rng: Rng) -> list[Any]:
    n, h, width, c, k, r, s, stride, padding = dims
    p, q = _output_size(h, width, r, s, stride, padding)
    b = _parameter(rng, k, scale=0.5) if bias else None
    x, filters = normal(rng, n, h, width, c), _filters(rng, k, r, s, c)

    def judge(argmax: np.ndarray, dtype: np.dtype) -> str:
        """Values that nearly tie may be ranked either way; the winner's value must be the maximum up to rounding.

        In bfloat16 the filters may be rounded first or not, and sums a unit in the last place apart may be stored as
        equals.
        """
        rows, columns = np.mgrid[: p // 2, : q // 2]
        winner = unpack_winners(argmax, k)
        row, column = 2 * rows[..., None] + winner // 2, 2 * columns[..., None] + winner % 2
        narrow = dtype.name == "bfloat16"
        short = np.full(winner.shape, np.inf)
        for w in (filters.array.astype(dtype), filters.array) if narrow else (filters.array,):
            full = np.empty((n, p, q, k))
            factors = (x.astype(dtype).astype(np.float64), w.astype(np.float64))
            bias_term = None if b is None else b.array.astype(float)
            reference.conv2d_forward(full, *factors, bias_term, stride, padding, True)
            value = full[np.arange(n)[:, None, None, None], row, column, np.arange(k)]
            best = full[:, : p // 2 * 2, : q // 2 * 2].reshape(n, p // 2, 2, q // 2, 2, k).max((2, 4))
            allowed = 2 * winograd_slack(c) * np.max(full, initial=0.0) + (2.0**-7 * best if narrow else 0)
            short = np.minimum(short, best - value - allowed)
        worst = np.max(short, initial=0.0)
        return "" if not worst else f"a winner is {worst:.3g} further below its window's maximum than rounding explains"

    shape = (n, p // 2, q // 2, k)
    argmax = Out("argmax", (*shape[:3], -(-k // 4)), "uint8", judge=judge)
    return [Out("y", shape), argmax, x, filters, b, stride, padding]


def _map_gradient(rng: Rng, shape: tuple[int, ...], mask: str) -> tuple[Any, Any, Any]:
    """(dy, y, argmax) for mask "none", "relu" or "pool"."""
    if mask == "pool":
        shape = (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    y = _relu_output(rng, shape) if mask != "none" else None
    return normal(rng, *shape), y, _winners(rng, shape) if mask == "pool" else None


def _conv2d_backward_data(dims: tuple[int, ...], mask: str, rng: Rng) -> list[Any]:
    n, h, w, c, k, r, s, stride, padding = dims
    dy, y, argmax = _map_gradient(rng, (n, *_output_size(h, w, r, s, stride, padding), k), mask)
    filters = _filters(rng, k, r, s, c)
    return [Grad("dx", (n, h, w, c), optional=False), dy, filters, y, argmax, stride, padding, Beta("dx")]


def _conv2d_backward_weight(dims: tuple[int, ...], mask: str, rng: Rng) -> list[Any]:
    n, h, w, c, k, r, s, stride, padding = dims
    dy, y, argmax = _map_gradient(rng, (n, *_output_size(h, w, r, s, stride, padding), k), mask)
    dw, db = Grad("dw", (k, r, s, c), optional=False, role="parameter"), Grad("db", (k,), role="parameter")
    return [dw, db, dy, normal(rng, n, h, w, c), y, argmax, stride, padding, Beta("dw"), Beta("db")]


def _convolution_cases() -> Iterator[Case]:
    for name, dims in CONVOLUTIONS.items():
        _, h, w, c, k, r, s, stride, padding = dims
        slack = _slack(c, k, r, s, stride)
        for bias, relu in ((True, True), (False, False)):
            label = f"{name}{'-bias-relu' if bias else ''}"
            yield Case("conv2d_forward", label, partial(_conv2d_forward, dims, bias, relu), slack)
        poolable = min(_output_size(h, w, r, s, stride, padding)) >= 2
        if poolable:
            yield Case("conv2d_pool_forward", name, partial(_conv2d_pool_forward, dims, name != "tile_minus_1"), slack)
        for mask in ("none", "relu", "pool") if poolable else ("none", "relu"):
            label = f"{name}-{mask}"
            yield Case("conv2d_backward_data", label, partial(_conv2d_backward_data, dims, mask), slack)
            yield Case("conv2d_backward_weight", label, partial(_conv2d_backward_weight, dims, mask), slack)


# Pooling --------------------------------------------------------------------------------------------------------------

POOLS = {
    "batch0": (0, 4, 4, 8), "smallest": (1, 2, 2, 1), "odd": (2, 5, 7, 3), "c17": (1, 6, 9, 17),
    "c31": (2, 3, 2, 31), "c33": (1, 8, 4, 33), "c64": (3, 7, 6, 64), "row": (1, 2, 29, 16),
}  # fmt: skip


def _maxpool_forward(dims: tuple[int, ...], ties: bool, rng: Rng) -> list[Any]:
    n, h, w, c = dims
    x = rng.integers(-1, 2, dims).astype(np.float32) if ties else normal(rng, *dims)

    def judge(argmax: np.ndarray, dtype: np.dtype) -> str:
        seen = x.astype(dtype).astype(np.float32)
        windows = np.stack([seen[:, i : h // 2 * 2 : 2, j : w // 2 * 2 : 2] for i in (0, 1) for j in (0, 1)])
        wrong = np.sum(unpack_winners(argmax, c) != windows.argmax(0))
        return f"{wrong} winners are not the first maximum of their window" if wrong else ""

    return [Out("y", (n, h // 2, w // 2, c)), Out("argmax", (n, h // 2, w // 2, -(-c // 4)), "uint8", judge=judge), x]


def _maxpool_backward(dims: tuple[int, ...], rng: Rng) -> list[Any]:
    n, h, w, c = dims
    shape = (n, h // 2, w // 2, c)
    return [Grad("dx", dims, optional=False), normal(rng, *shape), _winners(rng, shape), Beta("dx")]


def _pool_cases() -> Iterator[Case]:
    for name, dims in POOLS.items():
        yield Case("maxpool_forward", name, partial(_maxpool_forward, dims, False))
        yield Case("maxpool_forward", f"{name}-ties", partial(_maxpool_forward, dims, True))
        yield Case("maxpool_backward", name, partial(_maxpool_backward, dims))


# Linear, dropout, embedding -------------------------------------------------------------------------------------------

# name: (M, I, O)
LINEARS = {
    "batch0": (0, 16, 8), "one": (1, 1, 1), "row": (1, 64, 33), "primes": (7, 13, 11), "15_17_31": (15, 17, 31),
    "33_31_17": (33, 31, 17), "64": (64, 64, 64), "long": (3, 1009, 5),
}  # fmt: skip


def _linear_forward(dims: tuple[int, ...], bias: bool, relu: bool, rng: Rng) -> list[Any]:
    m, i, o = dims
    b = _parameter(rng, o) if bias else None
    return [Out("y", (m, o)), normal(rng, m, i), _parameter(rng, o, i, scale=i**-0.5), b, relu]


def _linear_backward_data(dims: tuple[int, ...], relu: bool, rng: Rng) -> list[Any]:
    m, i, o = dims
    y = _relu_output(rng, (m, o)) if relu else None
    return [Grad("dx", (m, i), optional=False), normal(rng, m, o), _parameter(rng, o, i), y, Beta("dx")]


def _linear_backward_weight(dims: tuple[int, ...], relu: bool, rng: Rng) -> list[Any]:
    m, i, o = dims
    y = _relu_output(rng, (m, o)) if relu else None
    outs = [Grad("dw", (o, i), optional=False, role="parameter"), Grad("db", (o,), role="parameter")]
    return [*outs, normal(rng, m, o), normal(rng, m, i), y, Beta("dw"), Beta("db")]


def _linear_cases() -> Iterator[Case]:
    for name, dims in LINEARS.items():
        for relu in (False, True):
            label = f"{name}{'-relu' if relu else ''}"
            yield Case("linear_forward", label, partial(_linear_forward, dims, True, relu))
            yield Case("linear_backward_data", label, partial(_linear_backward_data, dims, relu))
            yield Case("linear_backward_weight", label, partial(_linear_backward_weight, dims, relu))
        yield Case("linear_forward", f"{name}-nobias", partial(_linear_forward, dims, False, False))


# name: (shape [T,n,F], p, seed, total, offset)
DROPOUTS = {
    "batch0": ((1, 0, 8), 0.5, 1, 4, 0),
    "one": ((1, 1, 1), 0.5, 0, 1, 0),
    "rows": ((1, 7, 33), 0.5, 2**64 - 1, 7, 0),
    "sequence": ((5, 3, 31), 0.3, 0x0123456789ABCDEF, 3, 0),
    "piece": ((5, 3, 17), 0.3, 0xFEDCBA9876543210, 11, 4),
    "counter_wraps": ((2, 3, 65537), 0.9, 42, 65536, 65530),
    "rare": ((1, 64, 65), 1e-3, 7, 64, 0),
    "nearly_all": ((1, 64, 65), 0.999, 7, 64, 0),
}


def _dropout(how: tuple[Any, ...], rng: Rng) -> list[Any]:
    shape, p, seed, total, offset = how
    return [Grad("y", shape, optional=False), normal(rng, *shape), p, seed, total, offset, Beta("y")]


def _dropout_by_array(how: tuple[Any, ...], rng: Rng) -> list[Any]:
    """The same with the seed in an array."""
    arguments = _dropout(how, rng)
    arguments[3] = np.array([how[2] & 0xFFFFFFFF, how[2] >> 32], np.uint32)
    return arguments


def _ids(m: int, v: int, gaps: bool, rng: Rng) -> np.ndarray:
    """Rows of a table of v; with `gaps` each third stands for none, and so does the last."""
    ids = rng.integers(0, v, m).astype(np.int32)
    if gaps:
        ids[::3] = ids[-1:] = -1
    return ids


def _embedding_forward(dims: tuple[int, int, int], gaps: bool, rng: Rng) -> list[Any]:
    m, v, e = dims
    return [Out("y", (m, e)), normal(rng, v, e), _ids(m, v, gaps, rng)]


def _embedding_backward(dims: tuple[int, int, int], stale: bool, gaps: bool, rng: Rng) -> list[Any]:
    m, v, e = dims
    ids = _ids(m, v, gaps, rng)
    old = np.unique(rng.integers(0, v, max(m // 2, 1))).astype(np.int32) if stale else None
    return [Grad("dtable", (v, e), optional=False, stale=old), normal(rng, m, e), ids, old, Beta("dtable")]


EMBEDDINGS = {
    "batch0": (0, 5, 8), "one": (1, 1, 1), "primes": (23, 11, 13), "many_repeats": (97, 3, 31), "wide": (5, 101, 64),
    "e33": (33, 17, 33), "long_rows": (61, 5, 531),
}  # fmt: skip


def _row_cases() -> Iterator[Case]:
    for name, how in DROPOUTS.items():
        yield Case("dropout", name, partial(_dropout, how))
        yield Case("dropout", f"{name}-array", partial(_dropout_by_array, how))
    for name, dims in EMBEDDINGS.items():
        for gaps in (False, True):
            label = f"{name}-gaps" if gaps else name
            yield Case("embedding_forward", label, partial(_embedding_forward, dims, gaps))
            yield Case("embedding_backward", label, partial(_embedding_backward, dims, False, gaps))
            yield Case("embedding_backward", f"{label}-stale", partial(_embedding_backward, dims, True, gaps))


# Images and precision -------------------------------------------------------------------------------------------------


def _preprocess(dims: tuple[int, int, int, int, int], rng: Rng) -> list[Any]:
    n, h, w, p, q = dims
    corner = [rng.integers(0, h - p + 1, n), rng.integers(0, w - q + 1, n), rng.integers(0, 2, n)]
    x = rng.integers(0, 256, (n, h, w, 3)).astype(np.uint8)
    return [Out("y", (n, p, q, 3)), x, np.stack(corner, 1).astype(np.int32), _parameter(rng, 3), _parameter(rng, 3)]


def _cast(shape: tuple[int, ...], narrowing: bool, rng: Rng) -> list[Any]:
    """In a run in bfloat16: from float32 to bfloat16 where `narrowing`, else back."""
    if narrowing:
        return [Grad("y", shape, optional=False), _parameter(rng, *shape), Beta("y")]
    return [Grad("y", shape, optional=False, role="parameter"), normal(rng, *shape), Beta("y")]


def _preprocess_cases() -> Iterator[Case]:
    for name, size in {
        "batch0": (0, 8, 8, 4, 4), "one": (1, 1, 1, 1, 1), "whole": (2, 7, 5, 7, 5), "window": (5, 17, 31, 13, 16),
        "wide": (3, 9, 65, 3, 33),
        "many_rows": (3, 47, 61, 41, 37),
    }.items():  # fmt: skip
        yield Case("preprocess", name, partial(_preprocess, size))
    for name, shape in {
        "batch0": (0, 5), "one": (1,), "primes": (7, 11, 13), "c17": (3, 17), "c31_33": (31, 33), "long": (100_003,),
    }.items():  # fmt: skip
        for narrowing in (True, False):
            label = f"{name}-{'narrow' if narrowing else 'widen'}"
            yield Case("cast", label, partial(_cast, shape, narrowing))


def _registry() -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = {}
    images = (_convolution_cases, _pool_cases, _linear_cases, _row_cases, _preprocess_cases)
    for family in (*images, sequence_cases, beam_cases):
        for case in family():
            cases.setdefault(case.primitive, []).append(case)
    return cases


#: Every primitive's cases; tests/test_backends.py checks that none of backends.PRIMITIVES is missing.
CASES = _registry()
