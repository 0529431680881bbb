"""Convolution in the Triton backend: the primitives, and what is fused beyond them.

Weights come in float32. Where activations are narrower they are rounded into scratch first (kept in the `weight_cache()`
of the moment): products then read them as they are, asynchronously and half as many bytes, and rounding all filters
of VGG16 takes some 0.03 ms.
"""

from __future__ import annotations

from typing import Any

from pycap.backends.triton import conv2d_hopper
from pycap.backends.triton.cast import cast
from pycap.backends.triton.launching import (
    ELEMENTS,
    PRODUCTS,
    Array,
    Kernel,
    Row,
    blocks,
    expect,
    interpreting,
    odd,
    precision,
    row,
    scratch,
)  # fmt: skip
from pycap.backends.triton.pool import unpool_relu
from pycap.backends.weights import rounded_weight, weight_cache
from pycap.memory import empty

Spare = tuple[tuple[int, ...], Any]  # shape and type of a scratch array

#: Multiprocessors that sums are cut up for (H100, H200). One number for all devices, so that all add in the same order.
MULTIPROCESSORS = 132

_SIZES = "n:i32 h:i32 width:i32 c:i32/16 k:i32/16 p:i32 q:i32 r:i32 s:i32 stride:i32 padding:i32"

_forward = Kernel("conv2d.forward", f"y:*T x:*T w:*T b:*fp32 {_SIZES} bias:i32 relu:i32", variants=PRODUCTS)
_forward_pool = Kernel("conv2d.forward_pool", f"y:*T argmax:*u8 x:*T w:*T b:*fp32 {_SIZES} bias:i32", variants=PRODUCTS)
_backward_data = Kernel(
    "conv2d.backward_data",
    f"dx:*T partials:*fp32 dz:*T w:*T x:*T {_SIZES} below:i32 beta:fp32",
    variants=PRODUCTS,
)
_backward_weight = Kernel(
    "conv2d.backward_weight", f"dw:*fp32 dz:*T x:*T {_SIZES} share:i32 beta:fp32", variants=PRODUCTS
)
_backward_bias = Kernel(
    "conv2d.backward_bias",
    "partials:*fp32 dz:*T dy:*T y:*T m:i32 k:i32/16 share:i32 sums:i32 masked:i32 written:i32",
    variants=ELEMENTS,
)
_reduce = Kernel("conv2d.reduce_partials", "out:*fp32 partials:*fp32 n:i32/16 splits:i32 beta:fp32")


def _output(length: int, taps: int, stride: int, padding: int) -> int:
    return (length + 2 * padding - taps) // stride + 1


def layer_sizes(primitive: str, x: Array, w: Array, stride: int, padding: int) -> tuple[int, ...]:
    """The kernels' sizes: n, h, width, c, k, p, q, r, s, stride, padding. Raises ValueError for more than they count to."""
    n, h, width, c = x.shape
    k, r, s, _ = w.shape
    expect(primitive, w=(w, (k, r, s, c)))
    p, q = _output(h, r, stride, padding), _output(width, s, stride, padding)
    if p < 1 or q < 1:
        raise ValueError(f"{primitive}: filters of {r}x{s} do not fit images of {h}x{width} with padding {padding}")
    if max(n * (h + 2 * padding) * (width + 2 * padding), k * r * s * c) >= 2**31 - 2**16:
        raise ValueError(
            f"{primitive}: x {x.shape} with filters {w.shape} has more pixels or weights than 32 bits count"
        )
    return n, h, width, c, k, p, q, r, s, stride, padding


def kept_filters(w: Array, like: Array) -> Array | None:
    """w in the type of `like`, where it is there already or may be kept; else None."""
    if w.dtype == like.dtype:
        return w
    copy = rounded_weight(w, like.dtype)
    if copy is not None:
        return copy
    cache = weight_cache()
    if cache is None:
        return None

    def make() -> Array:
        form = empty(w.shape, like.dtype)
        cast(form, w, 0.0)
        return form

    return cache.get(w, ("rounded", like.dtype.name), make)


