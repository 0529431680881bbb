"""A pytest plugin for builds that watch memory: arrays of `pycap.memory`, and scratch, end where they say they end.

The pool hands out blocks that are somewhat larger than the array, and one scratch that is larger than most calls need: a
kernel could write past the end of its array and a sanitizer see nothing wrong. With `-p tests.sanitizers.exact` each of
them is a block of its own from malloc, which the sanitizer fences.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pycap import device, memory
from pycap.backends import cpp

_ALIGN = 64  # bytes, as `pycap.memory` promises
_libc = ctypes.CDLL(None)  # where a sanitizer's run time is loaded first, its malloc
_libc.free.argtypes = [ctypes.c_void_p]


class Exact:
    """Arrays that begin and end with a block of memory; a source for `memory.taking_from`."""

    poisons = True

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An uninitialised C-contiguous array; of the module of the device where that is a stand-in for a GPU."""
        if device.module() is not np:
            return device.module().empty(shape, dtype)
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes == 0:
            return np.empty(shape, dtype)
        address = ctypes.c_void_p()
        if _libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(_ALIGN), ctypes.c_size_t(nbytes)):
            raise MemoryError(f"no {nbytes} bytes")
        block = (ctypes.c_char * nbytes).from_address(address.value)
        weakref.finalize(block, _libc.free, address.value)
        return np.frombuffer(block, np.uint8).view(dtype).reshape(shape)

    def workspace(self, nbytes: int) -> Any:
        """Scratch of exactly this size, another one at each call."""
        return self.empty((nbytes,), np.dtype(np.uint8))


def pytest_sessionstart() -> None:
    """The whole run is for nothing on another build."""
    if not cpp.info()["sanitize"]:
        pytest.exit(f"{cpp._cpu.__file__} is built without a sanitizer: run `make sanitize`", returncode=4)


@pytest.fixture(autouse=True)
def _exact_arrays() -> Iterator[None]:
    with memory.taking_from(Exact()):
        yield
