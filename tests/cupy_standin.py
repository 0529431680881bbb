"""A stand-in for CuPy on NumPy memory, for machines without a GPU: as strict as CuPy in not mixing with NumPy arrays.

`make()` gives a module to be put in `sys.modules` as "cupy". Its `ndarray` is no NumPy array and becomes none by itself:
`np.asarray(it)` and any operation with a NumPy array of one axis or more raise TypeError, as they do in CuPy. New arrays
of `empty` hold NaN. `ndarray.reads` counts what a GPU would have to finish its work for: copies to the host, numbers, and
results whose size depends on what an array holds (`flatnonzero`, an index that is a mask).
Streams and their capture in graphs are `tests/cupy_streams.py`, pinned memory and pools `tests/cupy_memory.py`; exchanges
between GPUs are `tests/cupy_nccl.py`, which CuPy has as a module of its own, "cupy.cuda.nccl".

It has only what pycap uses; `tests/test_cupy_standin.py` holds each name against the real CuPy where that is installed.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests import cupy_memory as memory
from tests import cupy_streams as streams
from tests.cupy_memory import CUDARuntimeError

#: Methods and operators that give arrays.
METHODS = [
    "reshape", "astype", "copy", "sum", "mean", "max", "min", "all", "argmax", "argsort", "clip", "transpose", "swapaxes",
    "view", "ravel", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__",
    "__pow__", "__rpow__", "__matmul__", "__rmatmul__", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__",
    "__neg__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
]  # fmt: skip
IN_PLACE = ["__iadd__", "__isub__", "__imul__", "__itruediv__"]
ATTRIBUTES = ["shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"]
#: Functions of the module that take and give arrays.
FUNCTIONS = [
    "arange", "argsort", "concatenate", "cumsum", "exp", "full", "isfinite", "isnan", "log", "maximum", "ones", "pad",
    "sort", "sqrt", "take_along_axis", "tanh", "where", "zeros", "zeros_like",
]  # fmt: skip
CONSTANTS = ["bool_", "float32", "float64", "inf", "int32", "int64", "nan", "uint32", "uint64", "uint8"]


class ndarray:
    """An array of the device."""

    reads = 0
    __array_ufunc__ = None  # NumPy's operators leave the operation to ours, which refuse NumPy's arrays
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        self._host = host
        self._views = memory.views(host)

    def __array__(self, *arguments: Any, **how: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function: Any, *arguments: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} on an array of the device: make it with the device's module")

    def __getitem__(self, key: Any) -> ndarray:
        plain = _index(key)
        if _masks(plain):  # as many elements as are true
            _read_back()
        # With the ellipsis an element is an array of no axes, and a view.
        whole = plain if any(item is Ellipsis for item in plain) else (*plain, ...)
        own = self._host  # what is recorded must not keep arrays of the device alive
        return ndarray(streams.run(lambda: own[whole], [own, *plain]))

    def __setitem__(self, key: Any, value: Any) -> None:
        own, plain, host = self._host, _index(key), _plain(value)
        if _masks(plain) and np.ndim(host):  # each true element takes the next one; a number needs no count of them
            _read_back()
        if isinstance(host, (list, tuple)):
            streams.forbid_while_capturing()
        streams.run(lambda: own.__setitem__(plain, host), [plain, host], own)

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"device {self._host!r}"

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    @property
    def T(self) -> ndarray:
        return ndarray(self._host.T)

    @property
    def base(self) -> ndarray | None:
        return None if self._host.base is None else ndarray(self._host.base)  # type: ignore[arg-type]

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._host.ctypes.data)

    def fill(self, value: Any) -> None:
        own, plain = self._host, _plain(value)
        streams.run(lambda: own.fill(plain), [plain], own)

    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        if out is not None and (out.dtype != self.dtype or out.shape != self.shape):
            raise ValueError(f"{self.dtype} {self.shape} cannot be copied to {out.dtype} {out.shape}")
        taken = np.empty(self.shape, self.dtype, order) if out is None else out  # type: ignore[call-overload]
        ndarray.reads += blocking
        streams.copy(taken, self._host, taken, stream, blocking)
        return taken

    def set(self, array: np.ndarray, stream: Any = None) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"only a NumPy array can be set, not {type(array)}")
        if array.dtype != self.dtype or array.shape != self.shape:
            raise ValueError(f"{array.dtype} {array.shape} cannot be set to {self.dtype} {self.shape}")
        if not (self._host.flags.c_contiguous or self._host.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        streams.copy(self._host, array, array, stream, blocking=False)

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> list[Any]:
        return self.get().tolist()


def _plain(value: Any) -> Any:
    """An argument with the device's arrays as NumPy's; TypeError for a NumPy array among them."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray} in an operation on the device")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


