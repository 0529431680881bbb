"""Dropout whose mask is a function of a seed and the element's number; its own backward (docs/math/dropout.md)."""

import triton
import triton.language as tl

from ._device import accumulate, dropout_keep


@triton.jit
def forward(
    y,  # [T, size]: a step's n*F elements in one row
    x,  # [T, size]
    size,
    step_blocks,
    first,
    stride,
    seed,  # where [2] 32-bit words of the device lie, low and high, or 0: then the two that follow are the seed
    seed_low,
    seed_high,
    threshold,
    scale,
    beta,
    BLOCK: tl.constexpr,
):
    """y = beta * y + (x * scale where it is kept, else 0). A program: a block of one step's elements.

    step_blocks: the programs of a step. first, stride: the counter of the first element, and how much later a step's
    counters begin than those of the step before. threshold: p * 2**32. All four, and the halves of the seed, modulo 2**32.
    seed is an address as a number, so that its alignment, 4 bytes, takes none from the loads of x and y.
    """
    if seed != 0:
        words = seed.to(tl.pointer_type(tl.uint32))
        seed_low, seed_high = tl.load(words), tl.load(words + 1)
    step = tl.program_id(0) // step_blocks
    at = (tl.program_id(0) % step_blocks) * BLOCK + tl.arange(0, BLOCK)
    counter = first.to(tl.uint32) + step.to(tl.uint32) * stride.to(tl.uint32) + at.to(tl.uint32)
    kept = dropout_keep(counter, seed_low, seed_high, threshold)
    inside = at < size
    at = step.to(tl.int64) * size + at
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    accumulate(y + at, tl.where(kept, value * scale, 0.0), beta, inside)
