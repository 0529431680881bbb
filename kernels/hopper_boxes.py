"""What the Hopper convolutions share: boxes of pixels, their rows as operands, rings of buffers, the sum over taps."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Triton 3.6's names for what 3.7 and later call async_load, async_store and reinterpret.
tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
tma_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret

# Rows of a box are a slice of shared memory, read as a block of another shape. Triton 3.6 slices only what is a power of two
# long, but lets a block read on past the row that it begins with; later versions slice anything and check the end.
READS_ON = gl.constexpr(not hasattr(gl.shared_memory_descriptor, "reinterpret"))

BK = gl.constexpr(64)  # channels of a product: 128 bytes, the widest swizzle
ROWS = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
LOADER_REGISTERS = gl.constexpr(40)
CONSUMER_REGISTERS = gl.constexpr(232)


@gluon.jit
def box_origin(box, H, W, IMG: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    """The first row, image and column of a box; a box past the last one begins past the last image."""
    rows = gl.cdiv(H, BH)
    columns = gl.cdiv(W, BW)
    return box // columns % rows * BH, box // (rows * columns) * IMG, box % columns * BW


@gluon.jit
def pair_count(N, H, W, IMG: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    """How many pairs of boxes cover the images."""
    return gl.cdiv(gl.cdiv(N, IMG) * gl.cdiv(H, BH) * gl.cdiv(W, BW), 2)


@gluon.constexpr_function
def sums_layout(BN):
    """Where wgmma leaves a warpgroup's sums of BN channels."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16])


@gluon.jit
def _rows(pixels, first: gl.constexpr, count: gl.constexpr):
    """`count` rows of shared memory [rows, IMG*BW, 64] from `first` on, to be given a shape by `reinterpret`."""
    if READS_ON:
        return pixels.index(first)
    else:
        return pixels.slice(first, count)


@gluon.jit
def operand(pixels, first: gl.constexpr, BH: gl.constexpr, PX: gl.constexpr, rounds):
    """BH rows of pixels from `first` on, as a product's operand [PX, 64].

    `rounds >> 31` is 0, which no compiler knows: it keeps the addresses of all operands from being computed once and
    for all before the loop, where they would fill the registers.
    """
    return reinterpret(_rows(pixels, first, BH), pixels.dtype, [1, PX, BK], ROWS).index(rounds >> 31)


@gluon.jit
def load_rows(x, halo, pixels, first: gl.constexpr, full, y0, n0, x0, c0, IMG: gl.constexpr, BH: gl.constexpr,
              BW: gl.constexpr):  # fmt: skip
    """Box and halo into rows first..first+BH+1 of `pixels`: the image rows y0..y0+BH+1, columns from x0."""
    tma_load(x, [y0, n0, x0, c0], full, reinterpret(_rows(pixels, first, BH), x.dtype, [BH, IMG, BW, BK], x.layout))
    tma_load(
        halo,
        [y0 + BH, n0, x0, c0],
        full,
        reinterpret(_rows(pixels, first + BH, 2), x.dtype, [2, IMG, BW, BK], halo.layout),
    )


