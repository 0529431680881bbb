"""State dicts that torch.save wrote, read without torch and without running anything that the file asks for.

A pickle is a program: it may name any function of any module and have it called. This reader answers four names, those of
which a state dict consists (OrderedDict, tensors, parameters, storages), with stand-ins that only note shapes, and refuses
every other by name before anything is made of it. Both of torch's forms are read: the zip file (torch 1.6 and newer) and the
row of pickles before it, in which torchvision's oldest VGGs lie.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from pycap.weights import opcodes
from pycap.weights.canonical import WeightsError

#: How the row of pickles begins: torch's magic number, pickled with protocol 2.
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "bf16", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "u1",
}  # fmt: skip
_REMEDY = "get the weights as safetensors, or save the bare state dict anew"
# What damaged pickles make the machine in `pickle` raise.
_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ImportError, MemoryError,
    OverflowError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


class _Inert:
    """What a pickle may hold of ours: nothing can be set on it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError(f"sets the state of a {type(self).__name__.strip('_').lower()}")


class _StorageType(_Inert):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _Storage(_Inert):
    __slots__ = ("dtype", "key", "length")

    def __init__(self, dtype: str, key: str, length: int) -> None:
        self.dtype, self.key, self.length = dtype, key, length

    @property
    def nbytes(self) -> int:
        return self.length * (2 if self.dtype == "bf16" else np.dtype(self.dtype).itemsize)


class _Tensor(_Inert):
    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        for numbers in ((offset,), shape, strides):
            if not isinstance(numbers, tuple) or not all(type(n) is int and n >= 0 for n in numbers):
                raise pickle.UnpicklingError(f"a tensor with the offset, shape or strides {repr(numbers)[:200]}")
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise pickle.UnpicklingError(f"a tensor of the shape {shape} and the strides {strides} over {storage!r}")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
        if math.prod(shape) and reach > storage.length:
            raise pickle.UnpicklingError(f"a tensor that reaches element {reach} of a storage of {storage.length}")
        if math.prod(shape) > storage.length:
            raise pickle.UnpicklingError(f"a tensor of the shape {shape} that repeats a storage of {storage.length}")


class _Builder(_Inert):
    """Stands where the pickle names one of torch's functions."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., object]) -> None:
        self.build = build

    def __call__(self, *arguments: object) -> object:
        return self.build(*arguments)


def _tensor(storage: object, offset: object, shape: object, strides: object, *hooks: object) -> _Tensor:
    """hooks: requires_grad, backward hooks, metadata: of no use here."""
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: object, *hooks: object) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError(f"a parameter made of {type(tensor).__name__}")
    return tensor


_ANSWERS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Builder(_parameter),
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(opcodes.checked(file), encoding="utf-8")
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ANSWERS[module, name]
        except KeyError:
            raise WeightsError(
                f"{self.path}: its pickle asks for {module}.{name}, and a state dict has no use for that; nothing of it was "
                f"run; {_REMEDY}"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _place, length, *view = pid
        known = kind == "storage" and isinstance(storage_type, _StorageType) and isinstance(key, str)
        if not known or type(length) is not int or length < 0 or any(v is not None for v in view):
            raise pickle.UnpicklingError(f"refers to {repr(pid)[:200]}, which is no storage of a tensor")
        new = _Storage(storage_type.dtype, key, length)
        before = self.storages.setdefault(key, new)
        if (before.dtype, before.length) != (new.dtype, new.length):
            raise pickle.UnpicklingError(f"storage {key} is of two dtypes or lengths")
        return before


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a state dict.

    Raises:
        WeightsError: another thing than tensors by name, a name that the pickle may not ask for, or a damaged file.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(path, archive)
        with open(path, "rb") as file:
            return _read_row(path, file)
    except WeightsError:
        raise
    except (*_PICKLE_ERRORS, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path}: not a state dict, or damaged ({type(error).__name__}: {str(error)[:300]}); {_REMEDY}"
        ) from error


def _read_zip(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    entries = {info.filename: info for info in archive.infolist()}
    packed = [name for name, info in entries.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed:  # and so could grow to any size
        raise WeightsError(f"{path}: {packed[0]} in it is compressed, which torch.save never does; {_REMEDY}")
    if sum(info.file_size for info in entries.values()) > os.stat(path).st_size:
        raise WeightsError(f"{path}: its parts are said to have more bytes than it has; {_REMEDY}")
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(
            f"{path}: a zip file with {len(pickles)} data.pkl in it, where torch.save writes one; {_REMEDY}"
        )
    folder = pickles[0].removesuffix("data.pkl")
    big = f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") == b"big"
    with archive.open(pickles[0]) as file:
        unpickler = _Unpickler(file, path)
        tensors = _tensors(path, unpickler.load())

    def data(storage: _Storage) -> bytes:
        info = entries.get(f"{folder}data/{storage.key}")
        if info is None or info.file_size != storage.nbytes:
            has = f"{info.file_size} bytes" if info else "no data"
            raise WeightsError(f"{path}: storage {storage.key} has {has}, not {storage.nbytes} bytes; fetch it again")
        return archive.read(info)

    return _arrays(tensors, data, big)


def _read_row(path: Path, file: IO[bytes]) -> dict[str, np.ndarray]:
    """torch's older form: magic number, protocol, machine, the object, the storages' keys, the storages."""
    _Unpickler(file, path).load()  # the magic number, by which the form was known
    protocol, machine = _Unpickler(file, path).load(), _Unpickler(file, path).load()
    if protocol != _LEGACY_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise WeightsError(f"{path}: of torch's protocol {protocol}, written on {repr(machine)[:200]}; {_REMEDY}")
    unpickler = _Unpickler(file, path)
    tensors = _tensors(path, unpickler.load())
    stored: dict[str, bytes] = {}
    for key in _Unpickler(file, path).load():
        storage = unpickler.storages.get(key)
        length = int.from_bytes(file.read(8), "little")
        if storage is None or storage.length != length:
            raise WeightsError(
                f"{path}: storage {key!r} has {length} elements, other than its tensors say; fetch it again"
            )
        stored[key] = file.read(storage.nbytes)
        if len(stored[key]) != storage.nbytes:
            raise WeightsError(f"{path}: ends within storage {key!r}; it was cut short, fetch it again")
    return _arrays(tensors, lambda storage: stored[storage.key], False)


def _tensors(path: Path, found: object) -> dict[str, _Tensor]:
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds a {type(found).__name__.strip('_')}, not a state dict; {_REMEDY}")
    others = [f"{key!r}" for key, value in found.items() if not (isinstance(key, str) and isinstance(value, _Tensor))]
    if others:
        raise WeightsError(
            f"{path}: {', '.join(others[:6])} in it: not tensors; save the bare state dict (of a training checkpoint usually "
            'checkpoint["state_dict"])'
        )
    return dict(found)


def _arrays(tensors: dict[str, _Tensor], data: Callable[[_Storage], bytes], big: bool) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in flat:
            flat[storage.key] = _flat(data(storage), storage.dtype, big)
        values = flat[storage.key][tensor.offset :]
        strides = tuple(s * values.itemsize for s in tensor.strides)
        # `_Tensor` has checked that this stays within the storage.
        arrays[name] = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
    return arrays


def _flat(data: bytes, dtype: str, big: bool) -> np.ndarray:
    order = ">" if big else "<"
    if dtype == "bf16":  # the upper half of a float32
        halves = np.frombuffer(data, f"{order}u2").astype(np.uint32)
        return (halves << 16).view(np.float32)
    return np.frombuffer(data, f"{order}{dtype}").astype(dtype, copy=False)