def _index(key: Any) -> tuple[Any, ...]:
    """A key's parts, with the device's arrays as NumPy's. A list of numbers has to be copied to the device first."""
    if isinstance(key, list) or (isinstance(key, tuple) and any(isinstance(item, list) for item in key)):
        streams.forbid_while_capturing()
    plain = _plain(key)
    return plain if isinstance(plain, tuple) else (plain,)


def _masks(key: tuple[Any, ...]) -> bool:
    return any(isinstance(part, np.ndarray) and part.dtype == bool for part in key)


def _read_back() -> None:
    """What the host has to wait for, and what no stream that captures can do."""
    ndarray.reads += 1
    streams.forbid_while_capturing()


def _on_device(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_on_device, value))
    return ndarray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _lifted(function: Any, changes_first: bool = False, reads_back: bool = False) -> Any:
    """A NumPy function on arrays of the device.

    changes_first: it writes to its first argument. reads_back: the shape of what it gives depends on contents.
    """

    def lifted(*arguments: Any, **how: Any) -> Any:
        if reads_back:
            _read_back()
        plain, named = [_plain(value) for value in arguments], {name: _plain(value) for name, value in how.items()}
        writes = plain[0] if changes_first else named.get("out")
        return _on_device(streams.run(lambda: function(*plain, **named), [*plain, *named.values()], writes))

    return lifted


def _in_place(name: str) -> Any:
    changed = _lifted(getattr(np.ndarray, name), changes_first=True)

    def operator(self: ndarray, other: Any) -> ndarray:
        changed(self, other)
        return self

    return operator


for _name in METHODS:
    setattr(ndarray, _name, _lifted(getattr(np.ndarray, _name)))
for _name in IN_PLACE:
    setattr(ndarray, _name, _in_place(_name))
for _name in ATTRIBUTES:
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self._host, name)))


def _asarray(values: Any) -> ndarray:
    """Itself, or a copy of an array of the host: the one way onto the device besides `ndarray.set`."""
    if isinstance(values, ndarray):
        return values
    if np.ndim(values):  # a number is an argument of a kernel
        streams.forbid_while_capturing()
    return ndarray(streams.run(lambda: np.array(values)))


def _array(values: Any, dtype: Any = None) -> ndarray:
    """A copy of anything."""
    if not isinstance(values, ndarray) and np.ndim(values):
        streams.forbid_while_capturing()
    plain = _plain(values)
    return ndarray(streams.run(lambda: np.array(plain, dtype)))


def _empty(shape: Any, dtype: Any = float) -> ndarray:
    host = streams.new(np.empty(shape, dtype))
    host.reshape(-1).view(np.uint8).fill(0xFF)  # NaN in every float format
    return ndarray(host)


class Device:
    """The current GPU."""

    def __init__(self, id: int = 0) -> None:
        self.id = id

    compute_capability = "90"


def make(name: str = "Stand-in 9000", capability: tuple[int, int] = (9, 0), count: int = 1, driver: int = 13000) -> Any:
    """The module, on a new device. name, capability: of its GPU. count: GPUs; with none, counting them raises as CUDA does.
    driver: the CUDA version that it serves, 0: there is none."""

    def count_devices() -> int:
        if not count or driver < 13000:
            kind = "cudaErrorNoDevice: no CUDA-capable device is detected"
            raise CUDARuntimeError(
                kind if driver >= 13000 else "cudaErrorInsufficientDriver: insufficient for CUDA runtime"
            )
        return count

    def properties(number: int) -> dict[str, Any]:
        major, minor = capability
        own = {
            "name": name.encode(),
            "major": major,
            "minor": minor,
            "totalGlobalMem": 8 << 30,
            "multiProcessorCount": 4,
        }
        return own if number < count else {}

    streams.renew()
    module: Any = ModuleType("cupy")
    module.__version__ = "14.2.0"
    module.ndarray, module.asarray, module.array, module.empty = ndarray, _asarray, _array, _empty
    module.add = _lifted(np.add)
    module.add.at = _lifted(np.add.at, changes_first=True)
    module.flatnonzero = _lifted(np.flatnonzero, reads_back=True)
    for function in FUNCTIONS:
        setattr(module, function, _lifted(getattr(np, function)))
    for constant in CONSTANTS:
        setattr(module, constant, getattr(np, constant))
    pool = SimpleNamespace(free_bytes=lambda: 4096, free_all_blocks=lambda: None)
    module.get_default_memory_pool = lambda: pool
    module.cuda = SimpleNamespace(
        Device=type("Device", (Device,), {"compute_capability": f"{capability[0]}{capability[1]}"}),
        Stream=streams.Stream,
        Event=streams.Event,
        Graph=streams.Graph,
        MemoryPool=memory.MemoryPool,
        get_current_stream=streams.get_current_stream,
        get_elapsed_time=streams.get_elapsed_time,
        using_allocator=memory.using_allocator,
        alloc_pinned_memory=memory.alloc_pinned_memory,
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=count_devices,
            getDeviceProperties=properties,
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: 13020,
            memGetInfo=lambda: (7 << 30, 8 << 30),
        ),
    )
    return module
