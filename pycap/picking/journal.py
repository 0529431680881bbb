"""Decisions on disk: JSON Lines, only ever appended, a whole line at a time, synced before anyone is told that it counts.

Whenever the process ends, the file holds every decision that was confirmed; at most its last line is torn, which is cut off
when it is opened again.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from pycap.data import DataError
from pycap.data.disk import FULL, hold, same, sync
from pycap.data.forms import json_line, require_place
from pycap.data.picks import TORN, Row, rows


class PicksError(DataError):
    """A file of picks that cannot be opened or written; the text names it, and the remedy."""


class Journal:
    """The file of picks, open for this process alone. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or create. A torn last line is cut off.

        rows: those that are there. problems: of lines that are none, what is wrong with them; they stay where they are.
        PicksError where the file is another thing, another process has it open, or it cannot be written.
        """
        require_place(path)
        self.path = path
        self.folder = os.path.realpath(path.parent)
        self._real = os.path.realpath(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise PicksError(
                f"{path}: cannot be written ({error.strerror}); name another file with --output"
            ) from error
        try:
            self._lock()
            self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            empty = not self._end and not os.fstat(self._file).st_size
            if self._made and empty and same(self._file, self._real):
                os.unlink(self._real)
        finally:
            os.close(self._file)

    def _lock(self) -> None:
        try:
            hold(self._file)
        except BlockingIOError as error:
            raise PicksError(
                f"{self.path}: another pycap select writes it: use its page, end it, or name another file with --output"
            ) from error
        except FileNotFoundError as error:
            raise PicksError(f"{self.path}: another pycap select has just ended with it: start again") from error

    def _begin(self) -> None:
        with open(self._file, "rb", closefd=False) as file:
            content = file.read()
        found = list(rows(content))
        self.rows: list[Row] = [row for _, row, _ in found if row is not None]
        self.problems = [f"line {number}: {reason}" for number, _, reason in found if reason and reason != TORN]
        if self.problems and not self.rows:
            raise PicksError(f"{self.path}: is no file of picks ({self.problems[0]}); name another with --output")
        torn = bool(found) and found[-1][2] == TORN
        self._made = not content
        self._end = content.rfind(b"\n") + 1 if torn else len(content)
        try:
            os.ftruncate(self._file, self._end)
            if (
                self._end and content[self._end - 1 : self._end] != b"\n"
            ):  # a whole row, of which only the end is missing
                self._write(b"\n")
            sync(self.folder)
        except OSError as error:
            raise self._unwritten(error) from error

    def append(self, row: Row) -> None:
        """Add a row: on the disk when this returns. PicksError where that is not possible, and then the file is as it was."""
        try:
            there = same(self._file, self._real)
            if not there or os.fstat(self._file).st_size != self._end:
                what = "was changed by another program" if there else "was moved, removed or replaced"
                raise PicksError(
                    f"{self.path}: {what} since this began; nothing more is written: see to that, start again"
                )
            self._write(json_line(row))
        except OSError as error:
            raise self._unwritten(error) from error

    def _write(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += written

    def _unwritten(self, error: OSError) -> PicksError:
        if error.errno in FULL:
            return PicksError(f"{self.path}: the disk is full; this decision is not kept: free space, and decide again")
        return PicksError(f"{self.path}: cannot be written ({error.strerror}); this decision is not kept: see to that")
