"""HDF5 files that may be damaged or hostile: looked through by another process before this one opens them.

HDF5's library trusts what it reads: a few wrong bytes have it loop for ever, or ask for any amount of memory, and no error
comes back. So a process of its own, with bounds on its time and its memory, first opens the file, walks through all that is in
it and reads it as pycap will. What comes to no end there, or takes the process down, is an error here. It is started once, with
the first file (about 0.2 s of CPU), and forks for each file; a file that has not changed since is not looked through again.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from pycap.data import DataError

#: What arrays may take in memory, for each byte of the file: weights are compressed to a half at best, and a bomb is not read.
RATIO = 16
_FREE = 1 << 20  # bytes that arrays may take whatever the file's size is
_MEMORY = 256 << 20  # of the process that looks, besides the arrays
_CPU_S, _CPU_S_GB = 2, 30  # seconds that it may work, and more for each gigabyte: gzip gives 100 MB/s
_ATTRIBUTES = 1 << 16  # bytes of an attribute's value; HDF5's own limit for most
_BLOCK = 16 << 20  # bytes of an array that are read at once
_WHOLE = (
    256 << 20
)  # bytes of an array above which only its first and its last block are read: the rest, record by record

_TRIED = 64 << 20  # bytes of a file to which rows are added in memory, to see that it can grow

_lock = threading.Lock()
_looker: subprocess.Popen[bytes] | None = None
_looked: dict[str, tuple[int, ...]] = {}  # sound files by path, as they were then


class Unsound(Exception):
    """Why a file cannot be read."""


def require_sound(path: str | os.PathLike[str]) -> None:
    """DataError where reading the file would not end well. A file that cannot be opened at all is left to who opens it."""
    real = os.path.realpath(path)
    try:
        seen = _state(real)
    except OSError:  # it is not there, or not to be read: opening it says so
        return
    if _looked.get(real) == seen:
        return
    try:
        answer = _asked(real)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be looked through by another process before it is opened ({error}); "
            "see that processes can be started"
        ) from error
    if answer:
        raise DataError(f"{path}: corrupt ({answer}); make it anew, or fetch it again")
    _looked[real] = seen


def written(path: str | os.PathLike[str]) -> None:
    """This process has written the file, so that it is as sound as it was."""
    real = os.path.realpath(path)
    _looked[real] = _state(real)


def _state(real: str) -> tuple[int, ...]:
    status = os.stat(real)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _asked(real: str) -> str:
    """What the other process says of a file: nothing of a sound one."""
    global _looker
    with _lock:
        if _looker is None or _looker.poll() is not None:
            # -c, not -m: of pycap it needs this module only.
            program = f"import sys; sys.path[:] = {sys.path!r}; from pycap.data import hdf5; hdf5.serve()"
            _looker = subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            atexit.register(_end, _looker)
        assert _looker.stdin and _looker.stdout
        _looker.stdin.write(json.dumps(real).encode() + b"\n")
        _looker.stdin.flush()
        answer = _looker.stdout.readline()
    if not answer:
        raise OSError("it has ended")
    return str(json.loads(answer))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its input ends, and so does it."""
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()
    process.wait()


# In the other process -------------------------------------------------------------------------------------------------


def serve() -> None:
    """Look through files as they are named, a line each, by a fork each, until there are no more lines."""
    for line in sys.stdin.buffer:
        path = json.loads(line)
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            os.close(receive)
            _look(path, send)
        os.close(send)
        with open(receive, "rb") as file:
            answer = file.read()
        _, status = os.waitpid(child, 0)
        said = answer.decode(errors="replace") if os.WIFEXITED(status) else _killed(os.WTERMSIG(status))
        _say(sys.stdout.buffer, said)


def _say(file: IO[bytes], answer: str) -> None:
    file.write(json.dumps(answer).encode() + b"\n")
    file.flush()


def _killed(signal: int) -> str:
    import signal as signals

    if signal in (signals.SIGXCPU, signals.SIGKILL):
        return "to read it takes for ever"
    return f"HDF5's library crashes on it, with {signals.Signals(signal).name}"


