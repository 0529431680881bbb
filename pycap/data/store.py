"""An HDF5 store of resized JPEG bytes, so that a later epoch or run need not read the original files again.

File: attributes `format`, `version`, `size`, `quality`; `data`, uint8 [bytes], all JPEGs end to end; `index`, one row
an image: `name` (of the image's file, as its data set has it, in UTF-8, 255 bytes at most), `key` (BLAKE2b of the whole name,
source size and modification time), `offset` and `length` in `data`, `crc` (CRC-32 of the bytes, against which every read is
checked).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError, Example
from pycap.data.disk import WriteError
from pycap.data.growing import NAME, READ_ERRORS, Corrupt, GrowingFile, tables
from pycap.data.images import JPEG_QUALITY, ImageError
from pycap.data.items import Reference

VERSION = 2  # 1 had no names
FLUSH_BYTES = 4 << 20
_READ_ROWS = 1024
INDEX_DTYPE = np.dtype([NAME, ("key", "u1", 16), ("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])


class ImageStore(GrowingFile):
    """JPEG bytes of images squashed to size x size, by file name, source size and modification time.

    Thread-safe (one lock: HDF5 is not). One process at a time may hold a store open, or several that only read it. A corrupt
    file is replaced by an empty store, a write that fails (full disk) turns further writes off; both are logged and kept in
    `report`.
    """

    what, format = "image store", "pycap-image-store"

    def __init__(self, path: str | Path, size: int, writable: bool = True) -> None:
        """Open or create; writable False: see `GrowingFile`, and nothing is stored. DataError when the store holds another
        size, is open elsewhere, or cannot be written."""
        self.size = size
        self._keys: dict[Path, bytes] = {}
        self._index: dict[bytes, tuple[int, int, int]] = {}
        self._pending: dict[bytes, tuple[str, bytes]] = {}
        self._pending_bytes = 0
        self._end = 0
        super().__init__(path, writable)

    def _fill_new(self, file: h5py.File) -> None:
        file.attrs.update(version=VERSION, size=self.size, quality=JPEG_QUALITY)
        file.create_dataset("data", (0,), np.uint8, maxshape=(None,), chunks=(1 << 18,))
        file.create_dataset("index", (0,), INDEX_DTYPE, maxshape=(None,), chunks=(1 << 10,))

    def _check(self, file: h5py.File) -> None:
        found = tuple(int(file.attrs.get(name, -1)) for name in ("version", "size", "quality"))
        if found != (VERSION, self.size, JPEG_QUALITY):
            raise DataError(
                f"{self.path}: the store holds version {found[0]}, {found[1]} px, quality {found[2]}; wanted are "
                f"version {VERSION}, {self.size} px, quality {JPEG_QUALITY}; name another file, or delete this one"
            )
        data, index = tables(file, np.uint8, 1, INDEX_DTYPE)
        rows, total = index[:], int(data.shape[0])
        if (beyond := _beyond(rows, total)) is not None:
            raise Corrupt(f"the index points at byte {beyond} of {total}")
        keys = rows["key"].tobytes()
        self._end = total
        self._index = {
            keys[16 * i : 16 * i + 16]: (int(row["offset"]), int(row["length"]), int(row["crc"]))
            for i, row in enumerate(rows)
        }

    def _key(self, example: Example) -> bytes | None:
        """The image's key, its source looked at once a process; None when the source file has gone."""
        key = self._keys.get(example.path)
        if key is None:
            try:
                stat = os.stat(example.path)
            except OSError:
                return None
            text = f"{example.file_name}\0{stat.st_size}\0{stat.st_mtime_ns}"
            key = self._keys[example.path] = hashlib.blake2b(os.fsencode(text), digest_size=16).digest()
        return key

    def __len__(self) -> int:
        with self._lock:
            return len(self._index) + len(self._pending)

    def get(self, example: Example) -> bytes | None:
        """The stored JPEG bytes; None when there are none, the source has changed or gone, or the record is damaged
        (logged).
        """
        key = self._key(example)
        if key is None:
            return None
        with self._lock:
            self._require_open()
            if key in self._pending:
                return self._pending[key][1]
            if key not in self._index:
                return None
            offset, length, crc = self._index[key]
            try:
                record: bytes | None = self._data[offset : offset + length].tobytes()
            except OSError as error:
                self._note(f"{self.path}: {example.file_name} cannot be read ({error}); its source is read again")
                record = None
            if record is not None and zlib.crc32(record) != crc:
                self._note(f"{self.path}: {example.file_name} is damaged in the store; its source is read again")
                record = None
            if record is None:
                del self._index[key]
            return record

    def put(self, example: Example, jpeg: bytes) -> None:
        """Store an image's JPEG bytes; on disk after `flush`, `close`, or the next few MB. A source that has gone is
        not stored.
        """
        key = self._key(example)
        if key is None:
            return
        with self._lock:
            self._require_open()
            if not self.writable or key in self._index or key in self._pending:
                return
            self._pending[key] = example.file_name, jpeg
            self._pending_bytes += len(jpeg)
            if self._pending_bytes >= FLUSH_BYTES:
                self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        block = b"".join(jpeg for _, jpeg in self._pending.values())
        rows = np.zeros(len(self._pending), dtype=INDEX_DTYPE)
        offset = self._end
        for row, (key, (name, jpeg)) in zip(rows, self._pending.items(), strict=True):
            row["name"], row["key"] = os.fsencode(name), np.frombuffer(key, np.uint8)
            row["offset"], row["length"], row["crc"] = offset, len(jpeg), zlib.crc32(jpeg)
            offset += len(jpeg)
        try:
            self._append(self._end, np.frombuffer(block, np.uint8), rows)
        except WriteError as error:
            self.writable = False
            self._note(
                f"{self.path}: cannot write to the image store ({error.strerror}); no more images are stored in this run"
            )
        else:
            for key, row in zip(self._pending, rows, strict=True):
                self._index[key] = (int(row["offset"]), int(row["length"]), int(row["crc"]))
            self._end = offset
        self._pending.clear()
        self._pending_bytes = 0


def _beyond(rows: NDArray[Any], total: int) -> int | None:
    """The last byte at which rows of an index point beyond so many; None where none does. Sums of 64 bits would wrap around."""
    ends = np.minimum(rows["offset"], np.uint64(1 << 62)) + rows["length"]
    last = int(ends.max()) if len(rows) else 0
    return last if last > total else None


def stored_images(file: h5py.File, path: str) -> Iterator[Reference]:
    """The images of a store that is open for `reading`, in its order, named PATH/NAME by the images' names. Damaged ones are
    items that cannot be read."""
    data, index = tables(file, np.uint8, 1, INDEX_DTYPE)
    for first in range(0, len(index), _READ_ROWS):
        for row in index[first : first + _READ_ROWS]:
            name = f"{path}/{os.fsdecode(row['name'])}"
            yield Reference(name, partial(_load, data, int(row["offset"]), int(row["length"]), int(row["crc"]), name))


def _load(data: h5py.Dataset, offset: int, length: int, crc: int, name: str) -> bytes | ImageError:
    if offset + length > len(data):
        return ImageError(name, "damaged in its store")
    try:
        record: bytes = data[offset : offset + length].tobytes()
    except READ_ERRORS as error:
        return ImageError(name, f"cannot be read from its store ({error})")
    return record if zlib.crc32(record) == crc else ImageError(name, "damaged in its store")
