"""LSTM: a whole sequence as one node, and one step of it for decoding (docs/math/lstm.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.device import to_device


def _check(op: str, features: int, w_x: Any, w_h: Any, b: Any) -> int:
    """The hidden size H, once the weights' shapes agree."""
    hidden = w_h.shape[1]
    if w_x.shape != (4 * hidden, features) or w_h.shape != (4 * hidden, hidden) or b.shape != (4 * hidden,):
        raise ValueError(
            f"{op}: w_x {w_x.shape}, w_h {w_h.shape}, b {b.shape} are not [4H,I], [4H,H], [4H] with I = {features}"
        )
    return hidden


class LSTM(Function):
    def forward(self, x: Any, h0: Any, c0: Any, w_x: Any, w_h: Any, b: Any, *, mask: Any) -> Any:
        if x.ndim != 3:
            raise ValueError(f"lstm: x {x.shape} is not [T,N,I]")
        steps, n, features = x.shape
        hidden = _check("lstm", features, w_x, w_h, b)
        for name, state in (("h0", h0), ("c0", c0)):
            if state is not None and state.shape != (n, hidden):
                raise ValueError(f"lstm: {name} {state.shape} is not [N,H] = {(n, hidden)}")
        if steps < 1:
            raise ValueError("lstm: a sequence of no steps has no last state")
        if mask is not None and (mask.shape != (steps, n) or mask.dtype != np.uint8):
            raise ValueError(f"lstm: mask {mask.shape} {mask.dtype} is not uint8 [T,N] = {(steps, n)}")
        mask = None if mask is None else to_device(mask)
        h, c = memory.empty((steps, n, hidden), x.dtype), memory.empty((steps, n, hidden), x.dtype)
        gates = memory.empty((steps, n, 4 * hidden), x.dtype)
        kernels.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, mask)
        if any(self.needs):
            self.saved = (x, h, c, h0, c0, w_x, w_h, mask)
            self.gates = gates
        return h, c[-1]

    def backward(self, dh: Any, dc_n: Any) -> None:
        (dx, bx), (dh0, bh), (dc0, bc), (dw_x, bwx), (dw_h, bwh), (db, bb) = (self.grad_into(i) for i in range(6))
        betas = (bx, bwx, bwh, bb, bh, bc)
        kernels.lstm_backward(dx, dw_x, dw_h, db, dh0, dc0, self.gates, dh, dc_n, *self.saved, betas)


class LSTMCell(Function):
    def forward(self, x: Any, h_prev: Any, c_prev: Any, w_x: Any, w_h: Any, b: Any) -> Any:
        hidden = _check("lstm_cell", x.shape[1], w_x, w_h, b)
        n = x.shape[0]
        if h_prev.shape != (n, hidden) or c_prev.shape != (n, hidden):
            raise ValueError(f"lstm_cell: h {h_prev.shape} or c {c_prev.shape} is not [N,H] = {(n, hidden)}")
        h, c = memory.empty((n, hidden), x.dtype), memory.empty((n, hidden), x.dtype)
        gates = memory.empty((n, 4 * hidden), x.dtype)
        kernels.lstm_cell_forward(h, c, gates, x, h_prev, c_prev, w_x, w_h, b)
        if any(self.needs):
            self.saved = (x, c, h_prev, c_prev, w_x, w_h)
            self.gates = gates
        return h, c

    def backward(self, dh: Any, dc: Any) -> None:
        (dx, bx), (dh0, bh), (dc0, bc), (dw_x, bwx), (dw_h, bwh), (db, bb) = (self.grad_into(i) for i in range(6))
        betas = (bx, bwx, bwh, bb, bh, bc)
        kernels.lstm_cell_backward(dx, dw_x, dw_h, db, dh0, dc0, self.gates, dh, dc, *self.saved, betas)


def lstm(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    mask: Any = None,
) -> tuple[Tensor, Tensor]:
    """An LSTM over a sequence (Hochreiter & Schmidhuber 1997, with forget gates; no peepholes).

    x [T,N,I]; w_x [4H,I], w_h [4H,H], b [4H], gates stacked i, f, g, o; h0, c0 [N,H] or None for zeros; mask uint8
    [T,N], an array of the host, or None: where it is 0 the state is carried over unchanged. Returns (h [T,N,H], the last
    cell state [N,H]); the last hidden state is h[T-1]. Raises ValueError where shapes do not fit, or for T = 0.
    """
    return LSTM.apply(x, h0, c0, w_x, w_h, b, mask=mask)


def lstm_cell(x: Tensor, h: Tensor, c: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One step of `lstm`: x [N,I], h and c [N,H] -> the new (h, c)."""
    return LSTMCell.apply(x, h, c, w_x, w_h, b)
