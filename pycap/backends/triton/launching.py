"""What the modules of the Triton backend share: kernels and their rows, precision of products, scratch arrays, checks."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from types import ModuleType
from typing import Any

import numpy as np

from pycap import backends
from pycap.device import address, current
from pycap.memory import workspace

try:
    from pycap.kernels import configs
    from pycap.kernels._launch import TYPES, Kernel, Machine, arch, assumed, dry, gpu, interpreting, suppressed
    from pycap.kernels._rows import Row, choose
except ImportError:  # a checkout that is not installed: kernels/ stands at its top
    from kernels import configs
    from kernels._launch import TYPES, Kernel, Machine, arch, assumed, dry, gpu, interpreting, suppressed
    from kernels._rows import Row, choose

__all__ = [
    "ELEMENTS", "PRODUCTS", "Array", "Kernel", "Machine", "Row", "arch", "assumed", "blocks", "dry", "element", "expect",
    "forced", "gpu", "interpreting", "kernel_module", "multiprocessors", "odd", "place", "precision", "row", "row_of",
    "scratch", "suppressed",
]  # fmt: skip

Array = Any
_MULTIPROCESSORS = 16  # cudaDevAttrMultiProcessorCount

#: Variants of kernels with products that are built ahead: float32 as three TensorFloat-32 products, or as one; bfloat16.
PRODUCTS: tuple[dict[str, Any], ...] = (
    {"T": "fp32", "PRECISION": "tf32x3"},
    {"T": "fp32", "PRECISION": "tf32"},
    {"T": "bf16", "PRECISION": "ieee"},
)
#: Variants of the other kernels over activations.
ELEMENTS: tuple[dict[str, Any], ...] = ({"T": "fp32"}, {"T": "bf16"})


#: Rows that `row` gives instead of the table's, by kernel: what benchmarks.tune tries.
forced: dict[str, Row] = {}


def row(kernel: Kernel, array: Array, **sizes: int) -> Row:
    """The row of the configuration table for a kernel on arrays of `array`'s type; sizes as its rows' `upto` name them."""
    return row_of(kernel.name, array, **sizes)


def row_of(name: str, array: Array, **sizes: int) -> Row:
    """`row`, by the name in the table."""
    if forced and name in forced:
        return forced[name]
    return choose(configs.ROWS, name, arch(), element(array), **sizes)


def element(array: Array) -> str:
    """Triton's name of an array's type."""
    return _element(array.dtype)


@cache
def _element(dtype: np.dtype) -> str:
    return TYPES.get(dtype.name, dtype.name)  # a dtype makes its name anew each time, which takes longer than a launch


def precision(array: Array) -> str:
    """The constant PRECISION of a kernel that multiplies arrays of `array`'s type."""
    if interpreting():
        return "interpreter"
    if array.dtype != np.float32:
        return "ieee"
    return "tf32" if backends.float32_products() == "tf32" else "tf32x3"


def odd(*arrays: Array | None, sizes: Sequence[int] = ()) -> int:
    """0 where all arrays lie at multiples of 16 bytes and all sizes are multiples of 16, else 1: rows of the
    configuration table with upto={"odd": 0} serve the former only."""
    bits = 0
    for size in sizes:
        bits |= size
    if suppressed():  # on arrays of the host, perhaps
        for array in arrays:
            if array is not None and not interpreting():
                bits |= address(array)
    elif not interpreting():
        for array in arrays:
            if array is not None:
                bits |= array.data.ptr
    return int(bits & 15 != 0)


def blocks(n: int, size: int) -> int:
    """How many blocks of `size` cover n."""
    return -(-n // size)


def scratch(*shapes: tuple[Sequence[int], Any]) -> list[Array]:
    """Arrays of (shape, dtype) each in the workspace, 256-byte aligned; they live until the next request."""
    sizes = [math.prod(shape) * _itemsize(dtype) for shape, dtype in shapes]
    starts = list(accumulate((blocks(size, 256) * 256 for size in sizes), initial=0))
    raw = workspace(starts[-1])
    return [
        raw[start : start + size].view(dtype).reshape(shape)
        for (shape, dtype), size, start in zip(shapes, sizes, starts, strict=False)
    ]


@cache
def _itemsize(dtype: Any) -> int:
    return np.dtype(dtype).itemsize


def place() -> tuple[str, int]:
    """The current device and its number, by which to keep what was made on it (`to_device`)."""
    return current(), 0 if interpreting() or current() == "cpu" else gpu().device()


def multiprocessors() -> int:
    """How many multiprocessors the current GPU has."""
    planned = assumed()
    if planned is not None:
        return planned.multiprocessors
    machine = gpu()
    return machine.runtime.deviceGetAttribute(_MULTIPROCESSORS, machine.device())


def expect(primitive: str, **arrays: tuple[Array, tuple[int, ...]]) -> None:
    """Check shapes: name=(array or None, shape). Raises ValueError that names the primitive, the array and both shapes."""
    for name, (array, shape) in arrays.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{primitive}: {name} has shape {array.shape}, expected {shape}")


def kernel_module(name: str) -> ModuleType:
    """A module of the folder of kernels, as this package sees it: `pycap.kernels.NAME`, or `kernels.NAME` in a checkout."""
    return importlib.import_module(f"{Kernel.__module__.rpartition('.')[0]}.{name}")