def spare_filters(filters: Array | None, w: Array, like: Array) -> Spare:
    """The scratch array that `rounded_filters` needs."""
    return (w.shape if filters is None else (0,)), like.dtype


def rounded_filters(filters: Array | None, w: Array, spare: Array) -> Array:
    """The filters, where `kept_filters` found any, else w rounded into `spare`."""
    if filters is not None:
        return filters
    cast(spare, w, 0.0)
    return spare


def conv2d_forward(y: Array, x: Array, w: Array, b: Array | None, stride: int, padding: int, relu: bool) -> None:
    sizes = n, _, _, c, k, p, q, *_ = layer_sizes("conv2d_forward", x, w, stride, padding)
    expect("conv2d_forward", y=(y, (n, p, q, k)), b=(b, (k,)))
    filters = kept_filters(w, x)
    filters = rounded_filters(filters, w, *scratch(spare_filters(filters, w, x)))
    if conv2d_hopper.serves(x, w, stride, padding, y, filters):
        conv2d_hopper.forward(y, x, filters, b, relu)
        return
    how = row(_forward, x, c=c, k=k, odd=odd(y, x, w, b, sizes=(c, k)))
    programs = blocks(n * p * q, how.blocks["BLOCK_M"]) * blocks(k, how.blocks["BLOCK_N"])
    flags = int(b is not None), int(relu)
    _forward((programs, 1, 1), how, y, x, filters, b, *sizes, *flags, PRECISION=precision(x))


