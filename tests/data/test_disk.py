"""Files that one process at a time may write, on file systems with locks and without."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from pycap.data import disk


def test_a_file_is_held_once_and_until_it_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    first, second = (os.open(tmp_path / "a", os.O_RDWR) for _ in range(2))
    disk.hold(first)
    with pytest.raises(BlockingIOError):
        disk.hold(second)
    os.close(first)
    disk.hold(second)
    os.close(second)


@pytest.mark.parametrize("change", ["removed", "replaced", "moved"])
def test_a_file_that_another_stands_in_the_place_of_is_not_the_same(tmp_path: Path, change: str) -> None:
    path, file = tmp_path / "a", os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    assert disk.same(file, path)
    (tmp_path / "b").touch()
    if change == "removed":
        path.unlink()
    elif change == "moved":
        path.rename(tmp_path / "c")
    else:
        (tmp_path / "b").rename(path)
    assert not disk.same(file, path)
    if change == "moved":
        disk.hold(file)
    else:
        with pytest.raises(FileNotFoundError):
            disk.hold(file)
    os.close(file)


@pytest.mark.parametrize(("code", "passes"), [(errno.ENOLCK, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_where_there_are_no_locks_a_file_is_written_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool
) -> None:
    def fails(*asked: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fails)
    with open(tmp_path / "a", "w") as file:
        if passes:
            disk.hold(file.fileno())
        else:
            with pytest.raises(OSError, match="Input/output"):
                disk.hold(file.fileno())
