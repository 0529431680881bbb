"""What arrays are made of: NumPy or CuPy (imported only when asked for), float32 or bfloat16 (ml_dtypes, likewise)."""

from __future__ import annotations

import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np


def array_module(array: Any) -> ModuleType:
    """NumPy or CuPy, whichever `array` belongs to. CuPy is never imported by this."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


#: What `--precision` may say, and what activations of the image network are stored in then.
PRECISIONS = ("fp32", "bf16")


@cache
def bfloat16() -> np.dtype:
    """NumPy's dtype of bfloat16, which the package ml_dtypes defines. ImportError says how to get it."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def is_bfloat16(array: Any) -> bool:
    """Whether `array` is an array of bfloat16; anything else, None included, is not."""
    dtype = getattr(array, "dtype", None)
    return dtype is not None and dtype.kind == "V" and dtype.name == "bfloat16"


def activation_dtype(precision: str) -> np.dtype:
    """The dtype of activations for a value of `--precision`. Raises ValueError for one that is not in `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    return bfloat16() if precision == "bf16" else np.dtype(np.float32)


def cpu_count() -> int:
    """CPUs that this process may use: its affinity mask, or what OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
