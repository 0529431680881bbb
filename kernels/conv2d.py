"""Convolution over NHWC as an implicit matrix product: forward, with bias, ReLU and 2x2 pooling, and both gradients."""

import triton
import triton.language as tl

from ._device import accumulate, dot


@triton.jit
def _pixel(number, rows, columns):
    """(image, row, column) of pixel numbers in images of rows x columns."""
    line = number // columns
    return line // rows, line % rows, number % columns


@triton.jit
def _window_products(
    x,  # [N,H,W,C]
    w,  # [K,R,S,C]
    image,  # [BLOCK_M]: of each window
    top,  # [BLOCK_M]: row of its upper left corner, maybe in the padding; at least H where there is no window
    left,  # [BLOCK_M]
    feature,  # [BLOCK_N]
    h, width, c, k, r, s,
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Windows times filters, [BLOCK_M, BLOCK_N] in float32.

    FLAT: the sum runs over (r, s, c) as one index, which fills the blocks when there are few channels; else it runs over
    blocks of channels and within them over the taps, so that a block of pixels is read again while it is near.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    windows = x + (((image * h + top) * width + left).to(tl.int64) * c)[:, None]
    filters = w + (feature * (r * s * c))[:, None]  # the caller makes sure that 32 bits count all weights
    known = (feature < k)[:, None]
    if FLAT:
        for start in range(0, r * s * c, BLOCK_K):
            at = start + tl.arange(0, BLOCK_K)
            i, j = at // c // s, at // c % s
            row, column = top[:, None] + i[None, :], left[:, None] + j[None, :]
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < width) & (at < r * s * c)[None, :]
            a = tl.load(windows + ((i * width + j) * c + at % c)[None, :], mask=inside, other=0.0)
            b = tl.load(filters + at[None, :], mask=known & (at < r * s * c)[None, :], other=0.0)
            acc = dot(a, tl.trans(b), acc, PRECISION)
    else:
        i, j, start = 0, 0, 0
        for _ in range(r * s * tl.cdiv(c, BLOCK_K)):
            channel = start + tl.arange(0, BLOCK_K)
            row, column = top + i, left + j
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < width)
            some = (channel < c)[None, :]
            a = tl.load(windows + ((i * width + j) * c + channel)[None, :], mask=inside[:, None] & some, other=0.0)
            b = tl.load(filters + ((i * s + j) * c + channel)[None, :], mask=known & some, other=0.0)
            acc = dot(a, tl.trans(b), acc, PRECISION)
            j += 1
            i = tl.where(j == s, i + 1, i)
            j = tl.where(j == s, 0, j)
            start = tl.where(i == r, start + BLOCK_K, start)
            i = tl.where(i == r, 0, i)
    return acc


