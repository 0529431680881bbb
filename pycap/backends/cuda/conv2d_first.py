"""The first convolution of a network, from images of bytes, on CUDA kernels; Triton's serves what they do not take."""

from __future__ import annotations

from pycap.backends.cuda import native
from pycap.backends.cuda.products import products
from pycap.backends.triton import conv2d_first
from pycap.backends.triton.launching import Array, expect, row_of, scratch


def _serves(output: Array, *gradients: Array | None) -> bool:
    """Whether the kernels take a layer with this output [N,P,Q,K], and were asked for or are what the table prefers.

    gradients: the other arrays that are read or written 16 bytes at a time.
    """
    _, p, _, k = output.shape
    if products(output) is None or k % (16 // output.itemsize) or not native.aligned(output, *gradients):
        return False
    return native.asked() or row_of("conv2d.form", output, h=p, c=3, k=k).blocks["FORM"] == "cuda"


def conv2d_first_forward(
    y: Array, x: Array, crops: Array, scale: Array, shift: Array, w: Array, b: Array | None, relu: bool
) -> None:
    if not _serves(y):
        conv2d_first.conv2d_first_forward(y, x, crops, scale, shift, w, b, relu)
        return
    primitive = "conv2d_first_forward"
    sizes = *_, k, _, _ = conv2d_first.layer_sizes(primitive, (x, crops, scale, shift), y=y, w=w)
    expect(primitive, b=(b, (k,)))
    native.call(primitive, y, x, crops, scale, shift, w, b, products(y), *sizes, bool(relu))


def conv2d_first_backward_weight(
    dw: Array, db: Array | None, dy: Array, y: Array | None, x: Array, crops: Array, scale: Array, shift: Array,
    beta_w: float, beta_b: float,
) -> None:  # fmt: skip
    if not _serves(dy, y, dw, db):
        conv2d_first.conv2d_first_backward_weight(dw, db, dy, y, x, crops, scale, shift, beta_w, beta_b)
        return
    primitive = "conv2d_first_backward_weight"
    sizes = conv2d_first.layer_sizes(primitive, (x, crops, scale, shift), dy=dy, dw=dw)
    k = sizes[3]
    expect(primitive, db=(db, (k,)), y=(y, dy.shape))
    splits = native.module().conv2d_first_splits(products(dy), *sizes)
    partials, sums = scratch(((splits, *dw.shape), "float32"), ((splits if db is not None else 0, k), "float32"))
    native.call(
        "conv2d_first_weight", dw, db, partials, None if db is None else sums, dy, y, x, crops, scale, shift,
        products(dy), *sizes, splits, beta_w, beta_b,
    )  # fmt: skip
