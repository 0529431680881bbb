"""Safetensors files: written with a hash of their bytes, and mapped into memory instead of read.

Format: https://huggingface.co/docs/safetensors. Files may come from anyone: what a header says is believed once it has been
checked, and nothing is made that is larger than a fixed multiple of `HEADER_LIMIT`, or than the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
#: Bytes of a header; safetensors' own limit is 100 MB. A VGG16 captioner's has 7 kB, so this is room for thousands of arrays;
#: what a hostile one becomes in Python takes 27 times as much at most.
HEADER_LIMIT = 1 << 20
_MOST_BYTES = 1 << 62  # of an array, those of none included: NumPy counts them in 63 bits
_MOST_DIMENSIONS = 32
_ALIGNMENT = 8


class TensorFileError(ValueError):
    """A file that is no whole safetensors file, or holds what NumPy has no dtype for; the text says what and where."""


class _Span(NamedTuple):
    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def map_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by name, and its metadata.

    The arrays lie in a private mapping of the file: nothing is read before it is used, processes share the pages, and
    what is written to an array stays in this process's memory (copy on write), never in the file. The file may be
    deleted or renamed meanwhile, but must not be changed in place. An array that lies askew in the file (older writers
    did that) is copied.

    Raises:
        TensorFileError: a damaged file, or a dtype NumPy lacks.
        OSError: the file cannot be opened or mapped.
    """
    return arrays_of(map_file(path))


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """A private mapping of a whole file, for `arrays_of`; TensorFileError where it is too short to be one."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise TensorFileError(f"it has {size} bytes, and its header's length alone takes 8")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def arrays_of(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a mapped file by name, and its metadata. TensorFileError as `map_arrays`."""
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise TensorFileError(f"its header ends at byte {start} of {len(data)}")
    if start - 8 > HEADER_LIMIT:
        raise TensorFileError(f"its header has {start - 8} bytes, and at most {HEADER_LIMIT} are read")
    header = _header(data[8:start])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorFileError("its __metadata__ is no text by name")
    spans = sorted(_span(name, entry) for name, entry in header.items())
    _check_places(spans, len(data) - start)
    arrays = {}
    for begin, end, name, dtype, shape in spans:
        array: np.ndarray = np.ndarray(shape, _DTYPES[dtype], data, start + begin if begin < end else 0)
        arrays[name] = array if array.flags.aligned else array.copy()
    return arrays, metadata


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Write arrays to a new file, synced; returns the SHA-256 of all its bytes, as they were in memory.

    Raises:
        TensorFileError: a dtype that the format lacks, or a header that would be refused when it is read.
        OSError: of the disk; what stands there then is not whole.
    """
    flat = {name: little_endian(array) for name, array in arrays.items()}
    for name, array in flat.items():
        if array.dtype not in _NAMES:
            raise TensorFileError(
                f"{shown(name)} is of dtype {array.dtype}, and only {', '.join(_DTYPES)} can be written"
            )
    order = sorted(
        flat, key=lambda name: (-flat[name].itemsize, name)
    )  # so that each lies at a multiple of its itemsize
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        array = flat[name]
        entries[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > HEADER_LIMIT:
        raise TensorFileError(f"the header of {len(flat)} arrays has {len(header)} bytes, more than {HEADER_LIMIT}")
    told = hashlib.sha256()
    with open(path, "wb") as file:
        _put(file, told, len(header).to_bytes(8, "little") + header)
        for name in order:
            _put(file, told, bytes_of(flat[name]))
        file.flush()
        os.fsync(file.fileno())
    return told.hexdigest()


def little_endian(array: np.ndarray) -> np.ndarray:
    """`array` as the format stores it, C-contiguous; itself where it is so already."""
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, in place."""
    return array.reshape(-1).view(np.uint8).data


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(..., object_pairs_hook=unique)`: an object whose keys differ; of equal ones JSON would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands in it twice")
    return found


def shown(value: object) -> str:
    """What a file says, in an error: on one line, and no longer than that."""
    text = repr(value) if not isinstance(value, str) or not value.isprintable() else value
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _put(file: BinaryIO, told: Any, data: bytes | memoryview) -> None:
    told.update(data)
    file.write(data)


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise TensorFileError(f"its header is no safetensors header ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict):
        raise TensorFileError(f"its header is no safetensors header (it is {shown(header)})")
    return header


def _span(name: str, entry: Any) -> _Span:
    """What the header says of one array; that it is of the right form."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(
            f"its header is no safetensors header ({shown(name)} has not dtype, shape and data_offsets: {shown(entry)})"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise TensorFileError(f"{shown(name)} is of dtype {shown(dtype)}, and NumPy has only {', '.join(_DTYPES)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise TensorFileError(f"{shown(name)} has the {what} {shown(numbers)}, not whole numbers from 0")
    if len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
        raise TensorFileError(
            f"{shown(name)} has {len(offsets)} offsets and {len(shape)} dimensions; 2 and at most {_MOST_DIMENSIONS} are right"
        )
    return _Span(offsets[0], offsets[1], name, dtype, tuple(shape))


def _check_places(spans: list[_Span], size: int) -> None:
    """Each array has the bytes that its shape needs, and together they fill the `size` bytes of data without a hole."""
    at = 0
    for begin, end, name, dtype, shape in spans:
        if begin != at or end - begin != _needed(name, dtype, shape):
            raise TensorFileError(
                f"{shown(name)}, {dtype} {shown(shape)}, is said to lie in bytes {shown(begin)} to {shown(end)}, after {at}"
            )
        at = end
    if at != size:
        raise TensorFileError(f"its arrays take {shown(at)} bytes, and it holds {size}")


def _needed(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array. Its dimensions are multiplied only as long as the product is small, also where one of them is 0."""
    extent = np.dtype(_DTYPES[dtype]).itemsize
    for side in shape:
        extent *= max(side, 1)
        if extent > _MOST_BYTES:
            raise TensorFileError(f"{shown(name)} has the shape {shown(shape)}, which is larger than any memory")
    return 0 if 0 in shape else extent
