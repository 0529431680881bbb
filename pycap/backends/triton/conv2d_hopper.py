"""3x3 convolutions of stride 1 and padding 1 on Hopper, where the configuration table prefers them (docs/math/conv2d.md).

The kernels see an NHWC array as [H,N,W,C], so that a box of pixels is rows of whole swizzle periods.
"""

from __future__ import annotations

from pycap.backends.triton.launching import (
    Array,
    Kernel,
    Row,
    blocks,
    element,
    interpreting,
    multiprocessors,
    odd,
    row,
    row_of,
)

_PIXELS, _HALO, _SIZES = "(BH,IMG,BW,64)", "(2,IMG,BW,64)", "N:i32 H:i32 W:i32 C:i32 K:i32"

_forward = Kernel(
    "conv2d_hopper.forward",
    f"y:#T{_PIXELS} x:#T{_PIXELS} halo:#T{_HALO} w:#T(BN,64) bias:?*fp32 {_SIZES}",
    variants=[{"T": "bf16", "RELU": True}, {"T": "bf16", "RELU": False, "bias": None}],
)
_forward_pool = Kernel(
    "conv2d_hopper.forward_pool",
    "y:#T(BH/2,IMG,BW/2,64) argmax:#u8(BH/2,IMG,BW/2,16) "
    f"x:#T{_PIXELS} halo:#T{_HALO} w:#T(BN,64) bias:?*fp32 {_SIZES}",
    variants=[{"T": "bf16"}],
)
_backward_data = Kernel(
    "conv2d_hopper.backward_data",
    f"dx:#T{_PIXELS} dy:#T{_PIXELS} halo:#T{_HALO} w:#T(64,BN) x:?#T{_PIXELS} sums:?*fp32 {_SIZES}",
    variants=[{"T": "bf16"}, {"T": "bf16", "x": None, "sums": None}],
)
_backward_weight = Kernel(
    "conv2d_hopper_weight.backward_weight",
    f"x:#T{_PIXELS} halo:#T{_HALO} dy:#T(BH,IMG,BW,BN) partials:*fp32 {_SIZES} boxes:i32",
    variants=[{"T": "bf16"}],
)


def serves(x: Array, w: Array, stride: int, padding: int, *arrays: Array | None) -> bool:
    """Whether these kernels take the convolution of x [N,H,W,C] with w [K,R,S,C], and the table prefers them.

    arrays: the others that tensor maps would describe; all must lie at multiples of 16 bytes.
    """
    k, r, s, c = w.shape
    h = x.shape[1]
    if (r, s, stride, padding) != (3, 3, 1, 1) or c % 8 or k % 8 or element(x) not in ("bf16", "fp16") or not x.size:
        return False
    return not odd(x, *arrays) and row_of("conv2d.form", x, h=h, c=c, k=k).blocks["FORM"] == "hopper"


def _seen(array: Array) -> Array:
    """An NHWC array as [H,N,W,C]."""
    return array.transpose(1, 0, 2, 3)


def boxes(x: Array, how: Row) -> int:
    """How many boxes of pixels cover x."""
    n, h, width, _ = x.shape
    return blocks(n, how.blocks["IMG"]) * blocks(h, how.blocks["BH"]) * blocks(width, how.blocks["BW"])


def _grid(x: Array, how: Row, channels: int) -> tuple[int, int, int]:
    """A program a multiprocessor, which takes tile after tile: two boxes by BN channels each."""
    tiles = blocks(boxes(x, how), 2) * blocks(channels, how.blocks["BN"])
    return min(tiles, 2 if interpreting() else multiprocessors()), 1, 1


def forward(y: Array, x: Array, filters: Array, b: Array | None, relu: bool) -> None:
    """`conv2d_forward`; filters: w in x's type."""
    n, h, width, c = x.shape
    k = y.shape[3]
    how = row(_forward, x, h=h, c=c, k=k)
    _forward(
        _grid(x, how, k), how, _seen(y), _seen(x), _seen(x), filters.reshape(k, 9 * c), b, n, h, width, c, k, RELU=relu
    )  # fmt: skip


def pools(k: int, h: int, width: int) -> bool:
    """Whether `forward_pool` takes maps of k channels and h x width pixels: winners leave in rows of 16 bytes."""
    return k % 64 == 0 and h > 1 and width > 1


def forward_pool(y: Array, argmax: Array, x: Array, filters: Array, b: Array | None) -> None:
    """`conv2d_pool_forward`; filters: w in x's type."""
    n, h, width, c = x.shape
    k = y.shape[3]
    how = row(_forward_pool, x, h=h, c=c, k=k)
    _forward_pool(
        _grid(x, how, k), how, _seen(y), _seen(argmax), _seen(x), _seen(x), filters.reshape(k, 9 * c), b, n, h, width, c, k
    )  # fmt: skip


def data_row(dx: Array, k: int) -> Row:
    """The row of `backward_data`."""
    _, h, _, c = dx.shape
    return row(_backward_data, dx, h=h, c=c, k=k)


def backward_data(how: Row, dx: Array, dz: Array, filters: Array, x: Array | None, sums: Array | None) -> None:
    """dx [N,H,W,C] from dz [N,H,W,K] without a mask of its own; filters: w in their type.

    With x [N,H,W,C] the result is multiplied by x > 0; with sums fp32 [boxes + boxes % 2, C] the sums over each box's pixels
    go there.
    """
    n, h, width, c = dx.shape
    k = dz.shape[3]
    _backward_data(
        _grid(dx, how, c), how, _seen(dx), _seen(dz), _seen(dz), filters.reshape(k, 9 * c),
        None if x is None else _seen(x), sums, n, h, width, c, k,
    )  # fmt: skip


def weight_splits(x: Array, k: int, programs: int) -> tuple[Row, int, int]:
    """(the row, boxes a program, splits) of `backward_weight` for about so many programs."""
    _, h, _, c = x.shape
    how = row(_backward_weight, x, h=h, c=c, k=k)
    total = blocks(boxes(x, how), 2) if how.blocks["BY_PIXELS"] else boxes(x, how)
    share = blocks(total, max(1, programs // _columns(how, c, k)))
    share = blocks(share, how.blocks["NB"]) * how.blocks["NB"]
    return how, share, blocks(total, share)


def _columns(how: Row, c: int, k: int) -> int:
    return 3 * blocks(k, how.blocks["BN"]) * blocks(c, 64 if how.blocks["BY_PIXELS"] else 128)


def partial_sums(how: Row, splits: int) -> int:
    """How many partial sums `backward_weight` leaves."""
    return 2 * splits if how.blocks["BY_PIXELS"] else splits


def backward_weight(how: Row, share: int, splits: int, partials: Array, dz: Array, x: Array) -> None:
    """partials fp32 [partial_sums, K,3,3,C]: the filters' gradient is their sum."""
    n, h, width, c = x.shape
    k = dz.shape[3]
    grid = _columns(how, c, k), splits, 1
    _backward_weight(grid, how, _seen(x), _seen(x), _seen(dz), partials, n, h, width, c, k, share)
