"""The weight gradient of 3x3 convolutions on Hopper, in Gluon; conv2d_hopper.py describes boxes and tensor maps."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .hopper_boxes import (
    BK,
    CONSUMER_REGISTERS,
    LOADER_REGISTERS,
    ROWS,
    box_origin,
    column_parts,
    load_rows,
    new_barriers,
    operand,
    sums_layout,
    tma_load,
)


@gluon.jit
def _weight_loader(x, halo, dy, pixels, gradients, full, empty, N, H, W, c0, k0, s, first, last,
                   BY_PIXELS: gl.constexpr, IMG: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr,
                   NB: gl.constexpr):  # fmt: skip
    rounds = 0
    GRADIENTS: gl.constexpr = 2 if BY_PIXELS else 1
    for start in range(first, last, NB):
        for i in gl.static_range(NB):
            mbarrier.wait(empty.index(i), rounds & 1 ^ 1)
            mbarrier.expect(
                full.index(i),
                2 * (x.block_type.nbytes + halo.block_type.nbytes) + GRADIENTS * dy.block_type.nbytes,
            )
            for half in gl.static_range(2):
                if BY_PIXELS:
                    y0, n0, x0 = box_origin((start + i) * 2 + half, H, W, IMG, BH, BW)
                    c = c0
                else:
                    y0, n0, x0 = box_origin(start + i, H, W, IMG, BH, BW)
                    c = c0 + half * BK
                load_rows(x, halo, pixels, (half * NB + i) * (BH + 2), full.index(i), y0 - 1, n0, x0 + s - 1, c,
                           IMG, BH, BW)  # fmt: skip
                if half < GRADIENTS:
                    tma_load(dy, [y0, n0, x0, k0], full.index(i), gradients.index(GRADIENTS * i + half))
        rounds += 1  # noqa: SIM113 (Gluon has no enumerate)


@gluon.jit
def _weight_consumer(partials, pixels, gradients, full, empty, C, K, c0, k0, s, first, last, half: gl.constexpr,
                     BY_PIXELS: gl.constexpr, BH: gl.constexpr, PX: gl.constexpr, BN: gl.constexpr,
                     NB: gl.constexpr):  # fmt: skip
    """Sums [64 channels of x, BN channels of dy] for the three vertical taps over boxes first..last-1."""
    layout: gl.constexpr = sums_layout(BN)
    top = gl.zeros((BK, BN), gl.float32, layout)
    middle = gl.zeros((BK, BN), gl.float32, layout)
    bottom = gl.zeros((BK, BN), gl.float32, layout)
    rounds = 0
    for _start in range(first, last, NB):
        for i in gl.static_range(NB):
            mbarrier.wait(full.index(i), rounds & 1)
            dy = gradients.index((2 * i + half if BY_PIXELS else i) + (rounds >> 31)).reshape([PX, BN])
            top = warpgroup_mma(
                operand(pixels, (half * NB + i) * (BH + 2), BH, PX, rounds).permute((1, 0)), dy, top, is_async=True
            )
            middle = warpgroup_mma(
                operand(pixels, (half * NB + i) * (BH + 2) + 1, BH, PX, rounds).permute((1, 0)),
                dy,
                middle,
                is_async=True,
            )
            bottom = warpgroup_mma(
                operand(pixels, (half * NB + i) * (BH + 2) + 2, BH, PX, rounds).permute((1, 0)),
                dy,
                bottom,
                is_async=True,
            )
            top, middle, bottom = warpgroup_mma_wait(0, deps=(top, middle, bottom))
            mbarrier.arrive(empty.index(i), count=1)
        rounds += 1
    if BY_PIXELS:
        split = gl.program_id(1) * 2 + half
    else:
        c0 += half * BK
        split = gl.program_id(1)
    partials += gl.cast(split, gl.int64) * K * 9 * C + s * C + (rounds >> 31)  # 0, as in operand
    tops = column_parts(top, BN // 16)
    middles = column_parts(middle, BN // 16)
    bottoms = column_parts(bottom, BN // 16)
    for i in gl.static_range(BN // 16):
        c = c0 + gl.arange(0, BK, gl.SliceLayout(1, tops[i].type.layout))[:, None]
        k = k0 + i * 16 + gl.arange(0, 16, gl.SliceLayout(0, tops[i].type.layout))[None, :]
        place = partials + k * (9 * C) + c
        gl.store(place, tops[i], mask=(c < C) & (k < K))
        gl.store(place + 3 * C, middles[i], mask=(c < C) & (k < K))
        gl.store(place + 6 * C, bottoms[i], mask=(c < C) & (k < K))


@gluon.jit
def backward_weight(
    x,  # tensor map: x [N,H,W,C]
    halo,  # tensor map: x [N,H,W,C]
    dy,  # tensor map: dy [N,H,W,K], the gradient before this layer's ReLU
    partials,  # out: float32 [splits, K, 9, C]; dw is the sum over splits. BY_PIXELS: splits = 2 * the grid's second size
    N,
    H,
    W,
    C,
    K,
    boxes,  # boxes (BY_PIXELS: pairs of boxes) a program takes; a multiple of NB
    BY_PIXELS: gl.constexpr,  # consumers share out the pixels, else 128 channels of x
    IMG: gl.constexpr,
    BH: gl.constexpr,
    BW: gl.constexpr,
    BN: gl.constexpr,
    NB: gl.constexpr,  # boxes held in shared memory, for each consumer
):
    """partials[split, k, 3*r + s, c] = sum over the split's pixels (n, i, j) of dy[n,i,j,k] * x[n,i+r-1,j+s-1,c].

    Grid (3 * cdiv(K, BN) * cdiv(C, 128, or 64 where BY_PIXELS), splits): a program has one s, all three r. Every element
    of partials is written once, with a plain store. Boxes past the last one add zeros.
    """
    GRADIENTS: gl.constexpr = 2 if BY_PIXELS else 1
    pixels = gl.allocate_shared_memory(x.dtype, [2 * NB * (BH + 2), IMG * BW, BK], ROWS)
    gradients = gl.allocate_shared_memory(dy.dtype, [GRADIENTS * NB, BH, IMG, BW, BN], dy.layout)
    full = new_barriers(NB, 1)
    empty = new_barriers(NB, 2)
    fence_async_shared()
    across = gl.cdiv(K, BN)
    s = gl.program_id(0) % 3
    k0 = gl.program_id(0) // 3 % across * BN
    c0 = gl.program_id(0) // (3 * across) * (BK if BY_PIXELS else 2 * BK)
    first = gl.program_id(1) * boxes
    last = first + boxes
    PX: gl.constexpr = BH * IMG * BW
    gl.warp_specialize(
        [
            (
                _weight_consumer,
                (partials, pixels, gradients, full, empty, C, K, c0, k0, s, first, last, 0, BY_PIXELS, BH, PX, BN, NB),
            ),
            (
                _weight_consumer,
                (partials, pixels, gradients, full, empty, C, K, c0, k0, s, first, last, 1, BY_PIXELS, BH, PX, BN, NB),
            ),
            (
                _weight_loader,
                (
                    x,
                    halo,
                    dy,
                    pixels,
                    gradients,
                    full,
                    empty,
                    N,
                    H,
                    W,
                    c0,
                    k0,
                    s,
                    first,
                    last,
                    BY_PIXELS,
                    IMG,
                    BH,
                    BW,
                    NB,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )
