"""A journal: what a job of captioning has done so far, a line an image in order, valid whenever the process ends.

    {"journal": 1, ...}                          the header: what was asked for
    {"image_id": ..., "file_name": ..., ...}     a caption, as JSON Lines has it
    {"file_name": ..., "error": ...}             an image that could not be read
    {"complete": true, "rows": 2, "failed": 1, "images": 2, "names": ...}   the footer: nothing is missing

Lines are only ever appended, each one whole, so that a process that is killed, or a disk that is full, leaves at most a torn
last line, which the next one drops.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pycap.data import DataError
from pycap.data.disk import FULL, hold
from pycap.data.forms import json_line

VERSION = 1
_MARK, _FOOTER_MARK = b'{"journal": ', b'{"complete"'
_SYNC_EVERY_S = 5.0


class JournalError(DataError):
    """A journal that cannot be continued, merged or written; the text names the file and the remedy."""


@dataclass(frozen=True)
class Standing:
    """How far a journal has come. rows: captions and failures; complete: whether the footer is there. It tells images: how
    many there were for all shards together; names: SHA-256 of all of their names."""

    rows: int
    failed: int
    complete: bool
    images: int = field(default=0, compare=False)
    names: str = field(default="", compare=False)


Header = Mapping[str, Any]
Row = dict[str, Any]
_FOOTER = {"complete": bool, "rows": int, "failed": int, "images": int, "names": str}


class Journal:
    """A journal that is being written, by this process alone. Entered with `with`; left without a row, it is removed."""

    def __init__(self, path: Path, header: Header) -> None:
        """Begin or continue the journal at `path`: `standing` says which. A torn last line is cut off.

        header: JSON values, equal in every process that continues the job, but for what begins with `_`, which is only told.
        JournalError: the header contradicts the journal's, another process writes it, or it is damaged.
        """
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise JournalError(
                f"{path}: cannot be written ({error.strerror}): see to that, or name another --output"
            ) from error
        self._synced = time.monotonic()
        try:
            _lock(self._file, path)
            if begun(path):
                agree(path, header)
                self._end, self.standing = _measure(path)
                os.ftruncate(self._file, self._end)
            else:
                self._end, self.standing = 0, Standing(0, 0, False)
                os.ftruncate(self._file, 0)
                self._append(json_line({"journal": VERSION, **header}))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.standing.rows and not self.standing.complete:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, each of them as a whole. JournalError where they cannot be written; those before them stay."""
        self._append(b"".join(map(json_line, rows)))
        before = self.standing
        failed = before.failed + sum("error" in row for row in rows)
        self.standing = Standing(before.rows + len(rows), failed, False)
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self._sync()

    def complete(self, images: int, names: str) -> None:
        """Append the footer, with what `Standing` has of it."""
        self.standing = replace(self.standing, complete=True, images=images, names=names)
        self._append(json_line({"complete": True, **asdict(self.standing)}))
        self._sync()

    def _append(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
            self._end += written
        except OSError as error:
            self._end += data.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._file, self._end)
            raise unwritable(self.path, error, self.path) from error

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise unwritable(self.path, error, self.path) from error
        self._synced = time.monotonic()


