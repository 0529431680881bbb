"""Dropout whose mask is a function of a seed and the element's number, so never stored (docs/math/dropout.md)."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.device import to_device


class Dropout(Function):
    def forward(self, x: Any, *, p: float, seed: Any, total: int, offset: int) -> Any:
        self.how = (p, seed, total, offset)
        self.shape = x.shape if x.ndim == 3 else (1, *x.shape)
        y = memory.empty_like(x)
        kernels.dropout(y.reshape(self.shape), x.reshape(self.shape), *self.how, 0.0)
        return y

    def backward(self, dy: Any) -> None:
        dx, beta = self.grad_into(0)
        kernels.dropout(dx.reshape(self.shape), dy.reshape(self.shape), *self.how, beta)


def dropout(x: Tensor, p: float, seed: Any, *, total: int | None = None, offset: int = 0) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1-p) (Srivastava et al. 2014, inverted form).

    x [N,F] or [T,N,F]. seed: a 64-bit int, or an array of its low and high halves, uint32 [2]; one on the device is read there
    by forward and backward, so it may change between steps, but not between those two. The N rows stand for rows
    offset..offset+N of a batch of `total` (default N), so that a batch that is worked off in pieces drops the same elements.
    Raises ValueError unless 0 <= p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p = {p} is not in [0, 1)")
    if x.data.ndim not in (2, 3):
        raise ValueError(f"dropout: x {x.shape} is neither [N,F] nor [T,N,F]")
    if isinstance(seed, Integral):
        seed = int(seed)
    else:
        if seed.shape != (2,) or seed.dtype != np.uint32:
            raise ValueError(f"dropout: seed {seed.shape} {seed.dtype} is neither an int nor uint32 [2]")
        seed = to_device(seed)
    if p == 0:
        return x
    return Dropout.apply(x, p=p, seed=seed, total=x.shape[-2] if total is None else total, offset=offset)
