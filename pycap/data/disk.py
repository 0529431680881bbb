"""Files on the disk: synced, kept from other processes, or without room for more."""

from __future__ import annotations

import errno
import fcntl
import os
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
