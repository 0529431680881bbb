"""2-D convolution with bias, and with ReLU or ReLU and 2x2 max-pooling fused (docs/math/conv2d.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels


class Conv2d(Function):
    def forward(self, x: Any, w: Any, b: Any, *, stride: int, padding: int, relu: bool, pool: bool) -> Any:
        if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[3]:
            raise ValueError(f"conv2d: x {x.shape} is not [N,H,W,C] or w {w.shape} is not [K,R,S,C] with the same C")
        if pool and not relu:
            raise ValueError("conv2d: pool=True is fused with ReLU only; call maxpool for pooling without it")
        if b is not None and b.shape != w.shape[:1]:
            raise ValueError(f"conv2d: b {b.shape} is not [K] = {w.shape[:1]}")
        if stride < 1 or padding < 0:
            raise ValueError(f"conv2d: stride {stride} is not at least 1, or padding {padding} is negative")
        n, h, width, _ = x.shape
        k, r, s, _ = w.shape
        p, q = (h + 2 * padding - r) // stride + 1, (width + 2 * padding - s) // stride + 1
        if p < 1 or q < 1:
            raise ValueError(f"conv2d: a {r}x{s} filter does not fit into {h}x{width} with padding {padding}")
        argmax = None
        if pool:
            y = memory.empty((n, p // 2, q // 2, k), x.dtype)
            argmax = memory.empty((n, p // 2, q // 2, -(-k // 4)), np.uint8)
            kernels.conv2d_pool_forward(y, argmax, x, w, b, stride, padding)
        else:
            y = memory.empty((n, p, q, k), x.dtype)
            kernels.conv2d_forward(y, x, w, b, stride, padding, relu)
        if any(self.needs):
            self.x, self.w, self.y, self.argmax = x, w, y if relu else None, argmax
            self.stride, self.padding = stride, padding
        return y

    def backward(self, dy: Any) -> None:
        dx, beta = self.grad_into(0)
        dw, beta_w = self.grad_into(1)
        db, beta_b = self.grad_into(2)
        how = (self.stride, self.padding)
        if dw is not None or db is not None:
            if dw is None:  # only the bias learns: the kernel still needs a place for dw
                dw, beta_w = memory.empty_like(self.w), 0.0
            kernels.conv2d_backward_weight(dw, db, dy, self.x, self.y, self.argmax, *how, beta_w, beta_b)
        if dx is not None:
            kernels.conv2d_backward_data(dx, dy, self.w, self.y, self.argmax, *how, beta)


def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """Cross-correlate images with filters.

    x [N,H,W,C], w [K,R,S,C], b [K] or None, all of one float dtype, or x bfloat16 and w and b float32, which are rounded
    to bfloat16 in products; returns [N,P,Q,K] of x's dtype with P = (H + 2*padding - R) // stride + 1, and likewise Q.
    relu: clamp at zero. pool (with relu): then a 2x2/2 max-pool, returning [N,P//2,Q//2,K]; the full map is
    never stored, only the winner of each window in two bits.
    Raises ValueError where the shapes do not fit. Source: Simonyan & Zisserman 2014, section 2.1.

    In float32 the C++ backend computes 3x3 filters of stride 1 and padding 1, with channels in multiples of 16, by Winograd
    F(4x4,3x3): its outputs and gradients err against float64 by about 1e-6 in norm (the direct sum: 3e-7), in the worst
    element by at most 4e-6 of the largest. With x in bfloat16, outputs and dx err by 2.4e-3 in norm, the rounding of
    filters and results; dw, which is float32, by 1e-7.
    """
    return Conv2d.apply(x, w, b, stride=stride, padding=padding, relu=relu, pool=pool)
