"""Which array module an array or a device name belongs to: NumPy on the CPU, CuPy on a GPU (imported only when asked for)."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import numpy as np


def array_module(array: Any) -> ModuleType:
    """NumPy or CuPy, whichever `array` belongs to. CuPy is never imported by this."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def cpu_count() -> int:
    """CPUs that this process may use: its affinity mask, or what OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
