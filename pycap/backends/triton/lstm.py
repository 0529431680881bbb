"""The LSTM in the Triton backend: a launch a step, or one for all steps; one product each for all inputs and all weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pycap.backends.triton.cast import cast
from pycap.backends.triton.launching import (
    PRODUCTS,
    Array,
    Kernel,
    Row,
    blocks,
    expect,
    interpreting,
    multiprocessors,
    odd,
    precision,
    row,
    row_of,
    scratch,
)
from pycap.backends.triton.linear import linear_backward_data, linear_forward, product_in_float32
from pycap.memory import empty

_cell_forward = Kernel(
    "lstm.cell_forward",
    "h:*T c:*fp32 gates:*fp32 x:*T h0:*T c0:*fp32 w_x:*T w_h:*T b:*fp32 mask:*u8 "
    "step:i32 n:i32 i:i32/16 hidden:i32/16 has_h:i32 has_c:i32 masked:i32",
    variants=[products | {"FUSED": fused} for products in PRODUCTS for fused in (False, True)],
)
_cell_backward = Kernel(
    "lstm.cell_backward",
    "gates:*fp32 carry_h:*fp32 carry_c:*fp32 dh0:*T dc0:*fp32 dh:*T dc_n:*fp32 c:*fp32 c0:*fp32 w_h:*T mask:*u8 "
    "step:i32 steps:i32 n:i32 hidden:i32/16 has_dh:i32 has_dc:i32 has_c:i32 masked:i32 wants_h:i32 wants_c:i32 "
    "beta_h:fp32 beta_c:fp32",
    variants=PRODUCTS,
)
_backward_weight = Kernel(
    "lstm.backward_weight",
    "dw:*fp32 dz:*fp32 first:*T rest:*T mask:*u8 m:i32 g:i32/16 i:i32/16 shift:i32 has_first:i32 masked:i32 beta:fp32",
    variants=PRODUCTS,
)
_backward_bias = Kernel("lstm.backward_bias", "db:*fp32 dz:*fp32 m:i32 g:i32/16 beta:fp32")
_sequence_forward = Kernel(
    "lstm_persistent.forward",
    "h:*T c:*fp32 gates:*fp32 h0:*T c0:*fp32 w_h:*T mask:*u8 arrived:*i32 "
    "steps:i32 n:i32 hidden:i32/16 has_c:i32 masked:i32",
    variants=PRODUCTS,
    cooperative=True,
)
_sequence_backward = Kernel(
    "lstm_persistent.backward",
    "gates:*fp32 dh0:*T dc0:*fp32 dh:*T dc_n:*fp32 c:*fp32 c0:*fp32 w_h:*T mask:*u8 arrived:*i32 "
    "steps:i32 n:i32 hidden:i32/16 has_dh:i32 has_dc:i32 has_c:i32 masked:i32 wants_h:i32 wants_c:i32 "
    "beta_h:fp32 beta_c:fp32",
    variants=PRODUCTS,
    cooperative=True,
)


def _tiles(how: Row, n: int, hidden: int) -> tuple[int, int, int]:
    return blocks(hidden, how.blocks["BLOCK_H"]), blocks(n, how.blocks["BLOCK_N"]), 1


def _persistent(
    kernel: Kernel, w_h: Array, n: int, inner: int, *arrays: Array
) -> tuple[Row, tuple[int, int, int]] | None:
    """The row and the grid of a launch for all steps, or None where it does not serve, or the configuration table prefers
    another form. inner: the products' length."""
    form = row_of("lstm.form", w_h, hidden=w_h.shape[1], n=n).blocks["FORM"]
    return _at_once(kernel, w_h, n, inner, *arrays) if form == "persistent" else None


def _at_once(kernel: Kernel, w_h: Array, n: int, inner: int, *arrays: Array) -> tuple[Row, tuple[int, int, int]] | None:
    """The same, whatever the table prefers.

    All programs of the launch must run at once; each has a multiprocessor of its own for the weights that it holds; in the
    interpreter a program may wait for none but itself.
    """
    hidden = w_h.shape[1]
    try:
        how = row(kernel, w_h, hidden=hidden, odd=odd(w_h, *arrays, sizes=(hidden,)))
    except KeyError:  # too many hidden units to hold their weights, or arrays at odd addresses
        return None
    grid = _tiles(how, n, hidden)
    length = how.blocks["BLOCK_K"]
    if inner % length or inner > length * how.blocks["CHUNKS"]:
        return None
    if interpreting():
        return (how, grid) if grid[0] == 1 else None
    return (how, grid) if grid[0] * grid[1] <= multiprocessors() else None


