"""Where arrays live (NumPy on the CPU, CuPy on a GPU, imported only when asked for) and what they are made of."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

#: The devices: the CPU, and CUDA's current GPU (CUDA_VISIBLE_DEVICES says which).
DEVICES = ("cpu", "cuda")

#: What `--precision` may say. bf16: activations of the image network are bfloat16, and what stays float32 is multiplied as in
#: tf32. tf32: arrays are float32, and a GPU multiplies them in TensorFloat-32; a CPU, which has no such unit, as in fp32.
PRECISIONS = ("fp32", "tf32", "bf16")

#: The oldest GPUs that the kernels run on: compute capability 8.0 (Ampere).
CAPABILITY = 80

_DECODING, _MOST_DECODING = 2, 16
_CPU_MAX = "/sys/fs/cgroup/cpu.max"

_module: ModuleType = np

# What `share` says of several processes on this machine.
_cpus: int | None = None
_shortage = ""


class DeviceError(RuntimeError):
    """A device that was asked for by name cannot be used; the text names what is missing and the remedy."""


# The current device ---------------------------------------------------------------------------------------------------


def current() -> str:
    """The device on which new arrays lie: "cpu" (at the start) or "cuda"."""
    return "cpu" if _module is np else "cuda"


def module() -> ModuleType:
    """The module that makes arrays of the current device: NumPy or CuPy."""
    return _module


def array_module(array: Any) -> ModuleType:
    """NumPy or CuPy, whichever `array` belongs to. CuPy is never imported by this."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def set_device(name: str) -> None:
    """New arrays lie on device `name` from now on. `backends.select` calls this, and resolves the kernels to match.

    Raises DeviceError for an unknown name, and for "cuda" where `obstacle` has something to say.
    """
    global _module
    require(name)
    if name == "cuda":
        import cupy

        _module = cupy
    else:
        _module = np


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within this, new arrays lie on device `name`. Kernels stay as they are: `backends.use` changes both."""
    global _module
    before = _module
    set_device(name)
    try:
        yield
    finally:
        _module = before


def require(name: str) -> None:
    """DeviceError unless device `name` exists and can be used."""
    if name not in DEVICES:
        raise DeviceError(f"device {name!r} is unknown; choose from auto, {', '.join(DEVICES)}")
    reason = (_shortage or obstacle()) if name == "cuda" else ""
    if reason:
        raise DeviceError(f"device cuda cannot be used: {reason}; or choose --device cpu")


def obstacle() -> str:
    """Why pycap cannot use a GPU here, with the remedy; empty where it can. Imports CuPy only where there is a driver."""
    reason = missing_driver()
    if reason:
        return reason
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import ({error}): pip install cupy-cuda13x, or cupy-cuda12x for a driver of CUDA 12"
    runtime = cupy.cuda.runtime
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if 0 < driver < built // 1000 * 1000:
            return (
                f"the driver is for CUDA {cuda_version(driver)}, CuPy for {cuda_version(built)}: update the driver, or "
                f"pip install cupy-cuda{driver // 1000}x"
            )
        return f"the driver shows no GPU ({error}): see what nvidia-smi and CUDA_VISIBLE_DEVICES say"
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < CAPABILITY:
        return f"the GPU is of compute capability {capability / 10}, and the kernels need {CAPABILITY / 10} or newer"
    return ""


def missing_driver() -> str:
    """Why CUDA's driver cannot be loaded, with the remedy; empty where it can."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver ({library} does not load): on a machine with an NVIDIA GPU, install its driver"
    return ""


