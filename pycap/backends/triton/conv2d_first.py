"""The first convolution of a network that sees images, from their bytes: `preprocess` and `conv2d` in one pass.

3x3, stride 1, padding 1, of three colours. The normalised images are never stored; the padding is 0 in normalised space.
"""

from __future__ import annotations

from pycap.backends.triton.conv2d import splits_to_fill, sum_partials
from pycap.backends.triton.launching import PRODUCTS, Array, Kernel, blocks, element, expect, precision, row, scratch

_IMAGES = "x:*u8 crops:*i32 scale:*fp32 shift:*fp32"
_SIZES = "n:i32 h:i32 width:i32 k:i32/16 p:i32 q:i32"

_forward = Kernel(
    "conv2d_first.forward", f"y:*T {_IMAGES} w:*fp32 b:*fp32 {_SIZES} bias:i32 relu:i32", variants=PRODUCTS
)
_backward_weight = Kernel(
    "conv2d_first.backward_weight",
    f"dw:*fp32 db:*fp32 dy:*T y:*T {_IMAGES} {_SIZES} share:i32 sums:i32 masked:i32",
    variants=PRODUCTS,
)


def layer_sizes(name: str, images: tuple[Array, ...], **layer: Array) -> tuple[int, ...]:
    """The kernels' sizes: n, h, width, k, p, q, by the shapes of x and of the layer's output.

    images: (x, crops, scale, shift). layer: the output and the filters, or the gradients of both, by their names.
    """
    x, crops, scale, shift = images
    (output, y), (filters, w) = layer.items()
    n, h, width, _ = x.shape
    _, p, q, k = y.shape
    expect(
        name, x=(x, (n, h, width, 3)), crops=(crops, (n, 3)), scale=(scale, (3,)), shift=(shift, (3,)),
        **{output: (y, (n, p, q, k)), filters: (w, (k, 3, 3, 3))},
    )  # fmt: skip
    if element(y) not in ("fp32", "bf16", "fp16"):
        raise TypeError(f"{name}: {output} must be float32, bfloat16 or float16, got {y.dtype}")
    if p > h or q > width:
        raise ValueError(f"{name}: windows of {p}x{q} do not fit images of {h}x{width}")
    if max(n * (p + 2) * (q + 2), (h + 2) * (width + 2) * 3, k * 27) >= 2**31 - 2**16:
        raise ValueError(f"{name}: x {x.shape} with {k} filters has more pixels or weights than 32 bits count")
    return n, h, width, k, p, q


def conv2d_first_forward(
    y: Array, x: Array, crops: Array, scale: Array, shift: Array, w: Array, b: Array | None, relu: bool
) -> None:
    """The fusion; normalised pixels and filters are rounded to y's type before the product."""
    sizes = n, _, _, k, p, q = layer_sizes("conv2d_first_forward", (x, crops, scale, shift), y=y, w=w)
    expect("conv2d_first_forward", b=(b, (k,)))
    how = row(_forward, y)
    programs = blocks(n * p * q, how.blocks["BLOCK_M"]) * blocks(k, how.blocks["BLOCK_N"])
    flags = int(b is not None), int(relu)
    _forward((programs, 1, 1), how, y, x, crops, scale, shift, w, b, *sizes, *flags, PRECISION=precision(y))


def conv2d_first_backward_weight(
    dw: Array, db: Array | None, dy: Array, y: Array | None, x: Array, crops: Array, scale: Array, shift: Array,
    beta_w: float, beta_b: float,
) -> None:  # fmt: skip
    """The fusion; pixels are normalised again, and db is summed as dy passes by."""
    sizes = n, _, _, k, p, q = layer_sizes("conv2d_first_backward_weight", (x, crops, scale, shift), dy=dy, dw=dw)
    expect("conv2d_first_backward_weight", db=(db, (k,)), y=(y, dy.shape))
    how = row(_backward_weight, dy)
    tiles, steps = blocks(k, how.blocks["BLOCK_M"]), blocks(n * p * q, how.blocks["BLOCK_K"])
    share = blocks(steps, splits_to_fill(tiles, steps))
    splits = max(1, blocks(steps, share or 1))
    partials, sums = scratch(((splits, *dw.shape), "float32"), ((splits if db is not None else 0, k), "float32"))
    _backward_weight(
        (splits * tiles, 1, 1), how, partials, None if db is None else sums, dy, y, x, crops, scale, shift, *sizes,
        share, int(db is not None), int(y is not None), PRECISION=precision(dy),
    )  # fmt: skip
    sum_partials(dw, partials, beta_w)
    if db is not None:
        sum_partials(db, sums, beta_b)
