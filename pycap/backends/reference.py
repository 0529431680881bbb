"""The executable definition of every primitive: plain NumPy, in float32, float64 or bfloat16, to read and to check by.

Signatures and meanings stand in `pycap.backends`. The functions also run on CuPy arrays, which they never read back (but for
`sum_squares`). Nothing here is tuned. The optimisers' primitives stand in `reference_optim.py`, that of
beam search in `reference_beam.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pycap.backends import reference_beam, reference_optim
from pycap.device import array_module, bfloat16, is_bfloat16

Array = Any


def _write(out: Array, value: Array, beta: float) -> None:
    """out = beta * out + value, not reading `out` where beta is 0."""
    if out is None:
        return
    if beta:
        out *= beta
        out += value
    else:
        out[...] = value


def _serves_bfloat16(rounds: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Lets a primitive that is written for one dtype take bfloat16 activations: it runs in float32.

    Bfloat16 arrays are widened, the parameter called `rounds` (a factor of products) is rounded to bfloat16, and where
    the first argument, the output, is bfloat16, it gets the result, rounded once.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        factor = list(inspect.signature(function).parameters).index(rounds) if rounds else None

        @functools.wraps(function)
        def primitive(*arguments: Any) -> None:
            if not any(map(is_bfloat16, arguments)):
                function(*arguments)
                return
            wide = [a.astype("float32") if is_bfloat16(a) else a for a in arguments]
            if factor is not None:
                wide[factor] = arguments[factor].astype(bfloat16()).astype("float32")
            function(*wide)
            if is_bfloat16(arguments[0]):
                with np.errstate(invalid="ignore"):  # NaN stays NaN; CuPy never warns
                    arguments[0][...] = wide[0].astype(arguments[0].dtype)

        return primitive

    return decorate


# Convolution and pooling ----------------------------------------------------------------------------------------------


def _patches(x: Array, r: int, s: int, stride: int, padding: int) -> Array:
    """im2col: [N,P,Q,R,S,C] windows of x [N,H,W,C], zero-padded."""
    xp = array_module(x)
    padded = xp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    p, q = (padded.shape[1] - r) // stride + 1, (padded.shape[2] - s) // stride + 1
    out = xp.empty((x.shape[0], p, q, r, s, x.shape[3]), x.dtype)
    for i in range(r):
        for j in range(s):
            out[:, :, :, i, j] = padded[:, i : i + stride * p : stride, j : j + stride * q : stride][:, :p, :q]
    return out


def _preactivation_gradient(dy: Array, y: Array, argmax: Array, shape: tuple[int, ...]) -> Array:
    """dz [N,P,Q,K] from dy: the ReLU mask where y is given, unpooling where argmax is."""
    dz = dy if y is None else dy * (y > 0)
    if argmax is None:
        return dz
    full = array_module(dy).empty(shape, dy.dtype)
    maxpool_backward(full, dz, argmax, 0.0)
    return full


@_serves_bfloat16(rounds="w")
def conv2d_forward(y: Array, x: Array, w: Array, b: Array, stride: int, padding: int, relu: bool) -> None:
    k, r, s, c = w.shape
    columns = _patches(x, r, s, stride, padding).reshape(-1, r * s * c)
    out = columns @ w.reshape(k, -1).T
    if b is not None:
        out += b
    if relu:
        array_module(x).maximum(out, 0, out=out)  # unlike a product with the mask: NaN stays NaN, -inf becomes 0
    y[...] = out.reshape(y.shape)


@_serves_bfloat16(rounds="w")
def conv2d_pool_forward(y: Array, argmax: Array, x: Array, w: Array, b: Array, stride: int, padding: int) -> None:
    k, r, s, _ = w.shape
    p, q = ((n + 2 * padding - m) // stride + 1 for n, m in ((x.shape[1], r), (x.shape[2], s)))
    full = array_module(x).empty((x.shape[0], p, q, k), x.dtype)
    conv2d_forward(full, x, w, b, stride, padding, True)
    maxpool_forward(y, argmax, full)


@_serves_bfloat16(rounds="w")
def conv2d_backward_data(
    dx: Array, dy: Array, w: Array, y: Array, argmax: Array, stride: int, padding: int, beta: float
) -> None:
    n, h, width, c = dx.shape
    k, r, s, _ = w.shape
    p, q = (h + 2 * padding - r) // stride + 1, (width + 2 * padding - s) // stride + 1
    dz = _preactivation_gradient(dy, y, argmax, (n, p, q, k))
    columns = (dz.reshape(-1, k) @ w.reshape(k, -1)).reshape(n, p, q, r, s, c)
    padded = array_module(dx).zeros((n, h + 2 * padding, width + 2 * padding, c), dx.dtype)
    for i in range(r):
        for j in range(s):
            padded[:, i : i + stride * p : stride, j : j + stride * q : stride][:, :p, :q] += columns[:, :, :, i, j]
    _write(dx, padded[:, padding : padding + h, padding : padding + width], beta)


@_serves_bfloat16(rounds="w")
def conv2d_backward_data_relu(
    dz_below: Array, db_below: Array, dy: Array, w: Array, y: Array, argmax: Array, x: Array, stride: int, padding: int,
    beta_b: float,
) -> None:  # fmt: skip
    dx = array_module(x).empty(x.shape, x.dtype)
    conv2d_backward_data(dx, dy, w, y, argmax, stride, padding, 0.0)
    dz_below[...] = array_module(x).where(x > 0, dx, x.dtype.type(0))
    _write(db_below, dz_below.reshape(-1, x.shape[3]).sum(0), beta_b)


@_serves_bfloat16()
def conv2d_backward_weight(
    dw: Array,
    db: Array,
    dy: Array,
    x: Array,
    y: Array,
    argmax: Array,
    stride: int,
    padding: int,
    beta_w: float,
    beta_b: float,
) -> None:
    k, r, s, c = dw.shape
    columns = _patches(x, r, s, stride, padding)
    dz = _preactivation_gradient(dy, y, argmax, (*columns.shape[:3], k)).reshape(-1, k)
    _write(dw, (dz.T @ columns.reshape(-1, r * s * c)).reshape(dw.shape), beta_w)
    _write(db, dz.sum(0), beta_b)


def _windows(x: Array) -> Array:
    """The 2x2 windows of x [N,H,W,C] as [N,H//2,W//2,4,C], an odd last row or column dropped."""
    n, h, w, c = x.shape
    p, q = h // 2, w // 2
    return x[:, : 2 * p, : 2 * q].reshape(n, p, 2, q, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, p, q, 4, c)


def _unpack(argmax: Array, channels: int) -> Array:
    """2-bit winners [N,P,Q,ceil(C/4)] to one uint8 a channel [N,P,Q,C]."""
    xp = array_module(argmax)
    two_bits = (argmax[..., None] >> xp.arange(0, 8, 2, dtype=xp.uint8)) & 3
    return two_bits.reshape(*argmax.shape[:3], 4 * argmax.shape[3])[..., :channels]


@_serves_bfloat16()
def maxpool_forward(y: Array, argmax: Array, x: Array) -> None:
    xp = array_module(x)
    windows = _windows(x)
    winner = windows.argmax(3).astype(xp.uint8)
    y[...] = xp.take_along_axis(windows, winner[:, :, :, None].astype(xp.int64), 3)[:, :, :, 0]
    channels = x.shape[3]
    padded = xp.zeros((*winner.shape[:3], 4 * argmax.shape[3]), xp.uint8)
    padded[..., :channels] = winner
    quads = padded.reshape(*argmax.shape, 4)
    argmax[...] = quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


@_serves_bfloat16()
def maxpool_backward(dx: Array, dy: Array, argmax: Array, beta: float) -> None:
    xp = array_module(dy)
    n, p, q, c = dy.shape
    hit = _unpack(argmax, c)[:, :, :, None] == xp.arange(4, dtype=xp.uint8)[:, None]
    spread = xp.where(hit, dy[:, :, :, None], 0).reshape(n, p, q, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    full = xp.zeros(dx.shape, dx.dtype)
    full[:, : 2 * p, : 2 * q] = spread.reshape(n, 2 * p, 2 * q, c)
    _write(dx, full, beta)


# Linear, dropout, embedding -------------------------------------------------------------------------------------------


@_serves_bfloat16(rounds="w")
def linear_forward(y: Array, x: Array, w: Array, b: Array, relu: bool) -> None:
    out = x @ w.T
    if b is not None:
        out += b
    if relu:
        array_module(x).maximum(out, 0, out=out)
    y[...] = out


@_serves_bfloat16(rounds="w")
def linear_backward_data(dx: Array, dy: Array, w: Array, y: Array, beta: float) -> None:
    _write(dx, (dy if y is None else dy * (y > 0)) @ w, beta)


@_serves_bfloat16()
def linear_backward_weight(dw: Array, db: Array, dy: Array, x: Array, y: Array, beta_w: float, beta_b: float) -> None:
    dz = dy if y is None else dy * (y > 0)
    _write(dw, dz.T @ x, beta_w)
    _write(db, dz.sum(0), beta_b)


def _mix(x: Array) -> Array:
    xp = array_module(x)
    x = x ^ (x >> xp.uint32(16))
    x = x * xp.uint32(0x7FEB352D)
    x = x ^ (x >> xp.uint32(15))
    x = x * xp.uint32(0x846CA68B)
    return x ^ (x >> xp.uint32(16))


@_serves_bfloat16()
def dropout(y: Array, x: Array, p: float, seed: int | Array, total: int, offset: int, beta: float) -> None:
    xp = array_module(x)
    t, n, f = x.shape
    row = xp.arange(t, dtype=xp.uint64)[:, None] * xp.uint64(total) + xp.arange(offset, offset + n, dtype=xp.uint64)
    counter = (row[:, :, None] * xp.uint64(f) + xp.arange(f, dtype=xp.uint64)).astype(xp.uint32)
    if isinstance(seed, int):
        low, high = xp.uint32(seed & 0xFFFFFFFF), xp.uint32(seed >> 32 & 0xFFFFFFFF)
    else:
        low, high = seed[:1], seed[1:]
    kept = _mix(_mix(counter + low) ^ high).astype(xp.uint64) >= xp.uint64(int(p * 2**32))
    _write(y, xp.where(kept, x * x.dtype.type(1 / (1 - p)), x.dtype.type(0)), beta)


def embedding_forward(y: Array, table: Array, ids: Array) -> None:
    if not len(table):  # no id but -1
        y[...] = 0
        return
    y[...] = array_module(y).where(ids[:, None] < 0, 0, table[ids])


@_serves_bfloat16()
def embedding_backward(dtable: Array, dy: Array, ids: Array, stale: Array, beta: float) -> None:
    if beta:
        dtable *= beta
    elif stale is None:
        dtable[...] = 0
    else:
        dtable[stale] = 0
    if len(dtable):
        xp = array_module(dy)
        xp.add.at(dtable, ids, xp.where(ids[:, None] < 0, -0.0, dy))  # adding -0.0 changes no bit


# LSTM -----------------------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    return 0.5 * (array_module(x).tanh(0.5 * x) + 1)


def lstm_cell_forward(
    h: Array, c: Array, gates: Array, x: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, b: Array
) -> None:
    n = c.shape[-1]
    z = x @ w_x.T + h_prev @ w_h.T + b
    gates[..., : 2 * n] = _sigmoid(z[..., : 2 * n])
    gates[..., 2 * n : 3 * n] = array_module(z).tanh(z[..., 2 * n : 3 * n])
    gates[..., 3 * n :] = _sigmoid(z[..., 3 * n :])
    i, f, g, o = (gates[..., k * n : (k + 1) * n] for k in range(4))
    c[...] = f * c_prev + i * g
    h[...] = o * array_module(c).tanh(c)


def _cell_gradients(gates: Array, dh: Array, dc: Array, c: Array, c_prev: Array) -> Array:
    """Overwrite gates with the gradients of their pre-activations; returns the gradient of c_prev."""
    n = c.shape[-1]
    i, f, g, o = (gates[..., k * n : (k + 1) * n].copy() for k in range(4))
    tanh_c = array_module(c).tanh(c)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    gates[..., :n] = dc * g * i * (1 - i)
    gates[..., n : 2 * n] = dc * c_prev * f * (1 - f)
    gates[..., 2 * n : 3 * n] = dc * i * (1 - g * g)
    gates[..., 3 * n :] = dh * tanh_c * o * (1 - o)
    return dc * f


def lstm_cell_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dh_prev: Array, dc_prev: Array, gates: Array, dh: Array, dc: Array,
    x: Array, c: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    zero = array_module(c).zeros_like(c)
    carried = _cell_gradients(gates, zero if dh is None else dh, zero if dc is None else dc, c, c_prev)
    _write(dx, gates @ w_x, betas[0])
    _write(dw_x, gates.T @ x, betas[1])
    _write(dw_h, gates.T @ h_prev, betas[2])
    _write(db, gates.sum(0), betas[3])
    _write(dh_prev, gates @ w_h, betas[4])
    _write(dc_prev, carried, betas[5])


def lstm_forward(
    h: Array, c: Array, gates: Array, x: Array, h0: Array, c0: Array, w_x: Array, w_h: Array, b: Array, mask: Array
) -> None:
    xp = array_module(x)
    h_prev = xp.zeros(h.shape[1:], h.dtype) if h0 is None else h0
    c_prev = xp.zeros(c.shape[1:], c.dtype) if c0 is None else c0
    for t in range(x.shape[0]):
        off = None if mask is None else mask[t][:, None] == 0
        read = x[t] if off is None else xp.where(off, x.dtype.type(0), x[t])  # what is masked may be anything
        lstm_cell_forward(h[t], c[t], gates[t], read, h_prev, c_prev, w_x, w_h, b)
        if off is not None:
            h[t], c[t] = xp.where(off, h_prev, h[t]), xp.where(off, c_prev, c[t])
        h_prev, c_prev = h[t], c[t]


def lstm_backward(
    dx: Array, dw_x: Array, dw_h: Array, db: Array, dh0: Array, dc0: Array, gates: Array, dh: Array, dc_n: Array,
    x: Array, h: Array, c: Array, h0: Array, c0: Array, w_x: Array, w_h: Array, mask: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    xp = array_module(x)
    steps, n, hidden = h.shape
    zero = xp.zeros((n, hidden), h.dtype)
    first_h, first_c = (zero if h0 is None else h0), (zero if c0 is None else c0)
    carry_h, carry_c = zero.copy(), (zero if dc_n is None else dc_n).copy()
    for t in reversed(range(steps)):
        into_h = carry_h if dh is None else carry_h + dh[t]
        carried = _cell_gradients(gates[t], into_h, carry_c, c[t], c[t - 1] if t else first_c)
        if mask is not None:
            off = mask[t][:, None] == 0
            gates[t] = xp.where(off, gates.dtype.type(0), gates[t])
            carried = xp.where(off, carry_c, carried)
        carry_c = carried
        carry_h = gates[t] @ w_h
        if mask is not None:
            carry_h = xp.where(off, into_h, carry_h)
    flat = gates.reshape(-1, 4 * hidden)
    before = xp.concatenate([first_h[None], h[:-1]]) if steps else h
    read = x if mask is None else xp.where(mask[:, :, None] == 0, x.dtype.type(0), x)  # what was masked may be anything
    _write(dx, (flat @ w_x).reshape(x.shape), betas[0])
    _write(dw_x, flat.T @ read.reshape(-1, x.shape[2]), betas[1])
    _write(dw_h, flat.T @ before.reshape(-1, hidden), betas[2])
    _write(db, flat.sum(0), betas[3])
    _write(dh0, carry_h, betas[4])
    _write(dc0, carry_c, betas[5])


# Vocabulary loss and decoding -----------------------------------------------------------------------------------------


def linear_xent_forward(
    loss: Array, dlogits: Array, h: Array, w: Array, b: Array, targets: Array, weights: Array
) -> None:
    xp = array_module(h)
    logits = h @ w.T + b
    logits -= logits.max(1, keepdims=True)
    rows = xp.arange(h.shape[0])
    picked = logits[rows, targets]
    xp.exp(logits, out=logits)
    total = logits.sum(1, keepdims=True)
    loss[...] = xp.log(total[:, 0]) - picked
    logits /= total
    logits[rows, targets] -= 1
    dlogits[...] = logits
    if weights is not None:
        weigh_rows(loss, dlogits, weights)


def weigh_rows(loss: Array, dlogits: Array, weights: Array) -> None:
    """The last part of `linear_xent_forward`: NaN times 0 is 0 there."""
    xp = array_module(loss)
    loss[...] = xp.where(weights == 0, loss.dtype.type(0), loss * weights)
    column = weights[:, None]
    dlogits[...] = xp.where(column == 0, dlogits.dtype.type(0), dlogits * column)


def linear_xent_backward(
    dh: Array, dw: Array, db: Array, dlogits: Array, h: Array, w: Array, scale: float, betas: Sequence[float]
) -> None:
    _write(dh, scale * (dlogits @ w), betas[0])
    _write(dw, scale * (dlogits.T @ h), betas[1])
    _write(db, scale * dlogits.sum(0), betas[2])


def log_softmax_topk(values: Array, indices: Array, logits: Array, suppress: Sequence[int]) -> None:
    xp = array_module(logits)
    logp = logits.copy()
    for number in suppress:
        logp[:, number] = -xp.inf
    logp -= logp.max(1, keepdims=True)
    logp -= xp.log(xp.exp(logp).sum(1, keepdims=True))
    order = xp.argsort(-logp, axis=1, kind="stable")[:, : values.shape[1]]
    values[...] = xp.take_along_axis(logp, order, 1)
    indices[...] = order


beam_select = reference_beam.beam_select


# Images ---------------------------------------------------------------------------------------------------------------


@_serves_bfloat16()
def preprocess(y: Array, x: Array, crops: Array, scale: Array, shift: Array) -> None:
    xp = array_module(x)
    n, height, width = y.shape[:3]
    top, left, flip = crops[:, :1], crops[:, 1:2], crops[:, 2:]
    across = xp.arange(width)
    rows = top + xp.arange(height)
    columns = left + xp.where(flip != 0, width - 1 - across, across)
    y[...] = x[xp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]] * scale + shift


def conv2d_first_forward(
    y: Array, x: Array, crops: Array, scale: Array, shift: Array, w: Array, b: Array, relu: bool
) -> None:
    conv2d_forward(y, _normalised(y, x, crops, scale, shift), w, b, 1, 1, relu)


def conv2d_first_backward_weight(
    dw: Array, db: Array, dy: Array, y: Array, x: Array, crops: Array, scale: Array, shift: Array, beta_w: float,
    beta_b: float,
) -> None:  # fmt: skip
    conv2d_backward_weight(dw, db, dy, _normalised(dy, x, crops, scale, shift), y, None, 1, 1, beta_w, beta_b)


def _normalised(like: Array, x: Array, crops: Array, scale: Array, shift: Array) -> Array:
    """The windows that a first layer with outputs (or gradients) `like` [N,P,Q,K] sees, in their type."""
    images = array_module(like).empty((*like.shape[:3], 3), like.dtype)
    preprocess(images, x, crops, scale, shift)
    return images


@_serves_bfloat16()
def cast(y: Array, x: Array, beta: float) -> None:
    _write(y, x, beta)


# Optimisers -----------------------------------------------------------------------------------------------------------

sgd_step = reference_optim.sgd_step
rmsprop_step = reference_optim.rmsprop_step
adam_step = reference_optim.adam_step
total = reference_optim.total
sum_squares_into = reference_optim.sum_squares_into
sum_squares = reference_optim.sum_squares
clip_factors = reference_optim.clip_factors
