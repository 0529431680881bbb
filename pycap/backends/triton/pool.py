"""2x2 max-pooling in the Triton backend."""

from __future__ import annotations

from pycap.backends.triton.launching import ELEMENTS, Array, Kernel, blocks, expect, row

_forward = Kernel("pool.forward", "y:*T argmax:*u8 x:*T n:i32 h:i32 width:i32 c:i32/16", variants=ELEMENTS)
_backward = Kernel(
    "pool.backward",
    "dx:*T dy:*T y:*T argmax:*u8 n:i32 h:i32 width:i32 c:i32/16 masked:i32 beta:fp32",
    variants=ELEMENTS,
)


def _pooled(primitive: str, x: Array) -> tuple[int, int, int, int]:
    """The shape of the pooled map. Raises ValueError for more pixels than the kernels count."""
    n, h, width, c = x.shape
    if n * (h + 1) * (width + 1) >= 2**31 - 2**16:
        raise ValueError(f"{primitive}: a map {x.shape} has more pixels than 32 bits count")
    return n, h // 2, width // 2, c


def maxpool_forward(y: Array, argmax: Array, x: Array) -> None:
    n, p, q, c = shape = _pooled("maxpool_forward", x)
    expect("maxpool_forward", y=(y, shape), argmax=(argmax, (n, p, q, blocks(c, 4))))
    how = row(_forward, x)
    programs = blocks(n * p * q, how.blocks["BLOCK_M"]) * blocks(c, how.blocks["BLOCK_N"])
    _forward((programs, 1, 1), how, y, argmax, x, *x.shape)


def maxpool_backward(dx: Array, dy: Array, argmax: Array, beta: float) -> None:
    unpool_relu(dx, dy, None, argmax, beta)


def unpool_relu(dx: Array, dy: Array, y: Array | None, argmax: Array, beta: float) -> None:
    """`maxpool_backward`; with y [N,H//2,W//2,C], the pooled output of a ReLU, dy counts only where y > 0."""
    n, p, q, c = shape = _pooled("maxpool_backward", dx)
    expect("maxpool_backward", dy=(dy, shape), y=(y, shape), argmax=(argmax, (n, p, q, blocks(c, 4))))
    _, h, width, _ = dx.shape
    how = row(_backward, dx)
    programs = blocks(n * blocks(h, 2) * blocks(width, 2), how.blocks["BLOCK_M"]) * blocks(c, how.blocks["BLOCK_N"])
    _backward((programs, 1, 1), how, dx, dy, y, argmax, *dx.shape, int(y is not None), beta)
