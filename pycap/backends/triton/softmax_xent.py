"""The vocabulary loss in the Triton backend, and the choice of the likeliest words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pycap.backends.triton import linear
from pycap.backends.triton.cast import cast
from pycap.backends.triton.launching import (
    ELEMENTS,
    PRODUCTS,
    Array,
    Kernel,
    blocks,
    expect,
    odd,
    place,
    precision,
    row,
    scratch,
)
from pycap.device import to_device
from pycap.memory import kept

_logits = Kernel(
    "softmax_xent.logits",
    "y:*T maxima:*fp32 sums:*fp32 picked:*fp32 h:*T w:*T b:*fp32 targets:*i32 m:i32 v:i32 k:i32/16 tiles:i32",
    variants=PRODUCTS,
)
_forward = Kernel(
    "softmax_xent.forward",
    "loss:*fp32 dlogits:*T maxima:*fp32 sums:*fp32 picked:*fp32 targets:*i32 weights:*fp32 v:i32/16 tiles:i32 has_weights:i32",
    variants=ELEMENTS,
)
_topk = Kernel(
    "topk.forward", "values:*fp32 indices:*i32 logits:*T suppressed:*i32 v:i32/16 k:i32 count:i32", variants=ELEMENTS
)


def linear_xent_forward(
    loss: Array, dlogits: Array, h: Array, w: Array, b: Array, targets: Array, weights: Array | None
) -> None:
    """The primitive; h and dlogits may be bfloat16 together, loss and b stay float32, and w is rounded to h's type."""
    (m, k), v = h.shape, w.shape[0]
    expect("linear_xent_forward", loss=(loss, (m,)), dlogits=(dlogits, (m, v)), w=(w, (v, k)), b=(b, (v,)))
    expect("linear_xent_forward", targets=(targets, (m,)), weights=(weights, (m,)))
    how = row(_logits, h, m=m, odd=odd(dlogits, h, w, b, targets, sizes=(k,)))
    tiles = blocks(v, how.blocks["BLOCK_N"])
    kept = 0 if w.dtype == h.dtype else w.size
    maxima, sums, picked, rounded = scratch(
        ((m, tiles), "float32"), ((m, tiles), "float32"), ((m,), "float32"), ((kept,), h.dtype)
    )
    if kept:
        wide, w = w, rounded.reshape(w.shape)
        cast(w, wide, 0.0)
    grid = (blocks(m, how.blocks["BLOCK_M"]) * tiles, 1, 1)
    _logits(
        grid, how, dlogits, maxima, sums, picked, h, w, b, targets, m, v, k, tiles, PRECISION=precision(h)
    )  # fmt: skip
    _forward(
        (m, 1, 1), row(_forward, dlogits), loss, dlogits, maxima, sums, picked, targets, weights, v, tiles,
        int(weights is not None),
    )  # fmt: skip


def linear_xent_backward(
    dh: Array | None, dw: Array | None, db: Array | None, dlogits: Array, h: Array, w: Array, scale: float,
    betas: Sequence[float],
) -> None:  # fmt: skip
    if dh is not None:
        linear.backward_data(dh, dlogits, w, None, scale, betas[0])
    linear.backward_weight(dw, db, dlogits, h, None, scale, betas[1], betas[2])


@kept(64)
def _suppressed(where: tuple[str, int], ids: tuple[int, ...]) -> Array:
    return to_device(np.array(ids, np.int32))


def log_softmax_topk(values: Array, indices: Array, logits: Array, suppress: Sequence[int]) -> None:
    (m, k), v = values.shape, logits.shape[1]
    expect("log_softmax_topk", indices=(indices, (m, k)), logits=(logits, (m, v)))
    if k > v:
        raise ValueError(f"log_softmax_topk: values has room for {k} of {v} words")
    ids = tuple(suppress)
    if not all(0 <= i < v for i in ids):
        raise ValueError(f"log_softmax_topk: suppress {ids} names ids outside the vocabulary of {v}")
    suppressed = _suppressed(place(), ids) if ids else None
    _topk((m, 1, 1), row(_topk, logits), values, indices, logits, suppressed, v, k, len(ids))