@triton.jit
def forward(
    y,  # [N,P,Q,K]
    x,  # [N,H,W,C]
    w,  # [K,R,S,C]
    b,  # [K] or null
    n, h, width, c, k, p, q, r, s, stride, padding,
    bias,  # whether b is there
    relu,
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = conv(x, w) + b, and its ReLU. Programs beside each other share pixels: all filters pass before the next block."""
    tiles = tl.cdiv(k, BLOCK_N)
    pixel = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    live = pixel < n * p * q
    image, row, column = _pixel(pixel, p, q)
    top, left = tl.where(live, row * stride - padding, h), column * stride - padding
    acc = _window_products(
        x, w, image, top, left, feature, h, width, c, k, r, s, PRECISION, FLAT, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if bias != 0:
        acc += tl.load(b + feature, mask=feature < k, other=0.0)[None, :]
    if relu != 0:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    at = pixel.to(tl.int64)[:, None] * k + feature[None, :]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=live[:, None] & (feature < k)[None, :])


@triton.jit
def forward_pool(
    y,  # [N,P//2,Q//2,K]
    argmax,  # uint8 [N,P//2,Q//2,ceil(K/4)]
    x,  # [N,H,W,C]
    w,  # [K,R,S,C]
    b,  # [K] or null
    n, h, width, c, k, p, q, r, s, stride, padding,
    bias,  # whether b is there
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolution, bias, ReLU and 2x2/2 max-pooling: y and its winners, two bits each. The full map is never stored.

    Rows of the product are pixels in the order in which bits 2 and 3 of a row's number say which pixel of its 2x2 window
    it is: the sums of a window then lie in one warp, two and two in one thread, in the layout that products have.
    """
    tiles = tl.cdiv(k, BLOCK_N)
    block = tl.program_id(0) // tiles * (BLOCK_M // 4)
    feature = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_M)
    member = lane // 4 % 4
    window = block + lane // 16 * 4 + lane % 4
    count = n * (p // 2) * (q // 2)
    image, row, column = _pixel(window, p // 2, q // 2)
    top = tl.where(window < count, (2 * row + member // 2) * stride - padding, h)
    left = (2 * column + member % 2) * stride - padding
    acc = _window_products(
        x, w, image, top, left, feature, h, width, c, k, r, s, PRECISION, FLAT, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if bias != 0:
        acc += tl.load(b + feature, mask=feature < k, other=0.0)[None, :]
    # Of numbers that are not negative the bits, as integers, have the same order, and NaN is above infinity.
    bits = tl.where(acc > 0, acc, 0.0).to(tl.int32, bitcast=True)
    bits = tl.reshape(tl.where(acc != acc, 0x7FC00000, bits), (BLOCK_M // 16, 4, 4, BLOCK_N))
    best = tl.max(bits, 1)
    order = tl.arange(0, 4)[None, :, None, None]
    winner = tl.min(tl.where(bits == tl.expand_dims(best, 1), order, 4), 1)
    winner = tl.reshape(winner, (BLOCK_M // 4, BLOCK_N))
    winner = tl.reshape(tl.where((feature < k)[None, :], winner, 0), (BLOCK_M // 4, BLOCK_N // 4, 4))
    packed = tl.sum(winner << (2 * tl.arange(0, 4))[None, None, :], 2)
    value = tl.reshape(best, (BLOCK_M // 4, BLOCK_N)).to(tl.float32, bitcast=True)

    window = block + tl.arange(0, BLOCK_M // 4)
    live = (window < count)[:, None]
    at = window.to(tl.int64)[:, None] * k + feature[None, :]
    tl.store(y + at, value.to(y.dtype.element_ty), mask=live & (feature < k)[None, :])
    quads = tl.cdiv(k, 4)
    quad = tl.program_id(0) % tiles * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
    at = window.to(tl.int64)[:, None] * quads + quad[None, :]
    tl.store(argmax + at, packed.to(tl.uint8), mask=live & (quad < quads)[None, :])


@triton.jit
def backward_data(
    dx,  # [N,H,W,C]
    partials,  # fp32 [tiles of pixels, C] or null
    dz,  # [N,P,Q,K]
    w,  # [K,R,S,C]
    x,  # [N,H,W,C] or null
    n, h, width, c, k, p, q, r, s, stride, padding,
    below,  # whether x and partials are there
    beta,  # without them
    PRECISION: tl.constexpr,
    STRIDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx = beta * dx + the gradient of x: each pixel of x gathers from the outputs that it went into.

    With x, the result is multiplied by x > 0 (the ReLU of the layer that made x) and its sums over each block of pixels
    go to `partials`: that layer's bias gradient, but for the sum over blocks. STRIDED: the stride is not 1.
    """
    tiles = tl.cdiv(c, BLOCK_N)
    pixel = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    live = pixel < n * h * width
    image, row, column = _pixel(pixel, h, width)
    bottom, right = tl.where(live, row + padding, -1), column + padding  # where tap (0, 0) comes from, times the stride
    if not STRIDED:
        maps = dz + (((image * p + bottom) * q + right).to(tl.int64) * k)[:, None]
    known = (channel < c)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    i, j, start = 0, 0, 0
    for _ in range(r * s * tl.cdiv(k, BLOCK_K)):
        feature = start + tl.arange(0, BLOCK_K)
        u, v = bottom - i, right - j
        inside = (u >= 0) & (v >= 0)
        some = feature < k
        if STRIDED:
            inside = inside & (u % stride == 0) & (v % stride == 0) & (u // stride < p) & (v // stride < q)
            at = ((image * p + u // stride) * q + v // stride).to(tl.int64) * k
            a = tl.load(dz + at[:, None] + feature[None, :], mask=inside[:, None] & some[None, :], other=0.0)
        else:
            inside = inside & (u < p) & (v < q)
            at = feature - (i * q + j) * k
            a = tl.load(maps + at[None, :], mask=inside[:, None] & some[None, :], other=0.0)
        taps = feature[:, None] * (r * s * c) + ((i * s + j) * c + channel)[None, :]  # 32 bits count all weights
        b = tl.load(w + taps, mask=some[:, None] & known, other=0.0)
        acc = dot(a, b, acc, PRECISION)
        j += 1
        i = tl.where(j == s, i + 1, i)
        j = tl.where(j == s, 0, j)
        start = tl.where(i == r, start + BLOCK_K, start)
        i = tl.where(i == r, 0, i)
    at = pixel.to(tl.int64)[:, None] * c + channel[None, :]
    here = live[:, None] & known
    if below != 0:
        acc = tl.where(tl.load(x + at, mask=here, other=0.0).to(tl.float32) > 0, acc, 0.0)
        sums = partials + (tl.program_id(0) // tiles).to(tl.int64) * c + channel
        tl.store(sums, tl.sum(acc, 0), mask=channel < c)
        tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=here)
    else:
        accumulate(dx + at, acc, beta, here)


@triton.jit
def backward_weight(
    dw,  # fp32 [splits,K,R,S,C]
    dz,  # [N,P,Q,K]
    x,  # [N,H,W,C]
    n, h, width, c, k, p, q, r, s, stride, padding,
    share,  # blocks of pixels a split
    beta,
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw[split] = beta * dw[split] + the filters' gradient, summed over the split's pixels.

    A program makes BLOCK_M features by BLOCK_N channels of one tap or, with FLAT, by BLOCK_N of (r, s, c) as one index.
    """
    columns = r * s * c
    rows = tl.cdiv(k, BLOCK_M)
    blocks = tl.cdiv(c, BLOCK_N)
    tiles = rows * (tl.cdiv(columns, BLOCK_N) if FLAT else blocks * r * s)
    split, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    feature = tile % rows * BLOCK_M + tl.arange(0, BLOCK_M)
    if FLAT:
        at = tile // rows * BLOCK_N + tl.arange(0, BLOCK_N)
        i, j, channel = at // c // s, at // c % s, at % c
        known = at < columns
    else:
        tap = tile // rows % (r * s)
        i, j = tap // s, tap % s
        channel = tile // rows // (r * s) * BLOCK_N + tl.arange(0, BLOCK_N)
        at = tap * c + channel
        known = channel < c
    some = (feature < k)[:, None]
    pixel = split * share * BLOCK_K + tl.arange(0, BLOCK_K)
    image, row, column = _pixel(pixel, p, q)
    step_image, step_row, step_column = _pixel(BLOCK_K, p, q)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(share):
        live = pixel < n * p * q
        # Read as the product takes it: `tl.trans` of the other way round would be no asynchronous copy on sm_80.
        a = tl.load(dz + pixel.to(tl.int64)[None, :] * k + feature[:, None], mask=live[None, :] & some, other=0.0)
        top, left = row * stride - padding, column * stride - padding
        origin = ((image * h + top) * width + left).to(tl.int64) * c
        if FLAT:
            u, v = top[:, None] + i[None, :], left[:, None] + j[None, :]
            inside = (u >= 0) & (u < h) & (v >= 0) & (v < width) & live[:, None]
        else:
            u, v = top + i, left + j
            inside = ((u >= 0) & (u < h) & (v >= 0) & (v < width) & live)[:, None]
        source = x + origin[:, None] + ((i * width + j) * c + channel)[None, :]
        b = tl.load(source, mask=inside & known[None, :], other=0.0)
        acc = dot(a, b, acc, PRECISION)
        # The next block's pixels, by addition with carries: divisions would cost as much as the products.
        pixel += BLOCK_K
        column += step_column
        carry = (column >= q).to(tl.int32)
        column -= carry * q
        row += step_row + carry
        carry = (row >= p).to(tl.int32)
        row -= carry * p
        image += step_image + carry
    target = dw + (split.to(tl.int64) * k + feature)[:, None] * columns + at[None, :]
    accumulate(target, acc, beta, (feature < k)[:, None] & known[None, :])


@triton.jit
def backward_bias(
    partials,  # fp32 [chunks,K] or null
    dz,  # [M,K] or null
    dy,  # [M,K]
    y,  # [M,K] or null
    m, k,
    share,  # blocks of rows a chunk
    sums,  # whether partials are there
    masked,  # whether y is there
    written,  # whether dz is there
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz = dy where y > 0, else 0; partials = the sums of dz, or of dy without a mask, over each chunk of rows."""
    tiles = tl.cdiv(k, BLOCK_N)
    chunk = tl.program_id(0) // tiles
    feature = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    row = chunk * share * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(share):
        here = (row < m)[:, None] & (feature < k)[None, :]
        at = row.to(tl.int64)[:, None] * k + feature[None, :]
        value = tl.load(dy + at, mask=here, other=0.0).to(tl.float32)
        if masked != 0:
            value = tl.where(tl.load(y + at, mask=here, other=0.0).to(tl.float32) > 0, value, 0.0)
        if written != 0:
            tl.store(dz + at, value.to(dz.dtype.element_ty), mask=here)
        acc += value
        row += BLOCK_M
    if sums != 0:
        tl.store(partials + chunk.to(tl.int64) * k + feature, tl.sum(acc, 0), mask=feature < k)


@triton.jit
def reduce_partials(
    out,  # fp32 [n]
    partials,  # fp32 [splits,n]
    n, splits,
    beta,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = beta * out + the sum of the partials, always in the same order."""
    column = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, splits, BLOCK_M):
        split = start + tl.arange(0, BLOCK_M)
        here = (split < splits)[:, None] & (column < n)[None, :]
        acc += tl.load(partials + split.to(tl.int64)[:, None] * n + column[None, :], mask=here, other=0.0)
    accumulate(out + column, tl.sum(acc, 0), beta, column < n)