def cuda_version(number: int) -> str:
    """CUDA's way to write a version as a number, 13020, as people do: 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


# Between host and device ----------------------------------------------------------------------------------------------


def to_device(array: Any) -> Any:
    """`array` (host or device) as an array of the current device: itself where it lies there, else a C-contiguous copy."""
    if _module is np:
        return array if isinstance(array, np.ndarray) else to_host(array)
    return array if isinstance(array, _module.ndarray) else _module.asarray(np.asarray(array, order="C"))


def to_host(array: Any) -> np.ndarray:
    """`array` (host or device) as a NumPy array: itself where it is one, else a copy, made when the device is done."""
    return np.asarray(array) if array_module(array) is np else array.get()


def assign(target: Any, array: Any) -> None:
    """target[...] = array, equally shaped, each on either side; from the host without a second copy on the device."""
    if array_module(target) is np:
        target[...] = to_host(array)
    elif array_module(array) is np:
        target.set(np.asarray(array, target.dtype, order="C"))
    else:
        target[...] = array


def pinned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array of the host, from which the current device can copy while the host goes on.

    For a GPU it lies in pinned memory, which CuPy's pool takes back when the array and all its views are gone; on the CPU
    it is an ordinary array. Raises DeviceError where the system gives no more pinned memory.
    """
    if _module is np:
        return np.empty(shape, np.uint8)
    cuda, nbytes = _module.cuda, math.prod(shape)
    try:
        pinned = cuda.alloc_pinned_memory(nbytes)
    except cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"{nbytes / 2**20:.0f} MiB more of pinned host memory cannot be had ({error}): lower --workers or --batch-size"
        ) from error
    return np.frombuffer(pinned, np.uint8, nbytes).reshape(shape)


def upload(target: Any, host: np.ndarray) -> None:
    """target = host, of equal shape and dtype, in the order of the current stream. The GPU reads page-locked memory while the
    host goes on, which must leave it unchanged until then (`Mark`)."""
    if array_module(target) is np:
        target[...] = host
    else:
        target.set(host, stream=_module.cuda.get_current_stream())


def download(host: np.ndarray, source: Any) -> None:
    """host = source, of equal shape and dtype, in the order of the current stream: there once a later `Mark` has been waited
    for."""
    if array_module(source) is np:
        host[...] = source
    else:
        source.get(out=host, stream=_module.cuda.get_current_stream(), blocking=False)


class Mark:
    """A point in the current device's work: what it was given before on the current stream."""

    def __init__(self) -> None:
        self._event = None if _module is np else _module.cuda.Event(disable_timing=True)
        if self._event is not None:
            self._event.record()

    @property
    def passed(self) -> bool:
        """Whether the device has come this far."""
        return self._event is None or bool(self._event.done)

    def wait(self) -> None:
        """Until the device has come this far."""
        if self._event is not None:
            self._event.synchronize()


def address(array: Any) -> int:
    """Where the first element lies: a pointer of the host or of the GPU."""
    return array.__array_interface__["data"][0] if array_module(array) is np else array.data.ptr


def synchronize() -> None:
    """Wait until the current device has done all that it was given."""
    if _module is not np:
        _module.cuda.get_current_stream().synchronize()


# What arrays are made of ----------------------------------------------------------------------------------------------


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


def float32_products(precision: str) -> str:
    """How float32 matrices are multiplied for a value of `--precision`: what `backends.set_float32_products` takes."""
    return "fp32" if precision == "fp32" else "tf32"


def share(cpus: int | None, shortage: str = "") -> None:
    """Several processes compute on this machine. cpus: how many CPUs are this one's (None: all that it may use). shortage: why
    there are not GPUs enough for them, which makes "cuda" a DeviceError where it is asked for, and where "auto" would take it.
    """
    global _cpus, _shortage
    _cpus, _shortage = cpus, shortage


def cpu_count() -> int:
    """CPUs that this process may use: what OMP_NUM_THREADS says, or its part (`share`), or its affinity mask, and of those no
    more than the container's share of time (`docker run --cpus`)."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return allowed_cpus() if _cpus is None else _cpus


def allowed_cpus() -> int:
    """CPUs of this process's affinity mask, and of those no more than the container's share of time: more threads wait for each
    other."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _quota(cpus))


def _quota(unlimited: int) -> int:
    """CPUs' worth of time that a container may use (cgroup v2), rounded up. More threads than that wait for each other while
    the system lets none of them run."""
    try:
        with open(_CPU_MAX) as file:
            time, period = file.read().split()
    except OSError:  # another system, or cgroup v1
        return unlimited
    return unlimited if time == "max" else max(1, -(-int(time) // int(period)))


def decoding_threads(cpus: int, processes: int = 1) -> int:
    """Threads that decode images in a process that has so many CPUs for itself: all of them, 16 at most, where a GPU computes;
    else two for all `processes` of this machine, since the kernels need the CPUs."""
    return max(_DECODING // processes, 1) if current() == "cpu" else min(cpus, _MOST_DECODING)
