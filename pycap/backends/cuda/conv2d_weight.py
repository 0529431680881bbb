"""Weight gradient of 3x3 convolutions of stride 1 and padding 1 on CUDA kernels; Triton's serves the others."""

from __future__ import annotations

from pycap.backends.cuda import native
from pycap.backends.cuda.products import products
from pycap.backends.triton import conv2d
from pycap.backends.triton.launching import Array, expect, row_of, scratch


def _serves(dw: Array, db: Array | None, dy: Array, x: Array, stride: int, padding: int) -> bool:
    """Whether the kernel takes this layer, and was asked for or is what the table prefers."""
    k, r, s, c = dw.shape
    n, h, width, _ = x.shape
    if (r, s, stride, padding) != (3, 3, 1, 1) or products(x) is None or x.dtype != dy.dtype:
        return False
    whole = 16 // x.itemsize
    if c % whole or k % whole or n * (width + 1) + 64 >= 2**31 or not native.aligned(dw, db, dy, x):
        return False
    return native.asked() or row_of("conv2d.form", x, h=h, c=c, k=k).blocks["FORM"] == "cuda"


def conv2d_backward_weight(
    dw: Array, db: Array | None, dy: Array, x: Array, y: Array | None, argmax: Array | None, stride: int, padding: int,
    beta_w: float, beta_b: float,
) -> None:  # fmt: skip
    if not _serves(dw, db, dy, x, stride, padding):
        conv2d.conv2d_backward_weight(dw, db, dy, x, y, argmax, stride, padding, beta_w, beta_b)
        return
    primitive = "conv2d_backward_weight"
    sizes = n, h, width, c, k, *_ = conv2d.layer_sizes(primitive, x, dw, stride, padding)
    expect(primitive, db=(db, (k,)))
    unpooled = conv2d.check_gradient(primitive, sizes, dy, y, argmax)
    layer = products(x), n, h, width, c, k
    splits = native.module().conv2d_weight_splits(*layer)
    parts = splits if splits > 1 else 0
    spare, partials, sums = scratch(
        unpooled, ((parts, *dw.shape), "float32"), ((parts if db is not None else 0, k), "float32")
    )
    dz = conv2d.expand(spare, dy, y, argmax)
    native.call("conv2d_weight", dw, db, partials, None if db is None else sums, dz, x, *layer, splits, beta_w, beta_b)