def obstacle(form: str, backward: bool, w_h: Array, n: int) -> str:
    """Why this form, "step" or "persistent", cannot carry n sequences through their steps, or ""."""
    kernel, inner = (_sequence_backward, w_h.shape[0]) if backward else (_sequence_forward, w_h.shape[1])
    if form == "step" or _at_once(kernel, w_h, n, inner):
        return ""
    where, sizes = "in the interpreter" if interpreting() else "on this GPU", f"N = {n}, H = {w_h.shape[1]}"
    return f"{sizes}: the programs of one launch would not all run at once {where}, or not hold the weights"


def check_shapes(primitive: str, x: Array, w_h: Array, **arrays: Array) -> None:
    """Check shapes by the names of `pycap.backends`, x [T,N,I] being a sequence, or [N,I] one step."""
    (*steps, n, i), hidden = x.shape, w_h.shape[1]
    g, state = 4 * hidden, (n, hidden)
    shapes: dict[str, tuple[int, ...]] = {"gates": (*steps, n, g), "mask": (*steps, n), "b": (g,), "db": (g,)}
    shapes |= dict.fromkeys(("h0", "c0", "dh0", "dc0", "dc_n", "h_prev", "c_prev", "dh_prev", "dc_prev", "dc"), state)
    shapes |= dict.fromkeys(("h", "c", "dh"), (*steps, *state)) | {"dx": x.shape}
    shapes |= dict.fromkeys(("w_x", "dw_x"), (g, i)) | {"dw_h": (g, hidden)}
    expect(primitive, w_h=(w_h, (g, hidden)), **{name: (array, shapes[name]) for name, array in arrays.items()})


def lstm_forward(
    h: Array, c: Array, gates: Array, x: Array, h0: Array, c0: Array, w_x: Array, w_h: Array, b: Array, mask: Array
) -> None:
    (steps, n, i), hidden = x.shape, w_h.shape[1]
    check_shapes("lstm_forward", x, w_h, h=h, c=c, gates=gates, h0=h0, c0=c0, w_x=w_x, b=b, mask=mask)
    z, rows = gates.reshape(steps * n, 4 * hidden), x.reshape(steps * n, i)
    if x.dtype == gates.dtype:
        linear_forward(z, rows, w_x, b, False)
    else:
        product_in_float32(z, rows, w_x, b)
    _steps_forward(h, c, gates, h0, c0, w_h, mask)


def _steps_forward(h: Array, c: Array, gates: Array, h0: Array, c0: Array, w_h: Array, mask: Array) -> None:
    """What follows the inputs' product, which the gates hold."""
    steps, n, hidden = h.shape
    products, has_c, masked = precision(w_h), int(c0 is not None), int(mask is not None)
    whole = _persistent(_sequence_forward, w_h, n, hidden, h, c, gates, h0, c0, mask)
    if whole:
        how, grid = whole
        arrived, zeros = scratch(((grid[1],), np.int32), ((n * (h0 is None), hidden), h.dtype))
        arrived.fill(0)
        zeros.fill(0)
        _sequence_forward(
            grid, how, h, c, gates, zeros if h0 is None else h0, c0, w_h, mask, arrived, steps, n, hidden, has_c, masked,
            PRECISION=products,
        )  # fmt: skip
        return
    how = row(_cell_forward, w_h, n=n, odd=odd(h, c, gates, h0, c0, w_h, mask, sizes=(hidden,)))
    grid = _tiles(how, n, hidden)
    for step in range(steps):
        _cell_forward(
            grid, how, h, c, gates, None, h0, c0, None, w_h, None, mask, step, n, 0, hidden,
            int(step > 0 or h0 is not None), int(step > 0) | has_c, masked, FUSED=False, PRECISION=products,
        )  # fmt: skip


def lstm_cell_forward(
    h: Array, c: Array, gates: Array, x: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, b: Array
) -> None:
    (n, i), hidden = x.shape, w_h.shape[1]
    check_shapes("lstm_cell_forward", x, w_h, h=h, c=c, gates=gates, h_prev=h_prev, c_prev=c_prev, w_x=w_x, b=b)
    how = row(_cell_forward, x, n=n, odd=odd(h, c, gates, x, h_prev, c_prev, w_x, w_h, b, sizes=(i, hidden)))
    _cell_forward(
        _tiles(how, n, hidden), how, h, c, gates, x, h_prev, c_prev, w_x, w_h, b, None, 0, n, i, hidden, 1, 1, 0,
        FUSED=True, PRECISION=precision(x),
    )  # fmt: skip


