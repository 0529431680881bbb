"""3x3 convolutions of stride 1 and padding 1 on Hopper: forward, forward with pooling, data and weight gradient, in Gluon.

One schedule for all (docs/math/conv2d.md, "On Hopper"). A program is three partitions: a loader of one warp that keeps TMA
busy, and two consumers of one warpgroup each, which multiply with wgmma. A box of pixels is ``PX = BH*IMG*BW`` pixels, in
the order row, image, column, so that a row of the box, ``IMG*BW`` pixels of 64 channels of 16 bits, is a multiple of
1024 bytes, which is the period of the 128-byte swizzle. A box is loaded with one row above and one below it (``BH + 2``
rows: a block of BH rows and a "halo" of 2), once for each horizontal tap s; the three vertical taps r are the same bytes
read from r rows further on. TMA fills what lies outside the image with zeros, which is the padding, and clips what is
stored, so boxes need not divide the image, nor IMG the batch.

Tensor maps (pycap/backends/triton/conv2d_hopper.py declares them). "HNWC" is the NHWC array seen with dimensions (H, N,
W, C): from the fastest, sizes (C, W, N, H) and strides in bytes (2C, 2HWC, 2WC) for the last three (an argmax has
1-byte elements). The layout is `NVMMASharedLayout.get_default_for(block, dtype)`: swizzled over as many of 128, 64 and
32 bytes as the block's last dimension fills, not at all below. Where that dimension is wider than 128 bytes, the tensor
map's own box has 128 bytes of it: ``metadata.tensordesc_meta`` of a compiled kernel lists box and swizzle. Zeros are
filled in outside.

================  ============  =========================================  ===================================
kernel            argument      array                                      block
================  ============  =========================================  ===================================
forward           y             y [N,H,W,K] as HNWC                        [BH, IMG, BW, 64]
forward(_pool)    x             x [N,H,W,C] as HNWC                        [BH, IMG, BW, 64]
forward(_pool)    halo          x again                                    [2, IMG, BW, 64]
forward(_pool)    w             w [K,3,3,C] as [K, 9*C]                    [BN, 64]
forward_pool      y             y [N,H//2,W//2,K] as HNWC                  [BH//2, IMG, BW//2, 64]
forward_pool      argmax        uint8 [N,H//2,W//2,K//4] as HNWC           [BH//2, IMG, BW//2, 16]
backward_data     dx, x         dx, x [N,H,W,C] as HNWC                    [BH, IMG, BW, 64]
backward_data     dy            dy [N,H,W,K] as HNWC                       [BH, IMG, BW, 64]
backward_data     halo          dy again                                   [2, IMG, BW, 64]
backward_data     w             w [K,3,3,C] as [K, 9*C], as it is          [64, BN]
backward_weight   x, halo       x [N,H,W,C] as HNWC                        [BH, IMG, BW, 64], [2, IMG, BW, 64]
backward_weight   dy            dy [N,H,W,K] as HNWC                       [BH, IMG, BW, BN]
================  ============  =========================================  ===================================

Sizes: IMG*BW a multiple of 8; PX 64 or 128; BN a power of two from 64 to 256; BH even, and in forward_pool BW even; NB at least
2 (a buffer is given back one product late). C and K are multiples of 8, K of 64 in forward_pool. ``num_warps=4``: the
first consumer; the other partitions' warps come with them.

Grids. forward, forward_pool, backward_data: any number of programs, each takes tiles program, program + programs, ...: as many
as the GPU has multiprocessors. A tile is two boxes by BN channels. backward_weight: see there.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from .conv2d_hopper_weight import backward_weight
from .hopper_boxes import (
    BK,
    CONSUMER_REGISTERS,
    LOADER_REGISTERS,
    ROWS,
    accumulate,
    box_origin,
    column_parts,
    loader,
    new_barriers,
    new_rings,
    pair_count,
    tma_load,
    tma_store,
)

__all__ = ["backward_data", "backward_weight", "forward", "forward_pool"]


@gluon.jit
def _biased_relu(part, bias, k0, K, RELU: gl.constexpr):
    """Sums [PX, 64] + bias, then a ReLU that keeps NaN."""
    if bias is not None:
        k = k0 + gl.arange(0, BK, gl.SliceLayout(0, part.type.layout))
        part += gl.load(bias + k, mask=k < K, other=0.0)[None, :]
    if RELU:
        part = gl.where(part < 0, 0.0, part)
    return part


# -- forward ----------------------------------------------------------------------------------------------------------


@gluon.jit
def _forward_consumer(y, bias, out, rings, sizes, half: gl.constexpr, RELU: gl.constexpr, IMG: gl.constexpr,
                      BH: gl.constexpr, BW: gl.constexpr, BN: gl.constexpr, NB: gl.constexpr, OUT: gl.constexpr,
                      RESIDENT: gl.constexpr):  # fmt: skip
    N, H, W, C, K = sizes
    PX: gl.constexpr = BH * IMG * BW
    across = gl.cdiv(K, BN)
    tiles = pair_count(N, H, W, IMG, BH, BW) * across
    rounds = 0
    taps = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        k0 = tile % across * BN
        y0, n0, x0 = box_origin(tile // across * 2 + half, H, W, IMG, BH, BW)
        acc, rounds, taps = accumulate(rings, rounds, taps, gl.cdiv(C, BK), half, False, BH, PX, BN, NB, RESIDENT)
        parts = column_parts(acc, BN // BK)
        for i in gl.static_range(BN // BK):
            part = _biased_relu(parts[i], bias, k0 + i * BK, K, RELU)
            buffer = out.index(half * OUT + i % OUT)
            tma.store_wait(pendings=OUT - 1)
            buffer.reshape([PX, BK]).store(part.to(y.dtype))
            fence_async_shared()
            tma_store(y, [y0, n0, x0, k0 + i * BK], buffer)
    tma.store_wait(pendings=0)


@gluon.jit
def forward(
    y,  # tensor map, out: y [N,H,W,K]
    x,  # tensor map: x [N,H,W,C]
    halo,  # tensor map: x [N,H,W,C]
    w,  # tensor map: w [K,3,3,C]
    bias,  # float32 [K], or None
    N,
    H,
    W,
    C,
    K,
    RELU: gl.constexpr,
    IMG: gl.constexpr,
    BH: gl.constexpr,
    BW: gl.constexpr,
    BN: gl.constexpr,
    NB: gl.constexpr,  # taps of weights held in shared memory
    OUT: gl.constexpr,  # blocks of outputs on their way to memory, for each consumer
    RESIDENT: gl.constexpr,  # all of w is held: K <= BN and NB = 9*cdiv(C, 64)
):
    """y = conv(x, w) + bias, with ReLU or without."""
    rings = new_rings(x, w, IMG, BH, BW, NB)
    out = gl.allocate_shared_memory(y.dtype, [2 * OUT, BH, IMG, BW, BK], y.layout)
    fence_async_shared()
    sizes = (N, H, W, C, K)
    gl.warp_specialize(
        [
            (_forward_consumer, (y, bias, out, rings, sizes, 0, RELU, IMG, BH, BW, BN, NB, OUT, RESIDENT)),
            (_forward_consumer, (y, bias, out, rings, sizes, 1, RELU, IMG, BH, BW, BN, NB, OUT, RESIDENT)),
            (loader, (x, halo, w, rings, sizes, False, IMG, BH, BW, BN, NB, RESIDENT)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )


# -- forward with 2x2 max-pool ----------------------------------------------------------------------------------------


@gluon.constexpr_function
def _windows_layout(pairs):
    """[BH/2, 2, pairs of columns, 2, 64] with whole windows, of 8 channels, in a thread."""
    across = min(4, pairs // 4)
    return gl.BlockedLayout([1, 2, 1, 2, 8], [1, 1, 4, 1, 8], [4 // across, 1, across, 1, 1], [4, 3, 2, 1, 0])


@gluon.jit
def _winner(first, second, i, j):
    """The larger of two, the first of equals, NaN before all, and i or j with it."""
    holds = (second <= first) | (first != first)
    return gl.where(holds, first, second), gl.where(holds, i, j)


@gluon.jit
def _pooled(windows):
    """Of [BH/2, 2, pairs, 2, 64]: the maxima [BH/2, pairs, 64] and the packed winners [BH/2, pairs, 16]."""
    left, right = windows.permute((0, 2, 4, 1, 3)).split()
    value, column = _winner(left, right, 0, 1)
    top, bottom = value.split()
    top_column, bottom_column = column.split()
    value, place = _winner(top, bottom, top_column, bottom_column + 2)
    even, odd = place.reshape([place.shape[0], place.shape[1], BK // 4, 2, 2]).split()
    low, high = (even + 4 * odd).split()
    return value, low + 16 * high


@gluon.jit
def _pool_consumer(y, argmax, bias, stage, out, out_argmax, rings, sizes, half: gl.constexpr, IMG: gl.constexpr,
                   BH: gl.constexpr, BW: gl.constexpr, BN: gl.constexpr, NB: gl.constexpr, OUT: gl.constexpr,
                   RESIDENT: gl.constexpr):  # fmt: skip
    N, H, W, C, K = sizes
    PX: gl.constexpr = BH * IMG * BW
    PAIRS: gl.constexpr = IMG * BW // 2
    across = gl.cdiv(K, BN)
    tiles = pair_count(N, H, W, IMG, BH, BW) * across
    rounds = 0
    taps = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        k0 = tile % across * BN
        y0, n0, x0 = box_origin(tile // across * 2 + half, H, W, IMG, BH, BW)
        acc, rounds, taps = accumulate(rings, rounds, taps, gl.cdiv(C, BK), half, False, BH, PX, BN, NB, RESIDENT)
        parts = column_parts(acc, BN // BK)
        for i in gl.static_range(BN // BK):
            k = k0 + i * BK
            stage.reshape([PX, BK]).store(_biased_relu(parts[i], bias, k, K, True).to(y.dtype))
            windows = stage.reshape([BH // 2, 2, PAIRS, 2, BK]).load(_windows_layout(PAIRS))
            value, winner = _pooled(windows)
            maxima = out.index(half * OUT + i % OUT)
            winners = out_argmax.index(half * OUT + i % OUT)
            tma.store_wait(pendings=2 * OUT - 2)
            maxima.reshape([BH // 2, PAIRS, BK]).store(value)
            winners.reshape([BH // 2, PAIRS, BK // 4]).store(winner.to(gl.uint8))
            fence_async_shared()
            tma_store(y, [y0 // 2, n0, x0 // 2, k], maxima)
            tma_store(argmax, [y0 // 2, n0, x0 // 2, k // 4], winners)
    tma.store_wait(pendings=0)


@gluon.jit
def forward_pool(
    y,  # tensor map, out: y [N,H//2,W//2,K]
    argmax,  # tensor map, out: uint8 [N,H//2,W//2,K//4]
    x,  # tensor map: x [N,H,W,C]
    halo,  # tensor map: x [N,H,W,C]
    w,  # tensor map: w [K,3,3,C]
    bias,  # float32 [K], or None
    N,
    H,
    W,
    C,
    K,
    IMG: gl.constexpr,
    BH: gl.constexpr,
    BW: gl.constexpr,
    BN: gl.constexpr,
    NB: gl.constexpr,
    OUT: gl.constexpr,
    RESIDENT: gl.constexpr,
):
    """y, argmax = maxpool2x2(relu(conv(x, w) + bias)); constexprs as in `forward`."""
    PX: gl.constexpr = BH * IMG * BW
    rings = new_rings(x, w, IMG, BH, BW, NB)
    stage = gl.allocate_shared_memory(y.dtype, [2, PX, BK], ROWS)
    out = gl.allocate_shared_memory(y.dtype, [2 * OUT, BH // 2, IMG, BW // 2, BK], y.layout)
    out_argmax = gl.allocate_shared_memory(gl.uint8, [2 * OUT, BH // 2, IMG, BW // 2, BK // 4], argmax.layout)
    fence_async_shared()
    sizes = (N, H, W, C, K)
    gl.warp_specialize(
        [
            (
                _pool_consumer,
                (y, argmax, bias, stage.index(0), out, out_argmax, rings, sizes, 0, IMG, BH, BW, BN, NB, OUT, RESIDENT),
            ),
            (
                _pool_consumer,
                (y, argmax, bias, stage.index(1), out, out_argmax, rings, sizes, 1, IMG, BH, BW, BN, NB, OUT, RESIDENT),
            ),
            (loader, (x, halo, w, rings, sizes, False, IMG, BH, BW, BN, NB, RESIDENT)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )


# -- data gradient ----------------------------------------------------------------------------------------------------


@gluon.jit
def _mask_load(x, out, full, slot: gl.constexpr, y0, n0, x0, c0):
    mbarrier.expect(full.index(slot), x.block_type.nbytes)
    tma_load(x, [y0, n0, x0, c0], full.index(slot), out.index(slot))


@gluon.jit
def _backward_data_consumer(dx, x, sums, out, x_ready, rings, sizes, half: gl.constexpr, IMG: gl.constexpr,
                            BH: gl.constexpr, BW: gl.constexpr, BN: gl.constexpr, NB: gl.constexpr,
                            OUT: gl.constexpr, RESIDENT: gl.constexpr):  # fmt: skip
    N, H, W, K, C = sizes
    PX: gl.constexpr = BH * IMG * BW
    PARTS: gl.constexpr = BN // BK
    across = gl.cdiv(C, BN)
    tiles = pair_count(N, H, W, IMG, BH, BW) * across
    rounds = 0
    taps = 0
    loads = 0  # of every slot of x, so far
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        c0 = tile % across * BN
        box = tile // across * 2 + half
        y0, n0, x0 = box_origin(box, H, W, IMG, BH, BW)
        if x is not None:
            tma.store_wait(pendings=0)
            for i in gl.static_range(OUT):
                _mask_load(x, out, x_ready, half * OUT + i, y0, n0, x0, c0 + i * BK)
        acc, rounds, taps = accumulate(rings, rounds, taps, gl.cdiv(K, BK), half, True, BH, PX, BN, NB, RESIDENT)
        parts = column_parts(acc, PARTS)
        for i in gl.static_range(PARTS):
            part = parts[i]
            buffer = out.index(half * OUT + i % OUT)
            if x is not None:
                mbarrier.wait(x_ready.index(half * OUT + i % OUT), loads + i // OUT & 1)
                part = gl.where(buffer.reshape([PX, BK]).load(part.type.layout) > 0, part, 0.0)
            if sums is not None:
                pixel = gl.arange(0, PX, gl.SliceLayout(1, part.type.layout))
                inside = (y0 + pixel // (IMG * BW) < H) & (n0 + pixel // BW % IMG < N) & (x0 + pixel % BW < W)
                column = gl.sum(gl.where(inside[:, None], part, 0.0), 0)
                c = c0 + i * BK + gl.arange(0, BK, gl.SliceLayout(0, part.type.layout))
                gl.store(sums + gl.cast(box, gl.int64) * C + c, column, mask=c < C)
            if x is None:
                tma.store_wait(pendings=OUT - 1)
            buffer.reshape([PX, BK]).store(part.to(dx.dtype))
            fence_async_shared()
            tma_store(dx, [y0, n0, x0, c0 + i * BK], buffer)
            if x is not None and i + OUT < PARTS:
                tma.store_wait(pendings=0)
                _mask_load(x, out, x_ready, half * OUT + i % OUT, y0, n0, x0, c0 + (i + OUT) * BK)
        loads += PARTS // OUT
    tma.store_wait(pendings=0)


@gluon.jit
def backward_data(
    dx,  # tensor map, out: dx [N,H,W,C]
    dy,  # tensor map: dy [N,H,W,K], the gradient before this layer's ReLU
    halo,  # tensor map: dy [N,H,W,K]
    w,  # tensor map: w [K,3,3,C]
    x,  # tensor map: x [N,H,W,C], whose zeros mask dx (the ReLU of the layer below), or None
    sums,  # out: float32 [2*pairs of boxes, C], the sums of dx over each box's pixels, or None
    N,
    H,
    W,
    C,
    K,
    IMG: gl.constexpr,
    BH: gl.constexpr,
    BW: gl.constexpr,
    BN: gl.constexpr,
    NB: gl.constexpr,
    OUT: gl.constexpr,  # divides BN//64
    RESIDENT: gl.constexpr,  # all of w is held: C <= BN and NB = 9*cdiv(K, 64)
):
    """dx = conv(dy, w rotated by 180 degrees, K and C exchanged) * (x > 0), and its sums for the bias of the layer below.

    The rotation is in the order in which taps are read; the exchange in wgmma's transposed operand.
    """
    rings = new_rings(dy, w, IMG, BH, BW, NB)
    out = gl.allocate_shared_memory(dx.dtype, [2 * OUT, BH, IMG, BW, BK], dx.layout)
    x_ready = new_barriers(2 * OUT, 1)
    fence_async_shared()
    sizes = (N, H, W, K, C)
    gl.warp_specialize(
        [
            (_backward_data_consumer, (dx, x, sums, out, x_ready, rings, sizes, 0, IMG, BH, BW, BN, NB, OUT, RESIDENT)),
            (_backward_data_consumer, (dx, x, sums, out, x_ready, rings, sizes, 1, IMG, BH, BW, BN, NB, OUT, RESIDENT)),
            (loader, (dy, halo, w, rings, sizes, True, IMG, BH, BW, BN, NB, RESIDENT)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )
