"""2x2 max-pooling (docs/math/pool.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels


class MaxPool(Function):
    def forward(self, x: Any) -> Any:
        if x.ndim != 4 or x.shape[1] < 2 or x.shape[2] < 2:
            raise ValueError(f"maxpool: x {x.shape} is not [N,H,W,C] with H and W of at least 2")
        n, h, w, c = x.shape
        y = memory.empty((n, h // 2, w // 2, c), x.dtype)
        self.argmax = memory.empty((n, h // 2, w // 2, -(-c // 4)), np.uint8)
        kernels.maxpool_forward(y, self.argmax, x)
        return y

    def backward(self, dy: Any) -> None:
        dx, beta = self.grad_into(0)
        kernels.maxpool_backward(dx, dy, self.argmax, beta)


def maxpool(x: Tensor) -> Tensor:
    """The maximum of each 2x2 window: x [N,H,W,C] -> [N,H//2,W//2,C]; an odd last row or column is dropped.

    Of equal values the first in row-major order wins and gets the gradient. Raises ValueError for other shapes.
    """
    return MaxPool.apply(x)
