"""Readers with planted faults, of the file that says `bad`: the watch must find each, keep that file, and go on behind it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycap.data import DataError
from tests.fuzz.target import Target, Wrong, require

GOOD, BAD, CLEAR = b"good", b"bad", b"clear"


def _spin() -> None:
    while True:
        pass


def _grow() -> None:
    bytearray(96 << 20)


def _ask() -> None:
    """More than the address space holds, asked for at once."""
    bytearray(1 << 40)


def _raise(error: Exception) -> None:
    raise error


#: What each does of the file `bad`, and what the watch must say of it.
FAULTS: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "null": (lambda path: ctypes.string_at(0), "SIGSEGV"),
    "leaves": (lambda path: os._exit(0), "ended with 0"),
    "writes": (lambda path: (path.write_bytes(b"other"), os.abort()), "SIGABRT"),
    "spins": (lambda path: _spin(), "hangs: "),
    "sleeps": (lambda path: time.sleep(1000), "hangs: "),
    "grows": (lambda path: _grow(), "MiB, and may take 64"),
    "asks": (lambda path: _ask(), "MemoryError, not an error of pycap's"),
    "recurses": (lambda path: _raise(RecursionError("maximum recursion depth")), "RecursionError, not an error"),
    "raises": (lambda path: {}["caption"], "KeyError, not an error of pycap's"),
    "says json": (lambda path: _raise(ValueError(f"{path}: Expecting value")), "ValueError, not an error of pycap's"),
    "names nothing": (lambda path: _raise(DataError("it is corrupt")), "the message names no file"),
    "says all": (lambda path: _raise(DataError(f"{path}: {'x' * 5000}")), "a message of "),
    "says halves": (lambda path: _raise(DataError(f"{path}: '\ud800'")), "cannot be printed"),
    "accepts": (lambda path: "", "accepted, and is wrong: an empty caption"),
}


def _read(act: Callable[[Path], Any], folder: Path) -> Any:
    path = folder / "planted.txt"
    data = path.read_bytes()
    if data == CLEAR:
        raise DataError(f"{path}: is clear; mend it")
    return act(path) if data == BAD else data.decode("latin-1")


def _check(found: Any) -> None:
    require(found != "", "an empty caption")


def _target(name: str, act: Callable[[Path], Any]) -> Target:
    return Target(
        name,
        "planted.txt",
        lambda folder: _read(act, folder),
        lambda: {"good": GOOD},
        "lines",
        check=_check,
        hostile=lambda: {"before": GOOD, "bad": BAD, "clear": CLEAR, "after": GOOD},
    )


def _same(seed: str, found: str) -> None:
    if seed == "other":
        raise Wrong(f"{seed}: read {found}")


TARGETS = {target.name: target for target in (_target(name, act) for name, (act, _) in FAULTS.items())}
#: One that refuses what it should read, and reads what it should read as something else.
UNSOUND = Target(
    "unsound",
    "planted.txt",
    lambda folder: _read(lambda path: "", folder),
    lambda: {"refused": CLEAR, "other": GOOD},
    "lines",
    same=_same,
    hostile=lambda: {"after": GOOD},
)
TARGETS[UNSOUND.name] = UNSOUND
