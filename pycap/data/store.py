"""An HDF5 store of resized JPEG bytes, so that a later epoch or run need not read the original files again.

File: attributes `format`, `version`, `size`, `quality`; `data`, uint8 [bytes], all JPEGs end to end; `index`, one row
an image: `key` (BLAKE2b of file name, source size and modification time), `offset` and `length` in `data`, `crc`
(CRC-32 of the bytes). Data is flushed to the file before the rows that point at it, and every read is checked against
its CRC, so a killed writer costs at most the images not yet flushed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from pycap.data import DataError, Example
from pycap.data.images import JPEG_QUALITY

FORMAT = "pycap-image-store"
VERSION = 1
FLUSH_BYTES = 4 << 20
INDEX_DTYPE = np.dtype([("key", "u1", 16), ("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])

log = logging.getLogger(__name__)

# Two objects on one file would each append at their own idea of its end; HDF5's lock keeps out other processes only.
_open_paths: set[str] = set()
_open_lock = threading.Lock()


class _Corrupt(Exception):
    """The file is not a whole store; the message says why."""


class ImageStore:
    """JPEG bytes of images squashed to size x size, by file name, source size and modification time.

    Thread-safe (one lock: HDF5 is not). One process at a time may hold a store open. A corrupt file is replaced by an
    empty store, a write that fails (full disk) turns further writes off; both are logged and kept in `report`.
    """

    def __init__(self, path: str | Path, size: int) -> None:
        """Open or create. DataError when the store holds another size, is open elsewhere, or cannot be written."""
        self.path = Path(path)
        self.size = size
        self.report: list[str] = []
        self.writable = True
        self._lock = threading.Lock()
        self._keys: dict[Path, bytes] = {}
        self._index: dict[bytes, tuple[int, int, int]] = {}
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._end = 0
        self._real = os.path.realpath(self.path)
        with _open_lock:
            if self._real in _open_paths:
                raise DataError(f"{self.path}: this process has the image store open already; share that object")
            try:
                self._file = self._open()
            except _Corrupt as error:
                # Renamed, not deleted: what was named may have been something else than a store.
                aside = self.path.with_name(self.path.name + ".corrupt")
                os.replace(self.path, aside)
                self._note(f"{self.path}: the image store is corrupt ({error}); renamed to {aside.name}, made anew")
                self._file = self._open()
            self._data = self._file["data"]  # looked up once: that takes as long as to read a record
            _open_paths.add(self._real)

    def _note(self, message: str) -> None:
        self.report.append(message)
        log.warning(message)

    def _open(self) -> h5py.File:
        if not self.path.exists():
            self._create()
        elif self.path.is_file() and self.path.stat().st_size == 0:
            raise _Corrupt("the file is empty")  # HDF5 would take it for a new file
        try:
            # No chunk cache: a random read of a few kB must not fetch its whole chunk, and writes must reach the file.
            file = h5py.File(self.path, "r+", rdcc_nbytes=0)
        except (BlockingIOError, PermissionError, IsADirectoryError) as error:
            why = "another process holds it open" if isinstance(error, BlockingIOError) else str(error)
            raise DataError(f"{self.path}: cannot open the image store ({why}); name another file") from error
        except OSError as error:
            raise _Corrupt(str(error)) from error
        try:
            self._check(file)
        except BaseException:
            file.close()
            raise
        return file

    def _create(self) -> None:
        """Make an empty store under a temporary name and rename it, so that no half-made store is ever found."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs.update(format=FORMAT, version=VERSION, size=self.size, quality=JPEG_QUALITY)
                file.create_dataset("data", (0,), np.uint8, maxshape=(None,), chunks=(1 << 18,))
                file.create_dataset("index", (0,), INDEX_DTYPE, maxshape=(None,), chunks=(1 << 10,))
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(f"{self.path}: cannot make the image store ({error}); name another file") from error

    def _check(self, file: h5py.File) -> None:
        """Read the index. _Corrupt when the file is not a whole store, DataError when it is a store of another size."""
        try:
            kind = file.attrs.get("format")
            found = tuple(int(file.attrs.get(name, -1)) for name in ("version", "size", "quality"))
            whole = kind != FORMAT or ("data" in file and "index" in file)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise _Corrupt(str(error)) from error
        if kind != FORMAT:
            raise DataError(f"{self.path}: an HDF5 file, but not a pycap image store; name another file")
        if found != (VERSION, self.size, JPEG_QUALITY):
            raise DataError(
                f"{self.path}: the store holds version {found[0]}, {found[1]} px, quality {found[2]}; wanted are "
                f"version {VERSION}, {self.size} px, quality {JPEG_QUALITY}; name another file, or delete this one"
            )
        if not whole:
            raise _Corrupt("its data or its index is missing")
        try:
            data, rows = file["data"], file["index"][:]
            total = int(data.shape[0])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise _Corrupt(str(error)) from error
        if rows.dtype != INDEX_DTYPE or data.dtype != np.uint8:
            raise _Corrupt(f"index of {rows.dtype}, data of {data.dtype}")
        ends = rows["offset"] + rows["length"]
        if len(rows) and int(ends.max()) > total:
            raise _Corrupt(f"the index points at byte {int(ends.max())} of {total}")
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
            key = self._keys[example.path] = hashlib.blake2b(text.encode(), digest_size=16).digest()
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
            if not self._file:
                raise DataError(f"{self.path}: the image store is closed")
            if key in self._pending:
                return self._pending[key]
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
            if not self._file:
                raise DataError(f"{self.path}: the image store is closed")
            if not self.writable or key in self._index or key in self._pending:
                return
            self._pending[key] = jpeg
            self._pending_bytes += len(jpeg)
            if self._pending_bytes >= FLUSH_BYTES:
                self._flush()

    def flush(self) -> None:
        """Write what is pending to the file."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        block = b"".join(self._pending.values())
        rows = np.zeros(len(self._pending), dtype=INDEX_DTYPE)
        offset = self._end
        for row, (key, jpeg) in zip(rows, self._pending.items(), strict=True):
            row["key"] = np.frombuffer(key, np.uint8)
            row["offset"], row["length"], row["crc"] = offset, len(jpeg), zlib.crc32(jpeg)
            offset += len(jpeg)
        try:
            data, index = self._data, self._file["index"]
            data.resize((offset,))
            data[self._end :] = np.frombuffer(block, np.uint8)
            self._file.flush()  # the data must be there before any row points at it
            index.resize((len(index) + len(rows),))
            index[-len(rows) :] = rows
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self.writable = False
            self._note(f"{self.path}: cannot write to the image store ({error}); no more images are stored in this run")
        else:
            for key, row in zip(self._pending, rows, strict=True):
                self._index[key] = (int(row["offset"]), int(row["length"]), int(row["crc"]))
            self._end = offset
        self._pending.clear()
        self._pending_bytes = 0

    def close(self) -> None:
        """Write what is pending and close the file. A second call does nothing."""
        with self._lock:
            if self._file:
                try:
                    self._flush()
                finally:
                    self._file.close()
                    with _open_lock:
                        _open_paths.discard(self._real)

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
