"""The run's folder: what is written into it, apart from checkpoints, and how an earlier run makes room."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pycap import checkpoint
from pycap.config import ConfigError
from pycap.data.disk import sync, write_whole, writing

LOG = "log.jsonl"


class RunFolderError(OSError):
    """A run's folder cannot be written; the text names the file, the reason and the remedy."""


def remedy(folder: Path) -> str:
    """What to do once the disk has failed under a run."""
    if last := saved(folder):
        return f"{last} is whole: free space or see to the disk, then go on with --resume {folder}"
    return "free space or see to the disk and start again, or give another --out-dir"


def saved(folder: Path) -> Path | None:
    """The checkpoint that a run can be resumed from, if it has come to one."""
    try:
        found = checkpoint.find(folder, prefer="last")
    except checkpoint.CheckpointError:
        return None
    return found if "last" in found.name else None


def make_room(folder: Path) -> Path | None:
    """Make `folder`, with an empty log. An earlier run there is moved aside, to `NAME.1`, `NAME.2`, ...; returns where to, or
    None.

    ConfigError where it holds anything else: what is not ours stays where it is.
    """
    folder = folder.resolve()
    try:
        return _taken(folder)
    except OSError as error:
        raise ConfigError(
            f"out_dir: {folder} cannot be written ({error.strerror}); see to that, or give another --out-dir"
        ) from error


def _taken(folder: Path) -> Path | None:
    """What `make_room` does, with the system's errors."""
    log = folder / LOG
    aside: Path | None = None
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if held and not (held == {LOG} and log.is_file() and not log.stat().st_size):  # else of a run that has not begun
        if not log.is_file() or folder == Path.cwd() or folder in Path.cwd().parents:
            raise ConfigError(f"out_dir: {folder} holds other things than an earlier run; give another --out-dir")
        number = 1
        while (free := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        aside = folder.rename(free)
    folder.mkdir(parents=True, exist_ok=True)
    # First of all files: by its log a folder is known as a run's, however soon the run is killed.
    log.touch()
    sync(folder)
    sync(folder.parent)
    return aside


class Log:
    """log.jsonl: one JSON object a line, each in the file when `write` returns."""

    def __init__(self, path: Path, resume_step: int | None = None, rows: int | None = None) -> None:
        """Of a run that is resumed at `resume_step`, with what its checkpoint says of `rows`: those that the resumed run will
        write again are dropped. `missing`: how many the checkpoint knows of and the file lacks. WriteError."""
        kept: list[bytes] = []
        if resume_step is not None and path.exists():
            *whole, _ = path.read_bytes().split(b"\n")  # behind the last line's end stands what a kill left of one
            kept = whole[:rows] if rows is not None else [line for line in whole if _step(line) <= resume_step]
        self.path, self.rows, self.missing = path, len(kept), (rows or 0) - len(kept)
        write_whole(path, "".join(f"{line.decode(errors='replace')}\n" for line in kept))
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def write(self, **row: Any) -> None:
        """Append a row. WriteError: it is not there then, not a part of it either."""
        line, written = memoryview(json.dumps(row).encode() + b"\n"), 0
        with writing(self.path):
            begin = os.fstat(self._file.fileno()).st_size
            try:
                while written < len(line):  # a disk that is nearly full takes a part
                    written += self._file.write(line[written:]) or 0
            except OSError:
                if written:
                    os.ftruncate(self._file.fileno(), begin)
                raise
        self.rows += 1

    def sync(self) -> None:
        """Have the system put the rows on the disk. WriteError."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self.path):
            self._file.close()


def _step(line: bytes) -> float:
    """Of a row; infinity for a line that is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON Lines, a whole file or nothing. WriteError."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
