"""One step of the LSTM on CUDA kernels, for decoding: forward in one launch; backward in two, and Triton's weight gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pycap.backends import triton
from pycap.backends.cuda import native
from pycap.backends.cuda.products import products
from pycap.backends.triton.launching import Array, row_of, scratch
from pycap.backends.triton.lstm import check_shapes, products_backward


def _form(x: Array, w_x: Array, w_h: Array, *factors: Array) -> dict[str, Any] | None:
    """What the table says of this step ("TILE": the number of a tile in csrc/cuda/lstm_cell.h, or absent), or None where the
    CUDA form is not wanted, or cannot read these factors of the products 16 bytes at a time."""
    (n, i), hidden = x.shape, w_h.shape[1]
    if products(x) is None or any(array.dtype != x.dtype for array in (w_x, w_h, *factors)):
        return None
    form = row_of("lstm_cell.form", x, hidden=hidden, n=n).blocks
    if form["FORM"] != "cuda" and not native.asked():
        return None
    whole = hidden and (i | hidden) * x.itemsize % 16 == 0
    return form if whole and native.aligned(w_x, w_h, *factors) else None


def lstm_cell_forward(
    h: Array, c: Array, gates: Array, x: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, b: Array
) -> None:
    (n, i), hidden = x.shape, w_h.shape[1]
    form = _form(x, w_x, w_h, x, h_prev)
    if form is None:
        triton.lstm_cell_forward(h, c, gates, x, h_prev, c_prev, w_x, w_h, b)
        return
    check_shapes("lstm_cell_forward", x, w_h, h=h, c=c, gates=gates, h_prev=h_prev, c_prev=c_prev, w_x=w_x, b=b)
    native.expect_types("lstm_cell_forward", x.dtype, h=h)
    native.expect_types("lstm_cell_forward", np.float32, c=c, gates=gates, c_prev=c_prev, b=b)
    native.call(
        "lstm_cell_forward", h, c, gates, x, h_prev, c_prev, w_x, w_h, b, n, i, hidden, products(x), form.get("TILE", -1)
    )  # fmt: skip


def lstm_cell_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dh_prev: Array, dc_prev: Array, gates: Array, dh: Array, dc: Array,
    x: Array, c: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    (n, i), hidden = x.shape, w_h.shape[1]
    if _form(x, w_x, w_h) is None:
        triton.lstm_cell_backward(
            dx, dw_x, dw_h, db, dh_prev, dc_prev, gates, dh, dc, x, c, h_prev, c_prev, w_x, w_h, betas
        )
        return
    check_shapes(
        "lstm_cell_backward", x, w_h, dx=dx, dw_x=dw_x, dw_h=dw_h, db=db, dh_prev=dh_prev, dc_prev=dc_prev,
        gates=gates, dh=dh, dc=dc, c=c, h_prev=h_prev, c_prev=c_prev, w_x=w_x,
    )  # fmt: skip
    like_x = {"dx": dx, "dh_prev": dh_prev, "dh": dh}
    native.expect_types("lstm_cell_backward", x.dtype, **like_x)
    native.expect_types("lstm_cell_backward", np.float32, dc_prev=dc_prev, gates=gates, dc=dc, c=c, c_prev=c_prev)
    factors = gates
    if x.dtype != np.float32 or not native.aligned(gates):
        (factors,) = scratch((gates.shape, x.dtype))
    native.call(
        "lstm_cell_backward", dx, dh_prev, dc_prev, gates, factors, dh, dc, c, c_prev, w_x, w_h, n, i, hidden,
        betas[0], betas[4], betas[5], products(x),
    )  # fmt: skip
    products_backward(None, dw_x, dw_h, db, gates, x, h_prev, h_prev, w_x, None, betas)
