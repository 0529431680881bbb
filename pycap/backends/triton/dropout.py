"""Dropout in the Triton backend."""

from __future__ import annotations

import numpy as np

from pycap.backends.triton.launching import ELEMENTS, Array, Kernel, blocks, expect, row
from pycap.device import address

_WORD = 0xFFFFFFFF

_forward = Kernel(
    "dropout.forward",
    "y:*T x:*T size:i32/16 step_blocks:i32 first:u32 stride:u32 seed:i64 seed_low:u32 seed_high:u32 threshold:u32 "
    "scale:fp32 beta:fp32",
    variants=ELEMENTS,
)


def dropout(y: Array, x: Array, p: float, seed: int | Array, total: int, offset: int, beta: float) -> None:
    expect("dropout", x=(x, y.shape))
    at, low, high = 0, 0, 0
    if isinstance(seed, int):
        low, high = seed & _WORD, seed >> 32 & _WORD
    else:
        expect("dropout", seed=(seed, (2,)))
        if seed.dtype != np.uint32:
            raise TypeError(f"dropout: seed must be uint32, got {seed.dtype}")
        if not seed.flags.c_contiguous:
            raise ValueError("dropout: seed must be C-contiguous")
        at = address(seed)
    steps, n, features = x.shape
    how = row(_forward, x)
    step_blocks = blocks(n * features, how.blocks["BLOCK"])
    _forward(
        (steps * step_blocks, 1, 1), how, y, x, n * features, step_blocks, offset * features & _WORD,
        total * features & _WORD, at, low, high, int(p * 2**32), 1 / (1 - p), beta,
    )  # fmt: skip
