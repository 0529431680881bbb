"""Arrays of a safetensors file, mapped into memory instead of read: the system brings in what is used, once."""

from __future__ import annotations

import json
import math
import mmap
import os
from typing import Any

import numpy as np

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit


class TensorFileError(ValueError):
    """A file that is no whole safetensors file, or holds what NumPy has no dtype for; the text says what and where."""


def map_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by name, and its metadata.

    The arrays lie in a private mapping of the file: nothing is read before it is used, processes share the pages, and
    what is written to an array stays in this process's memory (copy on write), never in the file. The file may be
    deleted or renamed meanwhile, but must not be changed in place. An array that lies askew in the file (older writers
    did that) is copied. Format: https://huggingface.co/docs/safetensors

    Raises:
        TensorFileError: a damaged file, or a dtype NumPy lacks.
        OSError: the file cannot be opened or mapped.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        if size < 8 or not 8 <= start <= min(size, _HEADER_LIMIT):
            raise TensorFileError(f"its header ends at byte {start} of {size}")
        try:
            header = json.loads(file.read(start - 8))
            metadata = header.pop("__metadata__", {})
            spans = {
                name: (*entry["data_offsets"], entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TensorFileError(f"its header is no safetensors header ({type(error).__name__}: {error})") from error
        _check(spans, size - start)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    arrays = {}
    for name, (begin, _, dtype, shape) in spans.items():
        array = np.ndarray(shape, _DTYPES[dtype], data, start + begin if math.prod(shape) else 0)
        arrays[name] = array if array.flags.aligned else array.copy()
    return arrays, metadata


def _check(spans: dict[str, tuple[Any, ...]], size: int) -> None:
    """Each array has the bytes that its shape needs, and together they fill the `size` bytes of data without a hole."""
    at = 0
    for name, (begin, end, dtype, shape) in sorted(spans.items(), key=lambda span: span[1][:2]):
        if dtype not in _DTYPES:
            raise TensorFileError(f"{name} is of dtype {dtype}, and NumPy has only {', '.join(_DTYPES)}")
        if (
            begin != at
            or end - begin != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
            or min(shape, default=0) < 0
        ):
            raise TensorFileError(f"{name}, {dtype} {shape}, is said to lie in bytes {begin} to {end}, after {at}")
        at = end
    if at != size:
        raise TensorFileError(f"its arrays take {at} bytes, and it holds {size}")