@gluon.jit
def new_barriers(count: gl.constexpr, arrivals: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit
def new_rings(x, w, IMG: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, NB: gl.constexpr):
    """Shared memory of the forward's schedule: pixels (two boxes for each s), weights (NB taps), and their barriers."""
    pixels = gl.allocate_shared_memory(x.dtype, [6 * (BH + 2), IMG * BW, BK], ROWS)
    weights = gl.allocate_shared_memory(w.dtype, [NB, w.block_type.shape[0], w.block_type.shape[1]], w.layout)
    x_full = new_barriers(3, 1)
    x_empty = new_barriers(3, 2)
    w_full = new_barriers(NB, 1)
    w_empty = new_barriers(NB, 2)
    return pixels, weights, x_full, x_empty, w_full, w_empty


@gluon.jit
def _load_weights(w, buffer, full, reduced, tap, produced, REDUCED, PRODUCED, FLIPPED: gl.constexpr):
    """Weights of 64 reduced and BN produced channels at one tap: rows of w, or, flipped, columns of it."""
    if FLIPPED:
        tma_load(w, [reduced, (8 - tap) * PRODUCED + produced], full, buffer)
    else:
        tma_load(w, [produced, tap * REDUCED + reduced], full, buffer)


@gluon.jit
def loader(x, halo, w, rings, sizes, FLIPPED: gl.constexpr, IMG: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr,
            BN: gl.constexpr, NB: gl.constexpr, RESIDENT: gl.constexpr):  # fmt: skip
    """For each tile, block of 64 reduced channels and horizontal tap s: two boxes, then the weights of three taps."""
    pixels, weights, x_full, x_empty, w_full, w_empty = rings
    N, H, W, REDUCED, PRODUCED = sizes
    across = gl.cdiv(PRODUCED, BN)
    tiles = pair_count(N, H, W, IMG, BH, BW) * across
    rounds = 0
    taps = 0
    if RESIDENT:
        for i in gl.static_range(NB):
            mbarrier.expect(w_full.index(i), w.block_type.nbytes)
            _load_weights(w, weights.index(i), w_full.index(i), i // 9 * BK, i % 9, 0, REDUCED, PRODUCED, FLIPPED)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        for block in range(gl.cdiv(REDUCED, BK)):
            for s in gl.static_range(3):
                mbarrier.wait(x_empty.index(s), rounds & 1 ^ 1)
                mbarrier.expect(x_full.index(s), 2 * (x.block_type.nbytes + halo.block_type.nbytes))
                for half in gl.static_range(2):
                    y0, n0, x0 = box_origin(tile // across * 2 + half, H, W, IMG, BH, BW)
                    load_rows(x, halo, pixels, (half * 3 + s) * (BH + 2), x_full.index(s),
                               y0 - 1, n0, x0 + s - 1, block * BK, IMG, BH, BW)  # fmt: skip
                if not RESIDENT:
                    for r in gl.static_range(3):
                        slot = taps % NB
                        mbarrier.wait(w_empty.index(slot), taps // NB & 1 ^ 1)
                        mbarrier.expect(w_full.index(slot), w.block_type.nbytes)
                        _load_weights(w, weights.index(slot), w_full.index(slot), block * BK, r * 3 + s,
                                      tile % across * BN, REDUCED, PRODUCED, FLIPPED)  # fmt: skip
                        taps += 1
            rounds += 1


@gluon.jit
def accumulate(rings, rounds, taps, blocks, half: gl.constexpr, FLIPPED: gl.constexpr, BH: gl.constexpr,
                PX: gl.constexpr, BN: gl.constexpr, NB: gl.constexpr, RESIDENT: gl.constexpr):  # fmt: skip
    """A consumer's sums [PX, BN] of one tile, and the rounds (blocks of channels) and taps consumed since the start.

    A product still reads its operands while the next one is issued, so a buffer is given back one product later.
    """
    pixels, weights, x_full, x_empty, w_full, w_empty = rings
    acc = gl.zeros((PX, BN), gl.float32, sums_layout(BN))
    for block in range(blocks):
        for s in gl.static_range(3):
            mbarrier.wait(x_full.index(s), rounds & 1)
            for r in gl.static_range(3):
                if RESIDENT:
                    slot = block * 9 + r * 3 + s
                    mbarrier.wait(w_full.index(slot), 0)
                else:
                    slot = taps % NB
                    mbarrier.wait(w_full.index(slot), taps // NB & 1)
                shifted = operand(pixels, (half * 3 + s) * (BH + 2) + r, BH, PX, rounds)
                if FLIPPED:
                    acc = warpgroup_mma(shifted, weights.index(slot), acc, is_async=True)
                else:
                    acc = warpgroup_mma(shifted, weights.index(slot).permute((1, 0)), acc, is_async=True)
                acc = warpgroup_mma_wait(1, deps=(acc,))
                earlier = s + r + block > 0  # the tile has an earlier product: it has ended
                if not RESIDENT:
                    mbarrier.arrive(w_empty.index((taps + NB - 1) % NB), count=1, pred=earlier)
                if r == 0:
                    mbarrier.arrive(x_empty.index((s + 2) % 3), count=1, pred=earlier)
                taps += 1
        rounds += 1
    acc = warpgroup_mma_wait(0, deps=(acc,))
    if not RESIDENT:
        mbarrier.arrive(w_empty.index((taps + NB - 1) % NB), count=1)
    mbarrier.arrive(x_empty.index(2), count=1)
    return acc, rounds, taps


@gluon.jit
def column_parts(acc, PARTS: gl.constexpr):
    """Sums [PX, BN] as a tuple of PARTS (a power of two) blocks of columns; each thread keeps what it holds."""
    parts = (acc,)
    for _ in gl.static_range(PARTS.bit_length() - 1):
        halves = ()
        for i in gl.static_range(len(parts)):
            part = parts[i]
            halves = halves + part.reshape([part.shape[0], 2, part.shape[1] // 2]).permute(0, 2, 1).split()
        parts = halves
    return parts