def conv2d_pool_forward(
    y: Array, argmax: Array, x: Array, w: Array, b: Array | None, stride: int, padding: int
) -> None:
    sizes = n, _, _, c, k, p, q, *_ = layer_sizes("conv2d_pool_forward", x, w, stride, padding)
    pooled = (n, p // 2, q // 2)
    expect("conv2d_pool_forward", y=(y, (*pooled, k)), argmax=(argmax, (*pooled, blocks(k, 4))), b=(b, (k,)))
    filters = kept_filters(w, x)
    filters = rounded_filters(filters, w, *scratch(spare_filters(filters, w, x)))
    if conv2d_hopper.pools(k, p, q) and conv2d_hopper.serves(x, w, stride, padding, y, argmax, filters):
        conv2d_hopper.forward_pool(y, argmax, x, filters, b)
        return
    how = row(_forward_pool, x, c=c, k=k, odd=odd(y, argmax, x, w, b, sizes=(c, k)))
    programs = blocks(4 * n * (p // 2) * (q // 2), how.blocks["BLOCK_M"]) * blocks(k, how.blocks["BLOCK_N"])
    bias = int(b is not None)
    _forward_pool((programs, 1, 1), how, y, argmax, x, filters, b, *sizes, bias, PRECISION=precision(x))


# Backward -------------------------------------------------------------------------------------------------------------


def check_gradient(primitive: str, sizes: tuple[int, ...], dy: Array, y: Array | None, argmax: Array | None) -> Spare:
    """Check dy and what comes with it; the scratch array that `expand` needs."""
    n, _, _, _, k, p, q, *_ = sizes
    shape = (n, p, q, k) if argmax is None else (n, p // 2, q // 2, k)
    expect(primitive, dy=(dy, shape), y=(y, shape), argmax=(argmax, (*shape[:3], blocks(k, 4))))
    return ((n, p, q, k) if y is not None or argmax is not None else (0,)), dy.dtype


def expand(spare: Array, dy: Array, y: Array | None, argmax: Array | None) -> Array:
    """dz, the gradient before ReLU and pooling: dy itself, or made in `spare`."""
    if argmax is not None:
        unpool_relu(spare, dy, y, argmax, 0.0)
    elif y is not None:
        _column_sums(None, spare, dy, y)
    else:
        return dy
    return spare


def _chunks(rows: Array) -> int:
    """How many chunks of rows `_column_sums` makes of [..., K]."""
    k = rows.shape[-1]
    how = row(_backward_bias, rows)
    wanted = 3 if interpreting() else 3 * MULTIPROCESSORS // blocks(k, how.blocks["BLOCK_N"])
    return max(1, min(wanted, blocks(rows.size // k, how.blocks["BLOCK_M"])))


def _column_sums(partials: Array | None, dz: Array | None, dy: Array, y: Array | None) -> None:
    """partials [chunks,K]: the sums over chunks of the rows of dy [...,K], masked where y is there; dz: the masked dy."""
    k = dy.shape[-1]
    how = row(_backward_bias, dy)
    chunks = _chunks(dy)
    share = blocks(blocks(dy.size // k, how.blocks["BLOCK_M"]), chunks)
    _backward_bias(
        (chunks * blocks(k, how.blocks["BLOCK_N"]), 1, 1), how, partials, dz, dy, y, dy.size // k, k, share,
        int(partials is not None), int(y is not None), int(dz is not None),
    )  # fmt: skip


def sum_partials(out: Array, partials: Array, beta: float) -> None:
    """out = beta * out + the sum of partials [splits, ...]."""
    splits = partials.shape[0]
    how = row(_reduce, out, splits=splits)
    _reduce((blocks(out.size, how.blocks["BLOCK_N"]), 1, 1), how, out, partials, out.size, splits, beta)


def tile_sums(k: int) -> Spare:
    """The scratch array that `sum_tiles` needs."""
    return (3 * MULTIPROCESSORS, k), "float32"


def sum_tiles(out: Array, partials: Array, sums: Array, beta: float) -> None:
    """out [K] = beta * out + the sum of partials [tiles,K], of which there may be many: in two steps, by `sums`."""
    sums = sums[: _chunks(partials)]
    _column_sums(sums, None, partials, None)
    sum_partials(out, sums, beta)


def _data_row(dx: Array, dy: Array, w: Array, x: Array | None, sizes: tuple[int, ...]) -> Row:
    c, k, stride = sizes[3], sizes[4], sizes[9]
    return row(_backward_data, dx, c=c, stride=stride, odd=odd(dx, dy, w, x, sizes=(c, k)))


def _launch_backward_data(
    how: Row, dx: Array, partials: Array | None, dz: Array, filters: Array, x: Array | None, sizes: tuple[int, ...],
    beta: float,
) -> None:  # fmt: skip
    n, h, width, c, *_ = sizes
    programs = blocks(n * h * width, how.blocks["BLOCK_M"]) * blocks(c, how.blocks["BLOCK_N"])
    below = int(x is not None)
    _backward_data((programs, 1, 1), how, dx, partials, dz, filters, x, *sizes, below, beta, PRECISION=precision(dz))


def conv2d_backward_data(
    dx: Array, dy: Array, w: Array, y: Array | None, argmax: Array | None, stride: int, padding: int, beta: float
) -> None:
    sizes = layer_sizes("conv2d_backward_data", dx, w, stride, padding)
    unpooled = check_gradient("conv2d_backward_data", sizes, dy, y, argmax)
    filters = kept_filters(w, dy)
    spare, dz = scratch(spare_filters(filters, w, dy), unpooled)
    dz, filters = expand(dz, dy, y, argmax), rounded_filters(filters, w, spare)
    if not beta and conv2d_hopper.serves(dx, w, stride, padding, dz, filters):
        conv2d_hopper.backward_data(conv2d_hopper.data_row(dx, w.shape[0]), dx, dz, filters, None, None)
        return
    _launch_backward_data(_data_row(dx, dy, w, None, sizes), dx, None, dz, filters, None, sizes, beta)


def conv2d_backward_data_relu(
    dz_below: Array, db_below: Array | None, dy: Array, w: Array, y: Array | None, argmax: Array | None, x: Array,
    stride: int, padding: int, beta_b: float,
) -> None:  # fmt: skip
    """The fusion: mask and sums over pixels are taken while the product's tiles are in registers, so that the layer below
    needs neither a mask nor a pass over its gradient."""
    primitive = "conv2d_backward_data_relu"
    sizes = n, h, width, c, *_ = layer_sizes(primitive, x, w, stride, padding)
    expect(primitive, dz_below=(dz_below, x.shape), db_below=(db_below, (c,)))
    unpooled = check_gradient(primitive, sizes, dy, y, argmax)
    filters = kept_filters(w, dy)
    hopper = conv2d_hopper.serves(x, w, stride, padding, dz_below, dy, filters)
    if hopper:
        how = conv2d_hopper.data_row(x, w.shape[0])
        tiles = 2 * blocks(conv2d_hopper.boxes(x, how), 2)
    else:
        how = _data_row(dz_below, dy, w, x, sizes)
        tiles = blocks(n * h * width, how.blocks["BLOCK_M"])
    spare, dz, partials, sums = scratch(spare_filters(filters, w, dy), unpooled, ((tiles, c), "float32"), tile_sums(c))
    dz = expand(dz, dy, y, argmax)
    filters = rounded_filters(filters, w, spare)
    if hopper:
        conv2d_hopper.backward_data(how, dz_below, dz, filters, x, partials)
    else:
        _launch_backward_data(how, dz_below, partials, dz, filters, x, sizes, 0.0)
    if db_below is not None:
        sum_tiles(db_below, partials, sums, beta_b)


def splits_to_fill(tiles: int, steps: int) -> int:
    """Into how many sums the weight gradient's is split, so that its programs fill the device, up to four waves."""
    if interpreting():
        return max(1, min(2, steps))

    def filled(splits: int) -> float:
        return splits * tiles / (blocks(splits * tiles, MULTIPROCESSORS) * MULTIPROCESSORS)

    return max(range(1, max(1, min(steps, blocks(4 * MULTIPROCESSORS, tiles))) + 1), key=filled)


def conv2d_backward_weight(
    dw: Array, db: Array | None, dy: Array, x: Array, y: Array | None, argmax: Array | None, stride: int, padding: int,
    beta_w: float, beta_b: float,
) -> None:  # fmt: skip
    primitive = "conv2d_backward_weight"
    sizes = n, _, _, c, k, p, q, r, s, *_ = layer_sizes(primitive, x, dw, stride, padding)
    expect(primitive, db=(db, (k,)))
    unpooled = check_gradient(primitive, sizes, dy, y, argmax)
    hopper = conv2d_hopper.serves(x, dw, stride, padding, dy)
    if hopper:
        how, share, splits = conv2d_hopper.weight_splits(x, k, 2 if interpreting() else MULTIPROCESSORS)
        parts = conv2d_hopper.partial_sums(how, splits)
    else:
        how = row(_backward_weight, dy, c=c, k=k, odd=odd(dw, dy, x, sizes=(c, k)))
        wide = how.blocks["BLOCK_N"]
        tiles = blocks(k, how.blocks["BLOCK_M"]) * (
            blocks(r * s * c, wide) if how.blocks["FLAT"] else r * s * blocks(c, wide)
        )
        steps = blocks(n * p * q, how.blocks["BLOCK_K"])
        share = blocks(steps, splits_to_fill(tiles, steps))
        splits = max(1, blocks(steps, share or 1))
        parts = splits if splits > 1 else 0
    spare, partials, sums = scratch(unpooled, ((parts, *dw.shape), "float32"), ((_chunks(dy), k), "float32"))
    dz = expand(spare, dy, y, argmax)
    if db is not None:  # of a window only the winner counts, so the sums are those of the pooled map
        _column_sums(sums, None, dy, y)
        sum_partials(db, sums, beta_b)
    if hopper:
        conv2d_hopper.backward_weight(how, share, splits, partials, dz, x)
    else:
        target, beta = (partials, 0.0) if parts else (dw, beta_w)
        _backward_weight((splits * tiles, 1, 1), how, target, dz, x, *sizes, share, beta, PRECISION=precision(dy))
    if parts:
        sum_partials(dw, partials, beta_w)