def read_header(path: Path) -> dict[str, Any]:
    """A journal's header. JournalError where the file has none, or one of another version."""
    with open(path, "rb") as file:
        line = file.readline()
    header = _parsed(line)
    if header is None or "journal" not in header:
        raise JournalError(f"{path}: is no journal of pycap caption; move it away, or name another file")
    if header["journal"] != VERSION:
        raise JournalError(
            f"{path}: a journal of version {_shown(header['journal'])}, and this pycap writes version {VERSION}; "
            "go on with the pycap that began it"
        )
    return header


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a journal in order, one in memory at a time; without a torn last line."""
    with open(path, "rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            row = _parsed(line)
            if row is None and not line.endswith(b"\n"):
                return
            footer = line.startswith(
                _FOOTER_MARK
            )  # as `_measure` has it: a mark of the encoding before it makes it none
            if row is None or not (footer or is_row(row)):
                raise JournalError(
                    f"{path}: line {number} is no row of a journal: the file is damaged; `head -n {number - 1}` of it can be "
                    "continued"
                )
            if footer:
                return
            yield row


def standing(path: Path) -> Standing:
    """How far the journal at `path` has come. JournalError where it is none."""
    read_header(path)
    return _measure(path)[1]


def agree(path: Path, header: Header) -> None:
    """JournalError, which names what differs, unless the journal at `path` began with this header."""
    began = read_header(path)
    differing = [
        f"{what} was {before} and is {now} now"
        for what, before, now in differences(began, {"journal": VERSION, **header})
    ]
    if differing:
        raise JournalError(
            f"{path}: continues only as it began: {'; '.join(differing)}. Give what was given then; or, "
            "without --resume, --skip-existing keeps these captions and makes the others as it is now"
        )


def begun(path: Path) -> bool:
    """Whether there is a file that would be missed: any but a journal with no row yet."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        header, row = file.readline(), file.readline()
    return not _MARK.startswith(header[: len(_MARK)]) or row.endswith(b"\n")


def _measure(path: Path) -> tuple[int, Standing]:
    """(bytes of whole lines, standing)."""
    end = rows = failed = 0
    complete, footer = False, None
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            if number and line.startswith(_FOOTER_MARK):
                complete, footer = True, _parsed(line)
            elif number:
                rows += 1
                failed += line.startswith(b'{"file_name"')
    if not complete:
        return end, Standing(rows, failed, False)
    if footer is None or not _is_footer(footer):
        raise JournalError(
            f"{path}: its last line is none of a journal: the file is damaged; remove that line, and go on"
        )
    if (footer["rows"], footer["failed"]) != (rows, failed):
        raise JournalError(
            f"{path}: holds {rows} rows, {failed} of them failures, and its last line says {footer['rows']} and "
            f"{footer['failed']}: the file is damaged; remove it, and caption these images again"
        )
    return end, Standing(**footer)


def _is_footer(footer: Row) -> bool:
    kinds = {key: type(value) for key, value in footer.items()}
    return {"complete", "rows", "failed"} <= kinds.keys() and kinds.items() <= _FOOTER.items()


def is_row(row: Row) -> bool:
    """Whether it says of an image what its caption is, or why it has none."""
    said = row.get("error", row.get("caption"))
    return isinstance(row.get("file_name"), str) and isinstance(said, str)


def differences(before: Header, now: Header, of: str = "") -> Iterator[tuple[str, str, str]]:
    """(what, how it was, how it is now) of all in two headers that is not the same; what begins with `_` may differ."""
    for key in [*before, *(key for key in now if key not in before)]:
        if key.startswith("_"):
            continue
        one, other = before.get(key), now.get(key)
        if key == "checkpoints" and one and other and one != other:
            one, other = _checkpoints(before), _checkpoints(now)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, f"{of}{key.replace('_', ' ')}: ")
        elif one != other:
            yield f"{of}{key.replace('_', ' ')}", _shown(one), _shown(other)


def _checkpoints(header: Header) -> list[str]:
    """Checkpoints by where they lie and the first digits of what they hold."""
    held = header["checkpoints"]
    return [f"{name} ({digest[:8]})" for name, digest in zip(header.get("_checkpoints", held), held, strict=True)]


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()  # halves of characters cannot be printed
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _lock(file: int, path: Path) -> None:
    try:
        hold(file)
    except BlockingIOError as error:
        raise JournalError(f"{path}: another process is writing it; wait for it, or name another --output") from error
    except FileNotFoundError as error:
        raise JournalError(
            f"{path}: another process has just ended with it; see what there is, and start again"
        ) from error


def unwritable(path: Path, error: OSError, journal: Path) -> JournalError:
    """The error where `path` cannot be written, of a job that `journal` keeps."""
    reason = "the disk is full" if error.errno in FULL else f"cannot be written ({error.strerror})"
    remedy = "free space" if error.errno in FULL else "see to that"
    return JournalError(f"{path}: {reason}; what was captioned is in {journal}: {remedy}, and go on with --resume")
