"""The vocabulary loss: logits with what their softmax needs, then the losses and the logits' gradients in their place."""

import triton
import triton.language as tl

from ._device import rows_product, store_tile, tile


@triton.jit
def logits(
    y,  # [m, v]
    maxima,  # [m, tiles]: of each row, in each tile of BLOCK_N columns
    sums,  # [m, tiles]: of exp(logit - maximum)
    picked,  # [m]: the targets' logits
    h,  # [m, k]
    w,  # [v, k]
    b,  # [v]
    targets,  # [m]
    m,
    v,
    k,
    tiles,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = h w^T + b; the other three are of the float32 sums, before y is rounded."""
    tile_m, tile_n = tile(tl.cdiv(m, BLOCK_M), tiles)
    value = rows_product(h, w, m, v, k, tile_m, tile_n, 0, k, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    rows, columns = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    value += tl.load(b + columns, mask=columns < v, other=0.0)[None, :]
    store_tile(y, value, tile_m, tile_n, m, v, BLOCK_M, BLOCK_N)

    value = tl.where((columns < v)[None, :], value, -float("inf"))
    highest = tl.max(value, 1)
    shift = tl.where(highest == -float("inf"), 0.0, highest)  # the sum over a tile of -inf is 0, not NaN
    at = rows.to(tl.int64) * tiles + tile_n
    tl.store(maxima + at, highest, mask=rows < m)
    tl.store(sums + at, tl.sum(tl.exp(value - shift[:, None]), 1), mask=rows < m)
    target = tl.load(targets + rows, mask=rows < m, other=-1)
    own = tl.sum(tl.where(target[:, None] == columns[None, :], value, 0.0), 1)
    tl.store(picked + rows, own, mask=(rows < m) & (target >= 0) & (target // BLOCK_N == tile_n))


@triton.jit
def forward(
    loss,  # [m]
    dlogits,  # [m, v]: the logits, which become their gradients
    maxima,  # [m, tiles]
    sums,  # [m, tiles]
    picked,  # [m]
    targets,  # [m]
    weights,  # [m] or null
    v,
    tiles,
    has_weights,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """loss = -log softmax(logits)[target]; logits = softmax(logits) - onehot(target). One program a row.

    A target that does not exist gives the loss NaN. Both are multiplied by the row's weight; where that is 0 both are 0,
    whatever stood there.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILES)
    highest = tl.full((TILES,), -float("inf"), tl.float32)
    for first in range(0, tiles, TILES):
        at = row * tiles + first + lane
        highest = tl.maximum(highest, tl.load(maxima + at, mask=first + lane < tiles, other=-float("inf")))
    top = tl.max(highest, 0)
    total = tl.zeros((TILES,), tl.float32)
    for first in range(0, tiles, TILES):
        at = row * tiles + first + lane
        inside = first + lane < tiles
        here = tl.load(maxima + at, mask=inside, other=-float("inf"))
        total += tl.load(sums + at, mask=inside, other=0.0) * tl.exp(here - top)
    whole = tl.sum(total, 0)

    target = tl.load(targets + row)
    exists = (target >= 0) & (target < v)
    own = tl.load(picked + row, mask=exists, other=float("nan"))
    weight = tl.full((), 1.0, tl.float32)
    if has_weights != 0:
        weight = tl.load(weights + row)
    tl.store(loss + row, tl.where(weight == 0.0, 0.0, (tl.log(whole) - (own - top)) * weight))
    column = tl.arange(0, BLOCK)
    dlogits += row * v
    for first in range(0, v, BLOCK):
        columns = first + column
        value = tl.load(dlogits + columns, mask=columns < v, other=0.0).to(tl.float32)
        value = tl.exp(value - top) / whole - tl.where(columns == target, 1.0, 0.0)
        value = tl.where(weight == 0.0, 0.0, value * weight)
        tl.store(dlogits + columns, value.to(dlogits.dtype.element_ty), mask=columns < v)
