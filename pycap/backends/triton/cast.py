"""Conversion of precision in the Triton backend."""

from __future__ import annotations

from pycap.backends.triton.launching import Array, Kernel, blocks, expect, row

_cast = Kernel(
    "cast.forward",
    "y:*Y x:*X n:i32 beta:fp32",
    variants=[{"Y": a, "X": b} for a in ("fp32", "bf16") for b in ("fp32", "bf16")],
)


def cast(y: Array, x: Array, beta: float) -> None:
    expect("cast", x=(x, y.shape))
    how = row(_cast, x)
    _cast((blocks(y.size, how.blocks["BLOCK"]), 1, 1), how, y, x, y.size, beta)
