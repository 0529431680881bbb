"""Preparation of images in the Triton backend."""

from __future__ import annotations

from pycap.backends.triton.launching import ELEMENTS, Array, Kernel, blocks, expect, row

_forward = Kernel(
    "preprocess.forward",
    "y:*T x:*u8 crops:*i32 scale:*fp32 shift:*fp32 h:i32 width:i32 p:i32 q:i32",
    variants=ELEMENTS,
)


def preprocess(y: Array, x: Array, crops: Array, scale: Array, shift: Array) -> None:
    n, h, width, _ = x.shape
    _, p, q, _ = y.shape
    expect(
        "preprocess", x=(x, (n, h, width, 3)), y=(y, (n, p, q, 3)), crops=(crops, (n, 3)), scale=(scale, (3,)),
        shift=(shift, (3,)),
    )  # fmt: skip
    how = row(_forward, y)
    programs = n * blocks(p * q * 3, how.blocks["BLOCK"])
    _forward((programs, 1, 1), how, y, x, crops, scale, shift, h, width, p, q)
