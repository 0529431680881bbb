"""Images of bytes to normalised floats: crop, mirror, scale and shift in one pass."""

import triton
import triton.language as tl


@triton.jit
def forward(
    y,  # [N,P,Q,3]
    x,  # uint8 [N,H,W,3]
    crops,  # int32 [N,3]: top, left, whether to mirror
    scale,  # fp32 [3]
    shift,  # fp32 [3]
    h, width, p, q,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y = x * scale + shift of each image's window, mirrored where it says so."""
    per_image = tl.cdiv(p * q * 3, BLOCK)
    image = (tl.program_id(0) // per_image).to(tl.int64)
    at = tl.program_id(0) % per_image * BLOCK + tl.arange(0, BLOCK)
    here = at < p * q * 3
    colour, row, column = at % 3, at // 3 // q, at // 3 % q
    top, left, flip = tl.load(crops + image * 3), tl.load(crops + image * 3 + 1), tl.load(crops + image * 3 + 2)
    column = left + tl.where(flip != 0, q - 1 - column, column)
    source = ((image * h + top + row) * width + column) * 3 + colour
    value = tl.load(x + source, mask=here, other=0).to(tl.float32)
    value = value * tl.load(scale + colour) + tl.load(shift + colour)
    tl.store(y + image * (p * q * 3) + at, value.to(y.dtype.element_ty), mask=here)
