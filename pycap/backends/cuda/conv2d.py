"""3x3 convolutions of stride 1 and padding 1 on CUDA kernels; Triton's serve the others, and those that the table prefers.

The kernels round nothing: filters come in the activations' type, from the scratch array that Triton's form uses too. The
data gradient wants them turned (rotated, input and output channels exchanged), and turning rounds.
"""

from __future__ import annotations

from pycap.backends.cuda import native
from pycap.backends.cuda.conv2d_weight import conv2d_backward_weight
from pycap.backends.cuda.products import products
from pycap.backends.triton import conv2d
from pycap.backends.triton.launching import Array, blocks, expect, row_of, scratch
from pycap.backends.weights import weight_cache
from pycap.memory import empty

__all__ = [
    "conv2d_backward_data", "conv2d_backward_data_relu", "conv2d_backward_weight", "conv2d_forward", "conv2d_pool_forward",
]  # fmt: skip


def _serves(x: Array, w: Array, stride: int, padding: int, *arrays: Array) -> bool:
    """Whether the kernels take the convolution of x [N,H,W,C] with w [K,R,S,C], and were asked for or are what the table
    prefers. arrays: the others of x's type, read or written 16 bytes at a time."""
    k, r, s, c = w.shape
    if (r, s, stride, padding) != (3, 3, 1, 1) or products(x) is None or not x.size or not k:
        return False
    whole = 16 // x.itemsize
    if c % whole or k % whole or not native.aligned(x, w, *arrays) or any(a.dtype != x.dtype for a in arrays):
        return False
    return native.asked() or row_of("conv2d.form", x, h=x.shape[1], c=c, k=k).blocks["FORM"] == "cuda"


def conv2d_forward(y: Array, x: Array, w: Array, b: Array | None, stride: int, padding: int, relu: bool) -> None:
    if not _serves(x, w, stride, padding, y):
        conv2d.conv2d_forward(y, x, w, b, stride, padding, relu)
        return
    n, h, width, c, k, *_ = conv2d.layer_sizes("conv2d_forward", x, w, stride, padding)
    expect("conv2d_forward", y=(y, (n, h, width, k)), b=(b, (k,)))
    filters = conv2d.kept_filters(w, x)
    filters = conv2d.rounded_filters(filters, w, *scratch(conv2d.spare_filters(filters, w, x)))
    native.call("conv2d_forward", y, x, filters, b, n, h, width, c, k, bool(relu), products(x))


def conv2d_pool_forward(
    y: Array, argmax: Array, x: Array, w: Array, b: Array | None, stride: int, padding: int
) -> None:
    if not _serves(x, w, stride, padding, y):
        conv2d.conv2d_pool_forward(y, argmax, x, w, b, stride, padding)
        return
    n, h, width, c, k, *_ = conv2d.layer_sizes("conv2d_pool_forward", x, w, stride, padding)
    pooled = (n, h // 2, width // 2)
    expect("conv2d_pool_forward", y=(y, (*pooled, k)), argmax=(argmax, (*pooled, blocks(k, 4))), b=(b, (k,)))
    filters = conv2d.kept_filters(w, x)
    filters = conv2d.rounded_filters(filters, w, *scratch(conv2d.spare_filters(filters, w, x)))
    native.call("conv2d_forward_pool", y, argmax, x, filters, b, n, h, width, c, k, products(x))


# Backward -------------------------------------------------------------------------------------------------------------


def _kept_turned(w: Array, like: Array) -> Array | None:
    """w turned and in the type of `like`, where it may be kept; else None."""
    cache = weight_cache()
    if cache is None:
        return None

    def make() -> Array:
        k, r, s, c = w.shape
        return _turned(None, w, empty((c, r, s, k), like.dtype))

    return cache.get(w, ("turned", like.dtype.name), make)


def _spare_turned(kept: Array | None, w: Array, like: Array) -> conv2d.Spare:
    """The scratch array that `_turned` needs."""
    k, r, s, c = w.shape
    return ((c, r, s, k) if kept is None else (0,)), like.dtype


def _turned(kept: Array | None, w: Array, spare: Array) -> Array:
    """The turned filters that were kept, else w turned into `spare`."""
    if kept is not None:
        return kept
    native.call("conv2d_turn_filters", spare, w, w.shape[3], w.shape[0], products(spare))
    return spare


def conv2d_backward_data(
    dx: Array, dy: Array, w: Array, y: Array | None, argmax: Array | None, stride: int, padding: int, beta: float
) -> None:
    if not _serves(dx, w, stride, padding, dy):
        conv2d.conv2d_backward_data(dx, dy, w, y, argmax, stride, padding, beta)
        return
    primitive = "conv2d_backward_data"
    sizes = n, h, width, c, k, *_ = conv2d.layer_sizes(primitive, dx, w, stride, padding)
    unpooled = conv2d.check_gradient(primitive, sizes, dy, y, argmax)
    filters = _kept_turned(w, dy)
    spare, dz = scratch(_spare_turned(filters, w, dy), unpooled)
    dz, filters = conv2d.expand(dz, dy, y, argmax), _turned(filters, w, spare)
    native.call("conv2d_backward_data", dx, None, dz, filters, None, n, h, width, c, k, beta, products(dx))


def conv2d_backward_data_relu(
    dz_below: Array, db_below: Array | None, dy: Array, w: Array, y: Array | None, argmax: Array | None, x: Array,
    stride: int, padding: int, beta_b: float,
) -> None:  # fmt: skip
    if not _serves(x, w, stride, padding, dz_below, dy):
        conv2d.conv2d_backward_data_relu(dz_below, db_below, dy, w, y, argmax, x, stride, padding, beta_b)
        return
    primitive = "conv2d_backward_data_relu"
    sizes = n, h, width, c, k, *_ = conv2d.layer_sizes(primitive, x, w, stride, padding)
    expect(primitive, dz_below=(dz_below, x.shape), db_below=(db_below, (c,)))
    unpooled = conv2d.check_gradient(primitive, sizes, dy, y, argmax)
    filters = _kept_turned(w, dy)
    tiles = native.module().conv2d_data_tiles(n, h, width, c)
    spare, dz, partials, sums = scratch(
        _spare_turned(filters, w, dy), unpooled, ((tiles, c), "float32"), conv2d.tile_sums(c)
    )
    dz, filters = conv2d.expand(dz, dy, y, argmax), _turned(filters, w, spare)
    native.call("conv2d_backward_data", dz_below, partials, dz, filters, x, n, h, width, c, k, 0.0, products(x))
    if db_below is not None:
        conv2d.sum_tiles(db_below, partials, sums, beta_b)
