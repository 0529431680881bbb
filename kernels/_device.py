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
