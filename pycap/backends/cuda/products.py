"""The number by which CUDA kernels are told what they multiply, and how: csrc/cuda/products.h."""

from __future__ import annotations

from pycap import backends
from pycap.backends.triton.launching import Array, element

_NUMBERS = {"tf32x3": 0, "tf32": 1, "bf16": 2, "fp16": 3}


def products(array: Array) -> int | None:
    """The number for factors of `array`'s type, or None where it is none that the kernels take."""
    name = element(array)
    if name == "fp32":
        name = "tf32" if backends.float32_products() == "tf32" else "tf32x3"
    return _NUMBERS.get(name)
