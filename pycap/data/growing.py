"""HDF5 files that grow by whole records: a writer that is killed costs at most what it had not flushed.

Data is flushed to the file before the rows of `index` that point at it. A new file is made under a temporary name. A file
that is damaged is renamed and made anew, which is logged and kept in `report`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import h5py
import numpy as np

from pycap.data import DataError, hdf5
from pycap.data.disk import WriteError, sync

log = logging.getLogger(__name__)

# Two objects on one file would each append at their own idea of its end; HDF5's lock keeps out other processes only.
_open_paths: set[str] = set()
_open_lock = threading.Lock()


class Corrupt(Exception):
    """The file is not a whole one; the message says why."""


#: What h5py raises where a file is not what it should be.
READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, Corrupt)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # the first bytes of HDF5 files
#: The field of an index that holds the name of an image's file, in UTF-8, cut off where it is longer. Names of a fixed length:
#: those of variable length lie in a heap, which a kill between two writes leaves in pieces.
NAME = ("name", "S255")
Self = TypeVar("Self", bound="GrowingFile")


_SYSTEM_SAYS = re.compile(r"error message = '([^']*)'")


def reason(error: Exception) -> str:
    """Why a call of h5py failed, in a few words: what the system said of it, where it did."""
    if number := getattr(error, "errno", None):
        return os.strerror(number)
    said = _SYSTEM_SAYS.search(str(error))
    return said[1] if said else str(error).partition("\n")[0]


def tables(file: h5py.File, values: Any, dimensions: int, rows: np.dtype[Any]) -> tuple[h5py.Dataset, h5py.Dataset]:
    """`data`, of the dtype `values` and so many dimensions, and `index`, of the dtype `rows`. Corrupt where they are not so."""
    data, index = file.get("data"), file.get("index")
    if not isinstance(data, h5py.Dataset) or not isinstance(index, h5py.Dataset):
        raise Corrupt("its data or its index is missing")
    if index.dtype != rows or data.dtype != values:
        raise Corrupt(f"index of {index.dtype}, data of {data.dtype}")
    for dataset in (index, data):  # NumPy's dtype says nothing of a number's bits that a damaged type leaves out
        if not dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype, logical=True)):
            raise Corrupt(f"{dataset.name} is stored as another type than {dataset.dtype}")
    if index.maxshape != (None,) or data.ndim != dimensions or data.maxshape[0] is not None:
        raise Corrupt(f"an index of the shape {index.shape}, data of {data.shape}, that do not grow")
    return data, index


@contextmanager
def reading(path: str | Path, *formats: str) -> Iterator[h5py.File]:
    """A file of one of these formats, open for reading: several processes may read it at once, while none writes to it.
    DataError for anything else, and where reading shows that it is corrupt."""
    hdf5.require_sound(path)
    try:
        file = h5py.File(path, "r", rdcc_nbytes=0)
    except BlockingIOError as error:
        raise DataError(f"{path}: another process is writing to it; wait until it has ended") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; name another") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an HDF5 file ({error}); make it anew, or name another") from error
    with file:
        try:
            kind = file.attrs.get("format")
            if not isinstance(kind, str) or kind not in formats:
                raise DataError(f"{path}: an HDF5 file, but none of {', '.join(formats)}; name another")
            yield file
        except DataError:
            raise
        except READ_ERRORS as error:
            raise DataError(f"{path}: corrupt ({error}); make it anew") from error


class GrowingFile(ABC):
    """One such file, open. Thread-safe (one lock: HDF5 is not). One process at a time may hold it open, or several that only
    read it."""

    what: str  # for messages: "image store"
    format: str  # the file's attribute `format`

    def __init__(self, path: str | Path, writable: bool = True) -> None:
        """Open or create. writable False: the file must be there, is opened when it is first read, and stays as it is.
        DataError when the file is another thing, is open elsewhere, or cannot be written."""
        self.path, self.writable = Path(path), writable
        self.report: list[str] = []
        self._lock = threading.Lock()
        self._real = os.path.realpath(self.path)
        self._file: Any = None
        self._is_broken = False  # a write failed: HDF5 will want to write it once more
        if writable:
            self._begin()

    def _begin(self) -> None:
        with _open_lock:
            if self._real in _open_paths:
                raise DataError(f"{self.path}: this process has the {self.what} open already; share that object")
            try:
                self._file = self._open()
            except Corrupt as error:
                if not self.writable:
                    raise DataError(f"{self.path}: the {self.what} is corrupt ({error}); name another file") from error
                # Renamed, not deleted: what was named may have been something else than such a file.
                aside = self.path.with_name(self.path.name + ".corrupt")
                os.replace(self.path, aside)
                self._note(f"{self.path}: the {self.what} is corrupt ({error}); renamed to {aside.name}, made anew")
                self._file = self._open()
            self._data = self._file["data"]  # looked up once: that takes as long as to read a record
            _open_paths.add(self._real)

    @abstractmethod
    def _fill_new(self, file: h5py.File) -> None:
        """Give a new file its attributes, `data` and `index`."""

    @abstractmethod
    def _check(self, file: h5py.File) -> None:
        """Look at a file of this format and read its index. Corrupt where it is not whole (as does any error of h5py);
        DataError where it holds something else than is wanted."""

    @abstractmethod
    def _flush(self) -> None:
        """Append what is pending; called with the lock."""

    def _note(self, message: str) -> None:
        self.report.append(message)
        log.warning(message)

    def _open(self) -> h5py.File:
        if not self.path.exists() and self.writable:
            self._create()
        elif self.path.is_file():
            with open(self.path, "rb") as file:
                start = file.read(len(_SIGNATURE))
            if not start:
                raise Corrupt("the file is empty")  # HDF5 would take it for a new file
            if start != _SIGNATURE:
                raise DataError(f"{self.path}: not an HDF5 file, so no {self.what}; name another file")
            try:
                hdf5.require_sound(self.path)
            except DataError as error:
                raise Corrupt(str(error).removeprefix(f"{self.path}: ")) from error
        try:
            # No chunk cache: a random read of a few kB must not fetch its whole chunk, and writes must reach the file.
            file = h5py.File(self.path, "r+" if self.writable else "r", rdcc_nbytes=0)
        except (BlockingIOError, PermissionError, IsADirectoryError, FileNotFoundError) as error:
            why = "another process holds it open" if isinstance(error, BlockingIOError) else str(error)
            raise DataError(f"{self.path}: cannot open the {self.what} ({why}); name another file") from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            kind = file.attrs.get("format")
            if kind != self.format:
                raise DataError(f"{self.path}: an HDF5 file, but not a pycap {self.what}; name another file")
            for name in {"data", "index"} & set(
                file
            ):  # their lists of chunks, which a write that failed may have cut off
                file[name].id.get_num_chunks()
            self._check(file)
        except BaseException as error:
            with suppress(OSError, RuntimeError):  # what is wrong with the file is known
                file.close()
            if isinstance(error, READ_ERRORS) and not isinstance(error, (DataError, Corrupt)):
                raise self._unusable(error) from error
            raise
        return file

    def _unusable(self, error: Exception) -> Exception:
        """What to raise for an error of h5py on opening: the system's say nothing of what the file holds, others that it is
        corrupt."""
        if getattr(error, "errno", None):
            return DataError(
                f"{self.path}: cannot open the {self.what} ({reason(error)}); see to the disk and try again"
            )
        return Corrupt(str(error))

    def _create(self) -> None:
        """Make an empty file under a temporary name and rename it, so that no half-made one is ever found."""
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs["format"] = self.format
                self._fill_new(file)
            sync(temporary)
            os.replace(temporary, self.path)
            sync(self.path.parent)
            hdf5.written(self.path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):  # the error on hand matters more than one of cleaning up
                temporary.unlink(missing_ok=True)
            why = reason(error) if self.path.parent.is_dir() else f"there is no folder {self.path.parent}"
            raise DataError(
                f"{self.path}: cannot make the {self.what} ({why}); free space, or name another file"
            ) from error

    def _append(self, end: int, block: Any, rows: Any) -> None:
        """Write a block of data behind the first `end` entries, then the rows of the index that point into it. WriteError."""
        data, index = self._data, self._file["index"]
        try:
            data.resize(end + len(block), axis=0)
            data[end:] = block
            self._file.flush()  # the data must be there before any row points at it
            index.resize((len(index) + len(rows),))
            index[-len(rows) :] = rows
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self._is_broken = True
            raise WriteError(getattr(error, "errno", None) or errno.EIO, reason(error), str(self.path)) from error

    def _require_open(self) -> None:
        if self._file is None:
            self._begin()
        if not self._file:
            raise DataError(f"{self.path}: the {self.what} is closed")

    def flush(self) -> None:
        """Write what is pending to the file."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Write what is pending and close the file. A second call does nothing."""
        with self._lock:
            if self._file:
                try:
                    self._flush()
                    self._file.close()
                except (OSError, RuntimeError) as error:
                    if not self._is_broken:  # else it was told when it was written to
                        raise DataError(f"{self.path}: cannot be written ({reason(error)}); see to the disk") from error
                finally:
                    with _open_lock:
                        _open_paths.discard(self._real)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
