"""Dense layers: y = x w^T with bias, ReLU and dropout in the epilogue, and the gradients of x and of w and b.

Each is a tiled product whose inner dimension may be split among programs: they leave float32 sums in `partials`, which
`finish` adds in a fixed order. Weights of another type than the activations' are converted in registers.
"""

import triton
import triton.language as tl

from ._device import accumulate, dot, dropout_keep, rows_product, store_rows, store_tile, tile


@triton.jit
def _out(tile_m, tile_n, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of a tile of an array [m, n]: its first element's place, the others' from there, and which exist."""
    row, column = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    first = tile_m.to(tl.int64) * BLOCK_M * n + tile_n * BLOCK_N
    return first, row * n + column, (tile_m * BLOCK_M + row < m) & (tile_n * BLOCK_N + column < n)


@triton.jit
def _activate(
    value,
    columns,  # of `value`'s elements, broadcastable to its shape
    b,  # [o] or null
    o,
    has_bias,
    relu,
):
    """relu(value + b), each where it is asked for."""
    if has_bias != 0:
        value += tl.load(b + columns, mask=columns < o, other=0.0)
    if relu != 0:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return value


@triton.jit
def forward(
    y,  # [m, o]
    partials,  # [splits, m, o up to a multiple of 16] or null: y
    x,  # [m, i]
    w,  # [o, i]
    b,  # [o] or null
    m,
    i,
    o,
    share,  # of the inner dimension, a split: a multiple of BLOCK_K
    unfinished,  # sums go to the partials, for `finish`
    has_bias,
    relu,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = relu(x w^T + b), each part where it is asked for."""
    tile_m, tile_n = tile(tl.cdiv(m, BLOCK_M), tl.cdiv(o, BLOCK_N))
    split = tl.program_id(1)
    start = split * share
    value = rows_product(
        x, w, m, o, i, tile_m, tile_n, start, tl.minimum(start + share, i), PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if unfinished != 0:
        pitch = tl.cdiv(o, 16) * 16
        store_rows(partials + split.to(tl.int64) * m * pitch, value, tile_m, tile_n, m, pitch, BLOCK_M, BLOCK_N)
    else:
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        store_tile(y, _activate(value, columns, b, o, has_bias, relu), tile_m, tile_n, m, o, BLOCK_M, BLOCK_N)


@triton.jit
def backward_data(
    dx,  # [m, i]
    partials,  # [splits, m, i up to a multiple of 16] or null: dx
    dy,  # [m, o]
    w,  # [o, i]
    y,  # [m, o] with MASK
    m,
    i,
    o,
    share,  # of the inner dimension, a split: a multiple of BLOCK_K
    unfinished,  # sums go to the partials, for `finish`
    scale,
    beta,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dx = beta * dx + scale * dz w, with dz = dy, or where(y > 0, dy, 0) with MASK."""
    tile_m, tile_n = tile(tl.cdiv(m, BLOCK_M), tl.cdiv(i, BLOCK_N))
    split = tl.program_id(1)
    start = split * share
    # Rows past the end read the last one: what they give is never stored.
    row = tl.minimum(tl.arange(0, BLOCK_M), m - 1 - tile_m * BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    left = row[:, None] * o + inner[None, :]
    right = inner[:, None] * i + columns[None, :]
    first = tile_m.to(tl.int64) * BLOCK_M * o
    stride = i.to(tl.int64)
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(start, tl.minimum(start + share, o), BLOCK_K):
        inside = at + inner < o
        dz = tl.load(dy + (first + at) + left, mask=inside[None, :], other=0.0)
        if MASK:
            active = tl.load(y + (first + at) + left, mask=inside[None, :], other=0.0).to(tl.float32)
            dz = tl.where(active > 0, dz, 0.0)
        other = tl.load(w + at * stride + right, mask=inside[:, None] & (columns < i)[None, :], other=0.0)
        value = dot(dz, other.to(dz.dtype), value, PRECISION)
    if unfinished != 0:
        pitch = tl.cdiv(i, 16) * 16
        store_rows(partials + split.to(tl.int64) * m * pitch, value, tile_m, tile_n, m, pitch, BLOCK_M, BLOCK_N)
    else:
        first, out, inside = _out(tile_m, tile_n, m, i, BLOCK_M, BLOCK_N)
        accumulate(dx + first + out, scale * value, beta, inside)


@triton.jit
def finish(
    y,  # [m, n]
    partials,  # [splits, m, n up to a multiple of 16]
    b,  # [n] or null
    m,
    n,
    splits,
    scale,
    beta,
    has_bias,
    relu,
    period,  # rows of a step, of which `total` count in all, from `offset` on
    total,
    offset,
    seed_low,
    seed_high,
    threshold,  # p * 2**32, or 0: no dropout
    factor,  # 1 / (1 - p)
    BLOCK: tl.constexpr,
):
    """y = beta * y + dropout(relu(scale * (sum of the partials) + b)): the epilogue of products that were split.

    The counters are those of `dropout`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = m.to(tl.int64) * n
    rows, columns = at // n, (at % n).to(tl.int32)
    pitch = tl.cdiv(n, 16) * 16
    partials += rows * pitch + columns
    value = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        value += tl.load(partials + split * (m.to(tl.int64) * pitch), mask=at < size, other=0.0)
    value = _activate(scale * value, columns, b, n, has_bias, relu)
    if threshold != 0:
        row = (
            (rows // period).to(tl.uint32) * total.to(tl.uint32) + offset.to(tl.uint32) + (rows % period).to(tl.uint32)
        )
        counter = row * n.to(tl.uint32) + columns.to(tl.uint32)
        value = tl.where(dropout_keep(counter, seed_low, seed_high, threshold), value * factor, 0.0)
    accumulate(y + at, value, beta, at < size)


@triton.jit
def _weight_tile(
    dy,  # [m, o]
    x,  # [m, i]
    y,  # [m, o] with MASK
    m,
    i,
    o,
    tile_o,
    tile_i,
    SUM: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of dz^T x, and with SUM its rows' sums of dz^T, else zeros."""
    outputs = tile_o * BLOCK_M + tl.arange(0, BLOCK_M)
    inputs = tile_i * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    left = inner[None, :] * o + outputs[:, None]
    right = inner[:, None] * i + inputs[None, :]
    pitch_o, pitch_i = o.to(tl.int64), i.to(tl.int64)
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    for at in range(0, m, BLOCK_K):
        inside = at + inner < m
        which = (outputs < o)[:, None] & inside[None, :]
        dz = tl.load(dy + at * pitch_o + left, mask=which, other=0.0)
        if MASK:
            active = tl.load(y + at * pitch_o + left, mask=which, other=0.0).to(tl.float32)
            dz = tl.where(active > 0, dz, 0.0)
        other = tl.load(x + at * pitch_i + right, mask=inside[:, None] & (inputs < i)[None, :], other=0.0)
        if SUM:
            sums += tl.sum(dz.to(tl.float32), 1)
        value = dot(dz, other, value, PRECISION)
    return value, sums


@triton.jit
def _accumulate_tile(
    y, value, beta, tile_m, tile_n, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr
):
    """`accumulate` a tile into y [m, n] in so many pieces: the old contents of all at once would take too many registers."""
    if PIECES == 1:
        first, out, inside = _out(tile_m, tile_n, m, n, BLOCK_M, BLOCK_N)
        accumulate(y + first + out, value, beta, inside)
    else:
        left, right = tl.split(tl.permute(tl.reshape(value, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        _accumulate_tile(y, left, beta, tile_m, 2 * tile_n, m, n, BLOCK_M, BLOCK_N // 2, PIECES // 2)
        _accumulate_tile(y, right, beta, tile_m, 2 * tile_n + 1, m, n, BLOCK_M, BLOCK_N // 2, PIECES // 2)


@triton.jit
def backward_weight(
    dw,  # [o, i] or null
    db,  # [o] or null
    dy,  # [m, o]
    x,  # [m, i]
    y,  # [m, o] with MASK
    m,
    i,
    o,
    has_dw,
    has_db,
    scale,
    beta_w,
    beta_b,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dw = beta_w * dw + scale * dz^T x, db = beta_b * db + scale * (column sums of dz); dz as in `backward_data`.

    The grid has tiles in whole columns: one column is enough where dw is null.
    """
    tall = tl.cdiv(o, BLOCK_M)
    tile_o, tile_i = tile(tall, tl.num_programs(0) // tall)
    outputs = tile_o * BLOCK_M + tl.arange(0, BLOCK_M)
    if (tile_i == 0) & (has_db != 0):
        value, sums = _weight_tile(
            dy, x, y, m, i, o, tile_o, tile_i, True, MASK, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
        accumulate(db + outputs, scale * sums, beta_b, outputs < o)
    else:
        value, sums = _weight_tile(
            dy, x, y, m, i, o, tile_o, tile_i, False, MASK, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
    if has_dw != 0:
        pieces: tl.constexpr = 4 if BLOCK_M * BLOCK_N >= 128 * 128 else 1
        _accumulate_tile(dw, scale * value, beta_w, tile_o, tile_i, o, i, BLOCK_M, BLOCK_N, pieces)


# The same with weights of another type than the activations': their tiles take other room.
forward_wide = forward
backward_data_wide = backward_data