def lstm_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dh0: Array, dc0: Array, gates: Array, dh: Array, dc_n: Array,
    x: Array, h: Array, c: Array, h0: Array, c0: Array, w_x: Array, w_h: Array, mask: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    check_shapes(
        "lstm_backward", x, w_h, dx=dx, dw_x=dw_x, dw_h=dw_h, db=db, dh0=dh0, dc0=dc0,
        gates=gates, dh=dh, dc_n=dc_n, h=h, c=c, h0=h0, c0=c0, w_x=w_x, mask=mask,
    )  # fmt: skip
    _steps_backward(x.shape[0], dh0, dc0, gates, dh, dc_n, c, c0, w_h, mask, betas)
    products_backward(dx, dw_x, dw_h, db, gates, x, h, h0, w_x, mask, betas)


def lstm_cell_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dh_prev: Array, dc_prev: Array, gates: Array, dh: Array, dc: Array,
    x: Array, c: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    check_shapes(
        "lstm_cell_backward", x, w_h, dx=dx, dw_x=dw_x, dw_h=dw_h, db=db, dh_prev=dh_prev, dc_prev=dc_prev,
        gates=gates, dh=dh, dc=dc, c=c, h_prev=h_prev, c_prev=c_prev, w_x=w_x,
    )  # fmt: skip
    _steps_backward(1, dh_prev, dc_prev, gates, dh, dc, c, c_prev, w_h, None, betas)
    products_backward(dx, dw_x, dw_h, db, gates, x, h_prev, h_prev, w_x, None, betas)


def _steps_backward(
    steps: int, dh0: Array, dc0: Array, gates: Array, dh: Array, dc_n: Array, c: Array, c0: Array, w_h: Array,
    mask: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    """The gates become the gradients of their pre-activations; dh0 and dc0 are written."""
    n, hidden = c.shape[-2:]
    products, has_c, masked = precision(w_h), int(c0 is not None), int(mask is not None)
    has_dh, has_dc = int(dh is not None), int(dc_n is not None)
    wants_h, wants_c = int(dh0 is not None), int(dc0 is not None)
    whole = _persistent(_sequence_backward, w_h, n, 4 * hidden, gates, dh0, dc0, dh, dc_n, c, c0, mask)
    if whole and steps > 1:
        how, grid = whole
        (arrived,) = scratch(((grid[1],), np.int32))
        arrived.fill(0)
        _sequence_backward(
            grid, how, gates, dh0, dc0, dh, dc_n, c, c0, w_h, mask, arrived, steps, n, hidden, has_dh, has_dc, has_c, masked,
            wants_h, wants_c, betas[4], betas[5], PRECISION=products,
        )  # fmt: skip
        return
    how = row(_cell_backward, w_h, n=n, odd=odd(gates, dh0, dc0, dh, dc_n, c, c0, w_h, mask, sizes=(hidden,)))
    grid = _tiles(how, n, hidden)
    carry_h, carry_c = scratch(((n, hidden), np.float32), ((n, hidden), np.float32))
    for step in range(steps - 1, -2 if wants_h or wants_c else -1, -1):
        _cell_backward(
            grid, how, gates, carry_h, carry_c, dh0, dc0, dh, dc_n, c, c0, w_h, mask, step, steps, n, hidden, has_dh,
            has_dc, int(step > 0) | has_c, masked, wants_h if step < 0 else 1, wants_c, betas[4], betas[5],
            PRECISION=products,
        )  # fmt: skip


def products_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dz: Array, x: Array, h: Array, h0: Array, w_x: Array, mask: Array,
    betas: Sequence[float],
) -> None:  # fmt: skip
    """What follows from the gradients dz of all pre-activations. h: not read where there is one step."""
    n, i = x.shape[-2:]
    g, hidden = dz.shape[-1], h.shape[-1]
    m = dz.size // g
    for dw, first, rest, columns, shift, hides, beta in (
        (dw_x, None, x, i, 0, mask, betas[1]),
        (dw_h, h0, h, hidden, n, None, betas[2]),
    ):
        if dw is not None:
            how = row(_backward_weight, x, g=g, odd=odd(dw, dz, first, rest, hides, sizes=(g, columns)))
            grid = blocks(g, how.blocks["BLOCK_G"]), blocks(columns, how.blocks["BLOCK_I"]), 1
            _backward_weight(
                grid, how, dw, dz, first, rest, hides, m, g, columns, shift, int(first is not None),
                int(hides is not None), beta, PRECISION=precision(x),
            )  # fmt: skip
    if db is not None:
        how = row(_backward_bias, db)
        _backward_bias((blocks(g, how.blocks["BLOCK_G"]), 1, 1), how, db, dz, m, g, betas[3])
    if dx is not None:
        if dz.dtype != dx.dtype:
            rounded = empty(dz.shape, dx.dtype)
            cast(rounded, dz, 0.0)
            dz = rounded
        linear_backward_data(dx.reshape(m, i), dz.reshape(m, g), w_x, None, betas[0])
