"""The LSTM over a sequence on CUDA kernels: all steps in one launch; the products before and after it are Triton's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np

from pycap.backends import triton
from pycap.backends.cuda import native
from pycap.backends.cuda.products import products
from pycap.backends.triton.launching import Array, row_of, scratch
from pycap.backends.triton.linear import product_in_float32
from pycap.backends.triton.lstm import check_shapes, products_backward

log = logging.getLogger(__name__)

#: LstmForm of csrc/cuda/lstm.h, by the names of the configuration table, the fastest first; each one's fallback is the next.
_FORMS = {"cluster": 1, "cooperative": 0}


@cache
def _say(level: int, text: str) -> None:
    """Log it once."""
    log.log(level, "%s", text)


@cache
def _obstacle(gpu: tuple[int, int, int], form: str, backward: bool, kind: int, hidden: int) -> str:
    return native.module().lstm_obstacle(_FORMS[form], backward, kind, hidden)


def obstacle(form: str, backward: bool, w_h: Array, n: int) -> str:
    """Why this form, "cooperative" or "cluster", cannot carry n sequences through their steps, or "". It can any number, or
    none: what does not run at once takes turns."""
    if form not in _FORMS:
        return f"there is no form {form!r} but {', '.join(_FORMS)}"
    gpu = native.multiprocessors(), native.capability(), native.shared_limit()
    return _obstacle(gpu, form, backward, products(w_h), w_h.shape[1])


def _form(x: Array, w_h: Array, backward: bool, like_x: Sequence[Array], *aligned: Array) -> int | None:
    """The number of the form that serves, or None where Triton's launches do. like_x: what must be of x's type;
    aligned: what is read 16 bytes at a time. Logs what is in the way."""
    (steps, n, _), hidden = x.shape, w_h.shape[1]
    if not steps or not n or products(x) is None:
        return None
    if any(array is not None and array.dtype != x.dtype for array in (w_h, *like_x)):
        return None
    names = list(_FORMS)
    if not native.asked():
        preferred = row_of("lstm.form", x, hidden=hidden, n=n).blocks["FORM"]
        if preferred not in _FORMS:
            return None
        names = names[names.index(preferred) :]
    what = f"lstm {'backward' if backward else 'forward'}, {hidden} hidden units in {x.dtype}"
    if not native.aligned(w_h, *aligned):
        _say(logging.WARNING, f"{what}: Triton's form serves; CUDA's needs arrays at multiples of 16 bytes")
        return None
    for name in names:
        reason = obstacle(name, backward, w_h, n)
        if not reason:
            return _FORMS[name]
        _say(logging.INFO, f"{what}: the {name} form does not serve: {reason}")
    _say(logging.WARNING, f"{what}: Triton's form serves; {names[-1]}: {reason}")
    return None


def lstm_forward(
    h: Array, c: Array, gates: Array, x: Array, h0: Array, c0: Array, w_x: Array, w_h: Array, b: Array, mask: Array
) -> None:
    form = _form(x, w_h, False, (h, h0, w_x), h, h0)
    if form is None:
        triton.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, mask)
        return
    (steps, n, i), hidden = x.shape, w_h.shape[1]
    check_shapes("lstm_forward", x, w_h, h=h, c=c, gates=gates, h0=h0, c0=c0, w_x=w_x, b=b, mask=mask)
    native.expect_types("lstm_forward", np.float32, b=b, c=c, gates=gates, c0=c0)
    native.expect_types("lstm_forward", np.uint8, mask=mask)
    product_in_float32(gates.reshape(steps * n, 4 * hidden), x.reshape(steps * n, i), w_x)
    kind = products(x)
    (work,) = scratch(((native.module().lstm_workspace(False, kind, n, hidden),), np.uint8))
    native.call("lstm_forward", h, c, gates, work, b, h0, c0, w_h, mask, steps, n, hidden, form, kind)


def lstm_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dh0: Array, dc0: Array, gates: Array, dh: Array, dc_n: Array,
    x: Array, h: Array, c: Array, h0: Array, c0: Array, w_x: Array, w_h: Array, mask: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    form = _form(x, w_h, True, (dx, dh0, dh, h, h0, w_x), gates)
    if form is None:
        triton.lstm_backward(
            dx, dw_x, dw_h, db, dh0, dc0, gates, dh, dc_n, x, h, c, h0, c0, w_x, w_h, mask, betas
        )  # fmt: skip
        return
    (steps, n, _), hidden = x.shape, w_h.shape[1]
    check_shapes(
        "lstm_backward", x, w_h, dx=dx, dw_x=dw_x, dw_h=dw_h, db=db, dh0=dh0, dc0=dc0,
        gates=gates, dh=dh, dc_n=dc_n, h=h, c=c, h0=h0, c0=c0, w_x=w_x, mask=mask,
    )  # fmt: skip
    native.expect_types("lstm_backward", np.float32, dc0=dc0, gates=gates, dc_n=dc_n, c=c, c0=c0)
    native.expect_types("lstm_backward", np.uint8, mask=mask)
    kind = products(x)
    (work,) = scratch(((native.module().lstm_workspace(True, kind, n, hidden),), np.uint8))
    native.call(
        "lstm_backward", gates, dh0, dc0, work, dh, dc_n, c, c0, w_h, mask, steps, n, hidden, betas[4], betas[5],
        form, kind,
    )  # fmt: skip
    products_backward(dx, dw_x, dw_h, db, gates, x, h, h0, w_x, mask, betas)
