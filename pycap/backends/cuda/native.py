"""The compiled CUDA kernels: pycap._cuda on a GPU, or pycap._cuda_emu, which runs the same sources on the CPU for tests."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pycap import backends
from pycap.backends.triton.launching import Array, assumed, gpu, interpreting, suppressed
from pycap.device import address

__all__ = [
    "aligned", "asked", "call", "capability", "check", "emulated", "expect_types", "module", "multiprocessors",
    "shared_limit",
]  # fmt: skip

_SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10}  # of GPUs that are planned for; the others: as sm_86
_PLAIN = frozenset((int, float, bool))  # types of arguments that go through as they are
_functions: dict[str, Callable[..., None]] = {}  # by name, once called


def emulated() -> bool:
    """Whether kernels run on the CPU, on NumPy arrays: wherever Triton's are interpreted, which serve beside them."""
    return interpreting()


@cache
def module() -> ModuleType:
    """pycap._cuda, or pycap._cuda_emu where `emulated`. ImportError says how to build it."""
    if emulated():
        try:
            return importlib.import_module("pycap._cuda_emu")
        except ImportError as error:
            raise ImportError(f"{error}: `make emulation` builds pycap._cuda_emu") from error
    try:
        return importlib.import_module("pycap._cuda")
    except ImportError as error:
        raise ImportError(
            f"{error}: pycap was built without nvcc (CUDA 12 or newer); put it on PATH, and `make dev` builds pycap._cuda"
        ) from error


def check() -> None:
    """Raise ImportError, with the reason and the remedy, where the compiled kernels cannot run here."""
    try:
        module().gpu()
    except RuntimeError as error:  # the runtime that it was built with wants a newer driver
        raise ImportError(f"pycap._cuda cannot use this GPU: {error}") from error


def asked() -> bool:
    """Whether the backend was asked for by name: its kernels serve wherever they can, whatever the table prefers."""
    return backends.named() == "cuda"


def aligned(*arrays: Array | None) -> bool:
    """Whether all arrays, but those that are None, lie at multiples of 16 bytes."""
    bits = 0
    for array in arrays:
        if array is not None:
            bits |= address(array)
    return bits & 15 == 0


def expect_types(primitive: str, dtype: DTypeLike, **arrays: Array | None) -> None:
    """Check that arrays are of one type, None aside: the kernels get bare addresses. TypeError names the array."""
    for name, array in arrays.items():
        if array is not None and array.dtype != dtype:
            raise TypeError(f"{primitive}: {name} must be {np.dtype(dtype)}, got {array.dtype}")


def multiprocessors() -> int:
    """How many multiprocessors the current GPU, or the emulated one, has."""
    return _facts()[0]


def capability() -> int:
    """The compute capability of the current GPU, or the emulated one, times ten: 90."""
    return _facts()[1]


def shared_limit() -> int:
    """Bytes of shared memory that a block of threads may have on the current GPU, or the emulated one."""
    return _facts()[2]


def _facts() -> tuple[int, int, int]:
    planned = assumed()
    if planned is not None:
        number = int(planned.arch.removeprefix("sm_"))
        return planned.multiprocessors, number, _SHARED_LIMIT.get(planned.arch, 99 << 10)
    return module().gpu() if emulated() else _facts_of(gpu().device())


@cache
def _facts_of(device: int) -> tuple[int, int, int]:
    return module().gpu()


def call(name: str, *arguments: Any) -> None:
    """Call a function of the compiled module: arrays go as addresses, None as 0, and CuPy's current stream is appended.

    ValueError for an array that is not C-contiguous, for sizes that the kernel does not take; RuntimeError for what CUDA or
    the emulation reports. Emulated, the kernel may touch these arrays and no other memory. Nothing happens while launches are
    suppressed.
    """
    if suppressed():
        return
    function = _functions.get(name)
    if function is None:
        function = _functions[name] = getattr(module(), name)
    on_cpu, sent = emulated(), []
    for argument in arguments:
        if type(argument) in _PLAIN:
            sent.append(argument)
        elif argument is None:
            sent.append(0)
        elif isinstance(argument, np.generic):
            sent.append(argument.item())
        elif argument.flags.c_contiguous:
            sent.append(address(argument) if on_cpu else argument.data.ptr)
        else:
            raise ValueError(f"{name}: argument {len(sent)}, of shape {argument.shape}, must be C-contiguous")
    if on_cpu:
        _emulate(function, sent, [a for a in arguments if isinstance(a, np.ndarray)])
    else:
        function(*sent, gpu().stream().ptr)


def _emulate(function: Callable[..., None], sent: Sequence[Any], arrays: Iterable[Array]) -> None:
    spans = [(address(array), array.nbytes) for array in arrays]
    module().track(spans)
    try:
        function(*sent, 0)
    finally:
        module().untrack(spans)
