"""Device functions that several kernels share."""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. PRECISION: of float32 products, "tf32", "tf32x3" or "ieee"; "interpreter" in the interpreter."""
    if PRECISION == "interpreter":  # which takes bfloat16 for integers in a product
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def accumulate(pointer, value, beta, mask):
    """pointer = beta * pointer + value, rounded once; with beta 0 the old contents are not read."""
    if beta != 0.0:
        value += beta * tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def mix(x):
    """A bijection of 32-bit words that spreads every bit over all (Wellons's lowbias32). x: uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_keep(counter, seed_low, seed_high, threshold):
    """Whether dropout keeps the elements of these counters (`dropout` in pycap.backends); all modulo 2**32.

    counter: integers, of which the low 32 bits count. seed_low, seed_high: the halves of the seed. threshold: p * 2**32.
    """
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    return mix(mix(counter.to(tl.uint32) + low) ^ high) >= threshold.to(tl.uint32)
