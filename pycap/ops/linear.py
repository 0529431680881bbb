"""Linear layer with bias and ReLU fused (docs/math/linear.md)."""

from __future__ import annotations

from typing import Any

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels


class Linear(Function):
    def forward(self, x: Any, w: Any, b: Any, *, relu: bool) -> Any:
        if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
            raise ValueError(f"linear: x {x.shape} is not [M,I] or w {w.shape} is not [O,I] with the same I")
        if b is not None and b.shape != w.shape[:1]:
            raise ValueError(f"linear: b {b.shape} is not [O] = {w.shape[:1]}")
        y = memory.empty((x.shape[0], w.shape[0]), x.dtype)
        kernels.linear_forward(y, x, w, b, relu)
        if any(self.needs):
            self.x, self.w, self.y = x, w, y if relu else None
        return y

    def backward(self, dy: Any) -> None:
        dx, beta = self.grad_into(0)
        dw, beta_w = self.grad_into(1)
        db, beta_b = self.grad_into(2)
        if dw is not None or db is not None:
            if dw is None:  # only the bias learns: the kernel still needs a place for dw
                dw, beta_w = memory.empty_like(self.w), 0.0
            kernels.linear_backward_weight(dw, db, dy, self.x, self.y, beta_w, beta_b)
        if dx is not None:
            kernels.linear_backward_data(dx, dy, self.w, self.y, beta)


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x w^T + b, clamped at zero where relu: x [M,I], w [O,I], b [O] or None -> [M,O] of x's dtype.

    All of one float dtype, or x bfloat16 and w and b float32; w is rounded to bfloat16 then. ValueError for other shapes.
    """
    return Linear.apply(x, w, b, relu=relu)
