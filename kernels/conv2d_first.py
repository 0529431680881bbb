"""The first 3x3 convolution of three colours, straight from images of bytes: crop, mirror and normalisation in its loads."""

import triton
import triton.language as tl

from ._device import dot


@triton.jit
def _windows(
    x,  # uint8 [N,H,W,3]
    crops,  # int32 [N,3]: top, left, whether to mirror
    scale,  # fp32 [3]
    shift,  # fp32 [3]
    image,  # [BLOCK]: of each pixel of the result
    row,  # [BLOCK]
    column,  # [BLOCK]
    live,  # [BLOCK]: whether there is such a pixel
    h, width, p, q,
):  # fmt: skip
    """The windows around pixels as rows of (r, s, colour), [BLOCK, 32], normalised; 0 in the padding and past the 27th."""
    at = tl.arange(0, 32)
    colour, i, j = at % 3, at // 9 - 1, at // 3 % 3 - 1
    top = tl.load(crops + image * 3, mask=live, other=0)
    left = tl.load(crops + image * 3 + 1, mask=live, other=0)
    flip = tl.load(crops + image * 3 + 2, mask=live, other=0) != 0
    u, v = row[:, None] + i[None, :], column[:, None] + j[None, :]
    inside = (u >= 0) & (u < p) & (v >= 0) & (v < q) & live[:, None] & (at < 27)[None, :]
    centre = (image.to(tl.int64) * h + top + row) * width + left + tl.where(flip, q - 1 - column, column)
    step = tl.where(flip, -3, 3)  # from one column of the result to the next
    around = (i * width * 3 + colour)[None, :] + step[:, None] * j[None, :]
    value = tl.load((x + centre * 3)[:, None] + around, mask=inside, other=0).to(tl.float32)
    value = value * tl.load(scale + colour)[None, :] + tl.load(shift + colour)[None, :]
    return tl.where(inside, value, 0.0)


@triton.jit
def forward(
    y,  # [N,P,Q,K]
    x,  # uint8 [N,H,W,3]
    crops,  # int32 [N,3]
    scale,  # fp32 [3]
    shift,  # fp32 [3]
    w,  # fp32 [K,3,3,3]
    b,  # fp32 [K] or null
    n, h, width, k, p, q,
    bias,  # whether b is there
    relu,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y = conv(normalised x, w) + b, and its ReLU; pixels and filters are rounded to y's type before the product."""
    tiles = tl.cdiv(k, BLOCK_N)
    pixel = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    live, known = pixel < n * p * q, feature < k
    line = pixel // q
    a = _windows(x, crops, scale, shift, line // p, line % p, pixel % q, live, h, width, p, q)
    at = tl.arange(0, 32)
    filters = tl.load(w + at[:, None] + (feature * 27)[None, :], mask=(at < 27)[:, None] & known[None, :], other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = dot(a.to(y.dtype.element_ty), filters.to(y.dtype.element_ty), acc, PRECISION)
    if bias != 0:
        acc += tl.load(b + feature, mask=known, other=0.0)[None, :]
    if relu != 0:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    target = y + pixel.to(tl.int64)[:, None] * k + feature[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=live[:, None] & known[None, :])


@triton.jit
def backward_weight(
    dw,  # fp32 [splits,K,3,3,3]
    db,  # fp32 [splits,K] or null
    dy,  # [N,P,Q,K]
    y,  # [N,P,Q,K] or null
    x,  # uint8 [N,H,W,3]
    crops,  # int32 [N,3]
    scale,  # fp32 [3]
    shift,  # fp32 [3]
    n, h, width, k, p, q,
    share,  # blocks of pixels a split
    sums,  # whether db is there
    masked,  # whether y is there
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw[split], db[split] = the gradients of filters and biases, summed over the split's pixels; dy counts where y > 0."""
    tiles = tl.cdiv(k, BLOCK_M)
    split = tl.program_id(0) // tiles
    feature = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    known = feature < k
    pixel = split * share * BLOCK_K + tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, 32), tl.float32)
    total = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
    for _ in range(share):
        live = pixel < n * p * q
        here = live[:, None] & known[None, :]
        source = pixel.to(tl.int64)[:, None] * k + feature[None, :]
        dz = tl.load(dy + source, mask=here, other=0.0).to(tl.float32)
        if masked != 0:
            dz = tl.where(tl.load(y + source, mask=here, other=0.0).to(tl.float32) > 0, dz, 0.0)
        total += dz
        line = pixel // q
        windows = _windows(x, crops, scale, shift, line // p, line % p, pixel % q, live, h, width, p, q)
        dz = tl.trans(dz.to(dy.dtype.element_ty))
        acc = dot(dz, windows.to(dy.dtype.element_ty), acc, PRECISION)
        pixel += BLOCK_K
    at = tl.arange(0, 32)
    target = dw + (split.to(tl.int64) * k + feature)[:, None] * 27 + at[None, :]
    tl.store(target, acc, mask=known[:, None] & (at < 27)[None, :])
    if sums != 0:
        tl.store(db + split.to(tl.int64) * k + feature, tl.sum(total, 0), mask=known)
