"""Files on the disk: written whole or not at all, synced, kept from other processes, or without room for more."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Of an OSError's `errno`: what says that there is no room.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNLOCKABLE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that know no locks


def sync(path: str | Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WriteError(OSError):
    """A file that cannot be written: `errno`, `strerror` and `filename` as the system gave them, all in the text."""

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written ({self.strerror})"


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """The system's errors inside become WriteErrors that name the file, which theirs often do not."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


def write_whole(path: str | Path, text: str) -> None:
    """Write a whole file in UTF-8 or nothing: to a temporary name beside it, synced, then renamed over it. WriteError."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the error on hand matters more than one of cleaning up
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def hold(file: int) -> None:
    """Keep an open file from others that ask so, until it is closed; on file systems that know no locks, from nobody.

    BlockingIOError where another process holds it. FileNotFoundError where one removed it meanwhile: what is written to it
    would be lost.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
    if not os.fstat(file).st_nlink:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def same(file: int, path: str | Path) -> bool:
    """Whether an open file is still the one at `path`: it may have been moved away, removed, or replaced."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
