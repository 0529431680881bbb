"""The CUDA driver, called through ctypes: loads machine code and launches it. Nothing here needs Triton or CuPy.

Errors carry the driver's own name for them. Source: the CUDA driver API's reference manual.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

_LIBRARY = "libcuda.so.1"
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0  # CU_LAUNCH_PARAM_*
_COOPERATIVE = 2  # CU_LAUNCH_ATTRIBUTE_COOPERATIVE
_TENSOR_MAP_BYTES = 128
_TENSOR_MAP_TYPES = {"u8": 0, "fp16": 6, "fp32": 7, "bf16": 9}  # CU_TENSOR_MAP_DATA_TYPE_*
_PROMOTE_TO_128_BYTES = 2  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B
_PARAMETER_BYTES = 4096  # the most that a kernel of any supported architecture takes


class DriverError(RuntimeError):
    """The CUDA driver is missing or refused a call."""


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class _LaunchConfig(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class _Parameters(threading.local):
    """One thread's buffer for a launch's parameters: the driver copies it before the call returns."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(_PARAMETER_BYTES)
        self.size = ctypes.c_size_t(0)
        self.extra = (ctypes.c_void_p * 5)(
            _BUFFER_POINTER, ctypes.addressof(self.buffer), _BUFFER_SIZE, ctypes.addressof(self.size), _END
        )


parameters = _Parameters()


class Driver:
    """The calls that a launch needs, on a loaded driver library (another than the system's: for tests)."""

    def __init__(self, library: Any = None) -> None:
        if library is None:
            try:
                library = ctypes.CDLL(_LIBRARY)
            except OSError as error:
                raise DriverError(f"{_LIBRARY} was not found: install NVIDIA's driver ({error})") from error
        self.library = library
        pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
        library.cuLaunchKernel.argtypes = [pointer, *[unsigned] * 7, pointer, pointer, pointer]
        library.cuLaunchKernelEx.argtypes = [ctypes.POINTER(_LaunchConfig), pointer, pointer, pointer]
        library.cuModuleLoadData.argtypes = [ctypes.POINTER(pointer), ctypes.c_char_p]
        library.cuModuleGetFunction.argtypes = [ctypes.POINTER(pointer), pointer, ctypes.c_char_p]
        library.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
        library.cuTensorMapEncodeTiled.argtypes = [
            pointer, ctypes.c_int, ctypes.c_uint, pointer, pointer, pointer, pointer, pointer, *[ctypes.c_int] * 4,
        ]  # fmt: skip
        library.cuGetErrorName.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
        self.launch_kernel = library.cuLaunchKernel

    def check(self, status: int, what: str) -> None:
        """Raise DriverError, naming `what` was tried, where the status is not success."""
        if status:
            name = ctypes.c_char_p()
            self.library.cuGetErrorName(status, ctypes.byref(name))
            raise DriverError(f"{what}: {(name.value or b'unknown error').decode()} ({status})")

    def load(self, cubin: bytes, symbol: str, shared: int) -> int:
        """The handle of a function in machine code, allowed `shared` bytes of dynamic shared memory.

        Needs a current CUDA context. The module stays loaded for the life of the process.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.library.cuModuleLoadData(ctypes.byref(module), cubin), f"loading the machine code of {symbol}")
        found = self.library.cuModuleGetFunction(ctypes.byref(function), module, symbol.encode())
        self.check(found, f"finding {symbol} in its machine code")
        if shared > 48 * 1024:
            allowed = self.library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared)
            self.check(allowed, f"{symbol}: asking for {shared} bytes of shared memory")
        return int(function.value or 0)

    def tensor_map(
        self, address: int, element: str, shape: Sequence[int], strides: Sequence[int], box: Sequence[int], swizzle: int
    ) -> bytes:
        """A tensor map (CUtensorMap): how the copy engine moves boxes of an array; what lies outside the array is 0.

        strides: bytes, a multiple of 16 but for the last, which is an element's size. swizzle: CUtensorMapSwizzle. Raises
        DriverError where the driver refuses the layout.
        """
        rank = len(shape)
        raw = ctypes.create_string_buffer(_TENSOR_MAP_BYTES + 64)
        start = -ctypes.addressof(raw) % 64
        innermost_first = slice(None, None, -1)
        status = self.library.cuTensorMapEncodeTiled(
            ctypes.addressof(raw) + start, _TENSOR_MAP_TYPES[element], rank, address,
            (ctypes.c_uint64 * rank)(*shape[innermost_first]), (ctypes.c_uint64 * rank)(*strides[innermost_first][1:]),
            (ctypes.c_uint32 * rank)(*box[innermost_first]), (ctypes.c_uint32 * rank)(*[1] * rank),
            0, swizzle, _PROMOTE_TO_128_BYTES, 0,
        )  # fmt: skip
        self.check(status, f"describing an array {tuple(shape)} of {element} in boxes of {tuple(box)}")
        return raw.raw[start : start + _TENSOR_MAP_BYTES]

    def launch_cooperative(
        self, function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, extra: Any
    ) -> int:
        """Launch with all blocks running at once; returns the driver's status."""
        attribute = _Attribute(id=_COOPERATIVE, value=1)
        config = _LaunchConfig(
            (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(threads, 1, 1), shared, stream, ctypes.pointer(attribute), 1
        )
        return self.library.cuLaunchKernelEx(ctypes.byref(config), function, None, extra)
