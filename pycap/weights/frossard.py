"""Frossard's vgg16_weights.npz: kernels HWIO, filters that read RGB, fc6 flattened H, W, C, means subtracted as Caffe does."""

from __future__ import annotations

import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pycap.weights.canonical import CAFFE_MEAN, CAFFE_STD, VGGWeights, WeightsError, listed, need_shape

_NAME = re.compile(r"(conv[1-9]_[1-9]|fc[678])_([Wb])")
_RATIO = 16  # bytes in memory for one of the file; trained weights can hardly be compressed
# What damaged zip files and damaged headers of arrays raise: those of arrays are parsed as Python's literals.
_ERRORS = (
    ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError, SyntaxError, MemoryError, zipfile.BadZipFile,
    zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
_KINDS = {"W": "weight", "b": "bias"}


def read(path: Path) -> VGGWeights:
    """Arrays named conv1_1_W, conv1_1_b ... fc8_b. Pickled arrays are refused. WeightsError names what is amiss."""
    arrays: dict[str, np.ndarray] = {}
    unknown, dropped = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _require_size(path, entries)
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                found = _NAME.fullmatch(name)
                if found is None:
                    unknown.append(name)
                elif found[1] == "fc8":
                    dropped.append(name)
                else:
                    arrays[f"{found[1]}.{_KINDS[found[2]]}"] = _ours(path, name, found[1], _array(path, archive, entry))
    except WeightsError:
        raise
    except _ERRORS as error:
        raise WeightsError(f"{path}: not a whole .npz of arrays ({str(error)[:300]}); fetch it again") from error
    if unknown or not arrays:
        what = f"unexpected {listed(unknown)}" if unknown else "no weights in it"
        raise WeightsError(f"{path}: not Frossard's VGG: {what}; wanted are conv1_1_W, conv1_1_b ... fc7_b")
    return VGGWeights(arrays, path, "frossard", CAFFE_MEAN, CAFFE_STD, dropped=tuple(dropped))


def _require_size(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """WeightsError for what is said to unpack to much more than weights do: a bomb."""
    total, size = sum(entry.file_size for entry in entries), os.stat(path).st_size
    if total > _RATIO * size:
        raise WeightsError(
            f"{path}: is said to unpack to {total:,} bytes, and has {size:,}; weights do not; fetch it again"
        )


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """An array whose header says what the entry holds. NumPy's own reader makes room for what the header says, whatever
    that is."""
    name, form = entry.filename, np.lib.format
    with archive.open(entry) as file:
        version = form.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise WeightsError(f"{path}: {name} is of version {version} of NumPy's form; save it anew")
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, by_columns, dtype = read(file)
        if dtype.hasobject:
            raise WeightsError(
                f"{path}: {name} holds pickled objects, which are not read (allow_pickle); give plain arrays"
            )
        count = math.prod(shape)
        if min(shape, default=0) < 0 or count * dtype.itemsize > entry.file_size:
            raise WeightsError(
                f"{path}: {name} is said to be {dtype} {list(shape)}, and has {entry.file_size:,} bytes; fetch it again"
            )
        data = file.read()  # to its end, where its sum is checked
    flat = np.frombuffer(data, dtype, count)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _ours(path: Path, name: str, layer: str, array: np.ndarray) -> np.ndarray:
    if name.endswith("b"):
        return need_shape(path, name, array, (None,), "out")
    if layer.startswith("fc"):
        return need_shape(path, name, array, (None, None), "in, out").T
    inputs = 3 if layer == "conv1_1" else None
    return need_shape(path, name, array, (3, 3, inputs, None), "3, 3, in, out").transpose(3, 0, 1, 2)