def _look(path: str, send: int) -> None:
    """Write what is wrong with the file, and exit."""
    said = ""
    try:
        size = os.stat(path).st_size
        seconds = _CPU_S + _CPU_S_GB * size // 10**9
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        taken = (
            int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if sys.platform == "linux"
            else 1 << 33
        )
        most = taken + _MEMORY + min(RATIO * size, 2 * _BLOCK) + size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        look_through(path, size)
    except OSError as error:  # the system's errors say nothing of what the file holds, and opening it meets them, too
        said = "" if error.errno else " ".join(str(error).split())[:500]
    except MemoryError:
        said = "to read it takes more memory than the file's size explains"
    except Exception as error:
        said = " ".join(str(error).split())[:500] or type(error).__name__
    os.write(send, said.encode("utf-8", "backslashreplace"))
    os._exit(0)


def look_through(path: str, size: int) -> None:
    """Read all of a file of `size` bytes that pycap may read. Unsound, or what h5py raises, where something is wrong."""
    try:
        file = h5py.File(path, "r", rdcc_nbytes=0)
    except OSError:  # no HDF5 file, or one that a process writes to: who opens it is told so, and tells it
        return
    with file:
        for name in file.attrs:
            attribute = file.attrs.get_id(name)
            if math.prod(attribute.shape) * max(attribute.dtype.itemsize, 1) > _ATTRIBUTES:
                raise Unsound(f"its attribute {name!r} is said to have the shape {attribute.shape}")
            file.attrs[name]
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise Unsound(f"{name!r} in it is a link, not data")
        left, growing = RATIO * size + _FREE, []

        def visit(name: str, item: Any) -> None:
            nonlocal left
            if isinstance(item, h5py.Dataset):
                left -= _dataset(name, item, size, left)
                if item.maxshape and item.maxshape[0] is None:
                    growing.append(name)

        file.visititems(visit)
    if growing and size <= _TRIED:
        _grow(path, growing)


def _grow(path: str, names: list[str]) -> None:
    """Add a row to each of the datasets, in memory alone: what only writing needs of a file is damaged, too."""
    with h5py.File(path, "r+", driver="core", backing_store=False, locking=False) as file:
        for name in names:
            dataset = file[name]
            dataset.resize(dataset.shape[0] + 1, axis=0)
            dataset[-1:] = np.zeros((1, *dataset.shape[1:]), dataset.dtype)
            file.flush()


def _dataset(name: str, dataset: h5py.Dataset, size: int, left: int) -> int:
    """Read a dataset, and return the bytes that it takes in memory."""
    if dataset.is_virtual or dataset.external:
        raise Unsound(f"the data of {name!r} is in other files")
    if dataset.shape is None:
        raise Unsound(f"{name!r} is empty")
    row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    total = row * (dataset.shape[0] if dataset.shape else 1)
    if total > left:
        raise Unsound(
            f"{name!r} is said to have the shape {list(dataset.shape)}: {total:,} bytes from a file of {size:,}"
        )
    if dataset.chunks is not None:
        chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk > RATIO * size + _FREE:
            raise Unsound(f"{name!r} is said to lie in pieces of {list(dataset.chunks)}")
        _chunks(name, dataset, size)
    if not dataset.shape:
        dataset[()]
    elif total:
        rows = max(1, _BLOCK // max(row, 1))
        starts = range(0, dataset.shape[0], rows)
        for first in starts if total <= _WHOLE else (starts[0], starts[-1]):
            dataset[first : first + rows]
    return total


def _chunks(name: str, dataset: h5py.Dataset, size: int) -> None:
    """Every piece of a dataset lies within the file."""

    def visit(chunk: Any) -> None:
        if chunk.byte_offset is not None and not 0 <= chunk.byte_offset <= chunk.byte_offset + chunk.size <= size:
            raise Unsound(
                f"a piece of {name!r} is said to lie in bytes {chunk.byte_offset:,} to {chunk.byte_offset + chunk.size:,}"
            )

    dataset.id.chunk_iter(visit)
