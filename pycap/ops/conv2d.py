"""2-D convolution with bias, and with ReLU or ReLU and 2x2 max-pooling fused (docs/math/conv2d.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.ops.preprocess import Pixels


class _Convolution(Function):
    """A convolution with the parents x, w, b. Where it has a ReLU, the convolution above may do a part of its backward.

    relu: whether it has one. dz_given: the gradient that comes from above is masked by the ReLU already, and the bias's
    gradient is written.
    """

    relu: bool
    dz_given = False

    def leaves_relu_above(self) -> bool:
        """Whether a consumer, in its backward, may write the gradient before this ReLU, and the bias's: only the only one."""
        computed = (
            self.needs[2] and self.parents[2].node is not None
        )  # a bias whose graph may be used up: not to be touched
        return self.relu and self.consumers == 1 and self.douts[0] is None and not computed

    def db_into(self) -> tuple[Any, float]:
        """Where the bias's gradient goes; nowhere, where it is written."""
        return (None, 0.0) if self.dz_given else self.grad_into(2)


class Conv2d(_Convolution):
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
            self.relu, self.unpooled, self.how = relu, (n, p, q, k), (stride, padding)
        return y

    def backward(self, dy: Any) -> None:
        dw, beta_w = self.grad_into(1)
        db, beta_b = self.db_into()
        weights = dw is not None or db is not None
        y, argmax = self.y, self.argmax
        if self.dz_given:
            y = None
            if argmax is not None and (weights or self.needs[0]):  # once, and not in each of the primitives
                dz = memory.empty(self.unpooled, dy.dtype)
                kernels.maxpool_backward(dz, dy, argmax, 0.0)
                dy, argmax = dz, None
        if weights:
            if dw is None:  # only the bias learns: the kernel still needs a place for dw
                dw, beta_w = memory.empty_like(self.w), 0.0
            kernels.conv2d_backward_weight(dw, db, dy, self.x, y, argmax, *self.how, beta_w, beta_b)
        if self.needs[0]:
            self._backward_data(dy, y, argmax)

    def _backward_data(self, dy: Any, y: Any, argmax: Any) -> None:
        below = self.parents[0].node
        fused = kernels.conv2d_backward_data_relu
        if fused is not None and isinstance(below, _Convolution) and below.leaves_relu_above():
            db, beta_b = below.db_into()
            below.dz_given = True
            dz, _ = self.grad_into(0)
            fused(dz, db, dy, self.w, y, argmax, self.x, *self.how, beta_b)
        else:
            dx, beta = self.grad_into(0)
            kernels.conv2d_backward_data(dx, dy, self.w, y, argmax, *self.how, beta)


class Conv2dFirst(_Convolution):
    def forward(self, x: Pixels, w: Any, b: Any, *, relu: bool) -> Any:
        if w.shape[1:] != (3, 3, 3):
            raise ValueError(f"conv2d_first: w {w.shape} is not [K,3,3,3]")
        if b is not None and b.shape != w.shape[:1]:
            raise ValueError(f"conv2d_first: b {b.shape} is not [K] = {w.shape[:1]}")
        y = memory.empty((*x.shape[:3], w.shape[0]), x.dtype)
        kernels.conv2d_first_forward(y, *x.arrays, w, b, relu)
        if any(self.needs):
            self.x, self.w, self.y, self.relu = x, w, y if relu else None, relu
        return y

    def backward(self, dy: Any) -> None:
        dw, beta_w = self.grad_into(1)
        db, beta_b = self.db_into()
        if dw is None and db is None:  # only the bias learns, and its gradient is written
            return
        if dw is None:  # the kernel still needs a place for dw
            dw, beta_w = memory.empty_like(self.w), 0.0
        y = None if self.dz_given else self.y
        kernels.conv2d_first_backward_weight(dw, db, dy, y, *self.x.arrays, beta_w, beta_b)


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


def conv2d_first(x: Pixels, w: Tensor, b: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """`conv2d` of 3x3 filters, stride 1, padding 1, on images that it normalises as it reads them.

    x: N windows of P x P (`ops.pixels`); w [K,3,3,3], b [K] or None, float32; returns [N,P,P,K] of x's dtype. The
    normalised images are never stored where the backend offers that (`backends.FUSIONS`); elsewhere they are made first.
    Raises ValueError where the shapes do not fit.
    """
    if kernels.conv2d_first_forward is None or kernels.conv2d_first_backward_weight is None:
        return conv2d(x.normalised(), w, b, relu=relu)
    return Conv2dFirst.apply(x, w, b, relu=relu)
