"""Conversion between float32, bfloat16 and float16."""

import triton
import triton.language as tl

from ._device import accumulate


@triton.jit
def forward(
    y,  # [n]
    x,  # [n]
    n,
    beta,
    BLOCK: tl.constexpr,
):
    """y = beta * y + x, computed in float32 and rounded once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    accumulate(y + at, value, beta, at < n)
