"""The run's folder: what is written into it, apart from checkpoints, and how an earlier run makes room."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pycap.config import ConfigError


def make_room(folder: Path) -> Path | None:
    """Make `folder`, empty. An earlier run there is moved aside, to `NAME.1`, `NAME.2`, ...; returns where to, or None.

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
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        return None
    if not (folder / "log.jsonl").is_file() or folder == Path.cwd() or folder in Path.cwd().parents:
        raise ConfigError(f"out_dir: {folder} holds other things than an earlier run; give another --out-dir")
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    folder.mkdir()
    return aside


class Log:
    """log.jsonl: one JSON object a line, flushed as it is written."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        """resume_step: drop the rows of later steps than this, which the resumed run will write again."""
        kept = []
        if resume_step is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the last line of a run that was killed as it wrote
                    break
                if row["step"] <= resume_step:
                    kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, **row: Any) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: to a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON Lines, a whole file or nothing."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a JSON Lines file."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
