"""An HDF5 file of what a CNN sees in images, its fc7 vectors, so that a frozen CNN looks at each image once.

File: attributes `format`, `version`, `cnn`, `weights` (SHA-256 of the CNN's arrays), `preprocess` (JSON); `data`, float32
[N, F], a vector an image; `index`, one row for each of them: `name` (of the image's file, as its data set has it, in UTF-8,
255 bytes at most), `key` (BLAKE2b of the whole name and of the file's size, so that two images of one name are told apart)
and `crc` (CRC-32 of the vector). Vectors are of the centre crop, not mirrored.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError, Example
from pycap.data.disk import WriteError
from pycap.data.growing import NAME, READ_ERRORS, Corrupt, GrowingFile, tables
from pycap.data.images import ImageError, PreprocessSpec
from pycap.data.items import Reference

VERSION = 1
_CHUNK_ROWS = 64
_READ_ROWS = 1024
_INDEX_DTYPE = np.dtype([NAME, ("key", "u1", 16), ("crc", "<u4")])

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """What vectors of `size` numbers were made by: a CNN, the hash of its weights (`weights_hash`), and how images reach it."""

    cnn: str
    weights: str
    preprocess: PreprocessSpec
    size: int

    def __str__(self) -> str:
        spec = self.preprocess
        pixels = f"crops of {spec.crop} from {spec.resize}, mean {list(spec.mean)}, std {list(spec.std)}"
        return f"{self.cnn} with weights {self.weights[:16]}... ({self.size} numbers; {pixels})"


def weights_hash(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of float32 arrays of the host, with their names and shapes: the same in whatever file they were."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {tuple(arrays[name].shape)}\n".encode())
        found.update(np.ascontiguousarray(arrays[name], "<f4").data)
    return found.hexdigest()


def read_origin(file: h5py.File, path: str | Path) -> Origin:
    """What the vectors of an open file were made by. DataError for another version; what h5py raises where it is not whole."""
    if file.attrs["version"] != VERSION:
        raise DataError(
            f"{path}: version {file.attrs['version']} of a feature file, and this pycap reads version {VERSION}; "
            "name another file"
        )
    data, _ = tables(file, "<f4", 2, _INDEX_DTYPE)
    cnn, weights, size = file.attrs["cnn"], file.attrs["weights"], int(data.shape[1])
    if not isinstance(cnn, str) or not isinstance(weights, str) or not size:
        raise Corrupt(f"it is said to hold {size} numbers an image, of the CNN {cnn!r}")
    try:
        spec = PreprocessSpec.from_dict(json.loads(file.attrs["preprocess"]))
    except DataError as error:
        raise Corrupt(str(error).encode("utf-8", "backslashreplace").decode()) from error
    return Origin(cnn, weights, spec, size)


class FeatureStore(GrowingFile):
    """The vectors of one origin, by file name and file size.

    Each vector is checked against its CRC when the file is opened; damaged ones are left out, which is logged and kept in
    `report`. Thread-safe. One process at a time may hold a file open, or several that only read it.
    """

    what, format = "feature file", "pycap-features"

    def __init__(self, path: str | Path, origin: Origin, writable: bool = True) -> None:
        """Open or create; writable False: see `GrowingFile`. DataError when the file holds vectors of another origin (both
        are named), is open elsewhere, or cannot be written."""
        self.origin = origin
        self._rows: dict[bytes, int] = {}
        self._failed: dict[bytes, ImageError] = {}
        self._end = 0
        super().__init__(path, writable)

    def _fill_new(self, file: h5py.File) -> None:
        own = self.origin
        preprocess = json.dumps(own.preprocess.to_dict(), sort_keys=True)
        file.attrs.update(version=VERSION, cnn=own.cnn, weights=own.weights, preprocess=preprocess)
        shape = {"shape": (0, own.size), "maxshape": (None, own.size), "chunks": (_CHUNK_ROWS, own.size)}
        file.create_dataset("data", dtype="<f4", **shape)
        file.create_dataset("index", (0,), _INDEX_DTYPE, maxshape=(None,), chunks=(1 << 10,))

    def _check(self, file: h5py.File) -> None:
        found = read_origin(file, self.path)
        data, index = file["data"], file["index"][:]
        if found != self.origin:
            raise DataError(
                f"{self.path}: holds features of {found}; wanted are those of {self.origin}; name another file, or "
                "take the weights, --image-size and --resize that it was made with"
            )
        if len(index) > len(data):
            raise Corrupt(f"the index points at row {len(index)} of {len(data)}")
        # Rows without a place in the index were being written when their writer was killed; they are written over.
        self._end = len(index)
        for first in range(0, len(index), _READ_ROWS):
            block = data[first : first + _READ_ROWS]
            for row, (vector, known) in enumerate(zip(block, index[first : first + _READ_ROWS], strict=False), first):
                if zlib.crc32(vector.data) == known["crc"]:
                    self._rows[known["key"].tobytes()] = row
                else:
                    name = known["name"].decode(errors="replace")
                    self._note(f"{self.path}: the features of {name} are damaged; they are made anew")

    def _flush(self) -> None:
        """Nothing is pending: vectors are written as they are added."""

    def __len__(self) -> int:
        return len(self._rows)

    def missing(self, examples: Iterable[Example]) -> list[Example]:
        """Those of the examples that have no vector here, each image once. An image whose file has gone is among them."""
        wanted: dict[bytes, Example] = {}
        for example in examples:
            key = _key(example)
            if key not in self._rows:
                wanted.setdefault(key, example)
        return list(wanted.values())

    def add(self, examples: Sequence[Example], vectors: Vectors) -> None:
        """Append a vector for each example, float32 [n, F]; in the file when this returns. DataError where it cannot be
        written (a full disk)."""
        rows = np.empty(len(examples), _INDEX_DTYPE)
        keys = [_key(example) for example in examples]
        for row, example, key, vector in zip(rows, examples, keys, vectors, strict=True):
            row["name"], row["key"] = os.fsencode(example.file_name), np.frombuffer(key, np.uint8)
            row["crc"] = zlib.crc32(np.ascontiguousarray(vector, "<f4").data)
        with self._lock:
            self._require_open()
            try:
                self._append(self._end, vectors, rows)
            except WriteError as error:
                raise DataError(
                    f"{self.path}: cannot write features ({error.strerror}); free space and go on, or name another file: what "
                    "is in it is kept"
                ) from error
            self._rows.update((key, self._end + i) for i, key in enumerate(keys))
            self._end += len(rows)

    def fail(self, example: Example, error: ImageError) -> None:
        """An image cannot be read: while this is open, `get` says so."""
        self._failed[_key(example)] = error

    def get(self, example: Example) -> Vectors:
        """The vector of an image, float32 [F]. ImageError where there is none."""
        key = _key(example)
        with self._lock:
            self._require_open()
            row = self._rows.get(key)
            if row is None:
                raise self._failed.get(key) or ImageError(str(example.path), f"no features of it in {self.path}")
            return self._data[row]


def _key(example: Example) -> bytes:
    try:
        nbytes = os.stat(example.path).st_size
    except OSError:  # gone: no file of this size has features
        nbytes = -1
    return hashlib.blake2b(os.fsencode(f"{example.file_name}\0{nbytes}"), digest_size=16).digest()


def stored_vectors(file: h5py.File, path: str) -> Iterator[Reference]:
    """The vectors of a file that is open for `reading`, in its order, named PATH/NAME by the images' names. Damaged ones are
    items that cannot be read."""
    data, index = tables(file, "<f4", 2, _INDEX_DTYPE)
    if len(index) > len(data):
        raise Corrupt(f"the index points at row {len(index)} of {len(data)}")
    for first in range(0, len(index), _READ_ROWS):
        for row, known in enumerate(index[first : first + _READ_ROWS], first):
            name = f"{path}/{os.fsdecode(known['name'])}"
            yield Reference(name, partial(_load, data, row, int(known["crc"]), name))


def _load(data: h5py.Dataset, row: int, crc: int, name: str) -> Vectors | ImageError:
    try:
        vector: Vectors = data[row]
    except READ_ERRORS as error:
        return ImageError(name, f"its features cannot be read ({error})")
    return vector if zlib.crc32(vector.data) == crc else ImageError(name, "its features are damaged; make them anew")
