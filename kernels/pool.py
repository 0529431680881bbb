"""2x2 max-pooling with winners of two bits, and its backward, with the ReLU mask of the convolution before it."""

import triton
import triton.language as tl

from ._device import accumulate


@triton.jit
def forward(
    y,  # [N,H//2,W//2,C]
    argmax,  # uint8 [N,H//2,W//2,ceil(C/4)]
    x,  # [N,H,W,C]
    n, h, width, c,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The maximum of each window and its place, the first of equals; a NaN is above all."""
    p, q = h // 2, width // 2
    tiles = tl.cdiv(c, BLOCK_N)
    window = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    live = (window < n * p * q)[:, None]
    here = live & (channel < c)[None, :]
    line = window // q
    corner = ((line // p * h + line % p * 2) * width + window % q * 2).to(tl.int64) * c
    source = x + corner[:, None] + channel[None, :]
    best = tl.load(source, mask=here, other=0.0).to(tl.float32)
    winner = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for member in tl.static_range(1, 4):
        at = source + (member // 2 * width + member % 2) * c
        value = tl.load(at, mask=here, other=0.0).to(tl.float32)
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        winner = tl.where(better, member, winner)
    at = window.to(tl.int64)[:, None] * c + channel[None, :]
    tl.store(y + at, best.to(y.dtype.element_ty), mask=here)
    quads = tl.cdiv(c, 4)
    quad = tl.program_id(0) % tiles * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
    shifted = tl.reshape(winner, (BLOCK_M, BLOCK_N // 4, 4)) << (2 * tl.arange(0, 4))[None, None, :]
    at = window.to(tl.int64)[:, None] * quads + quad[None, :]
    tl.store(argmax + at, tl.sum(shifted, 2).to(tl.uint8), mask=live & (quad < quads)[None, :])


@triton.jit
def backward(
    dx,  # [N,H,W,C]
    dy,  # [N,H//2,W//2,C]
    y,  # [N,H//2,W//2,C] or null
    argmax,  # uint8 [N,H//2,W//2,ceil(C/4)]
    n, h, width, c,
    masked,  # whether y is there
    beta,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx = beta * dx + dy at each window's winner, 0 elsewhere, and in an odd last row or column too.

    With y, the pooled output of a ReLU, dy counts only where y > 0.
    """
    p, q = h // 2, width // 2
    rows, columns = tl.cdiv(h, 2), tl.cdiv(width, 2)  # a cut-off window at an odd edge is one that has no winner
    tiles = tl.cdiv(c, BLOCK_N)
    window = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    line = window // columns
    image, i, j = line // rows, line % rows, window % columns
    known = (channel < c)[None, :]
    whole = ((image < n) & (i < p) & (j < q))[:, None] & known
    number = ((image * p + i) * q + j).to(tl.int64)[:, None]
    at = number * c + channel[None, :]
    value = tl.load(dy + at, mask=whole, other=0.0).to(tl.float32)
    if masked != 0:
        value = tl.where(tl.load(y + at, mask=whole, other=0.0).to(tl.float32) > 0, value, 0.0)
    packed = tl.load(argmax + number * tl.cdiv(c, 4) + (channel // 4)[None, :], mask=whole, other=0).to(tl.int32)
    winner = (packed >> (channel % 4 * 2)[None, :]) & 3
    corner = ((image * h + 2 * i) * width + 2 * j).to(tl.int64) * c
    target = dx + corner[:, None] + channel[None, :]
    for member in tl.static_range(4):
        exists = (image < n) & (2 * i + member // 2 < h) & (2 * j + member % 2 < width)
        at = target + (member // 2 * width + member % 2) * c
        accumulate(at, tl.where(winner == member, value, 0.0), beta, exists[:, None] & known)
