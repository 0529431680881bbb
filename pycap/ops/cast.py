"""Between float32 and bfloat16 (docs/math/cast.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels


class Cast(Function):
    def forward(self, x: Any, *, dtype: np.dtype) -> Any:
        y = memory.empty(x.shape, dtype)
        kernels.cast(y, x, 0.0)
        return y

    def backward(self, dy: Any) -> None:
        dx, beta = self.grad_into(0)
        kernels.cast(dx, dy, beta)


def cast(x: Tensor, dtype: DTypeLike) -> Tensor:
    """x in another dtype, float32 or bfloat16 (rounded to nearest, ties to even); x itself where it has it already.

    The gradient comes back in x's dtype.
    """
    return x if x.dtype == dtype else Cast.apply(x, dtype=np.dtype(dtype))
