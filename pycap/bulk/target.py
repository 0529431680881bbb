"""Where a job's captions go: a file of one of the forms, or text files beside the images, and what lies beside it meanwhile."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pycap.bulk.names import Names
from pycap.data import DataError
from pycap.data.forms import TAB, check_separator, image_id, json_line, pieces, replace, require_place
from pycap.data.items import Reference
from pycap.data.layout import is_id

_COCO_END = b"\n]\n"
_COPIED = 1 << 20


class Kept(NamedTuple):
    """The captions that are there already, and stay. size: bytes of the file that they take, sha256: of those bytes."""

    names: Names
    size: int
    sha256: str


@dataclass(frozen=True)
class Target:
    """The file `path` in the form `form`, or None for the screen; of text files beside the images the folder under which they
    go by the images' names, or None for the images' own folders."""

    path: Path | None
    form: str = "jsonl"
    separator: str = TAB

    def __post_init__(self) -> None:
        """DataError for a bad separator, or a file that cannot be made."""
        object.__setattr__(self, "separator", check_separator(self.separator))
        if self.path and not self.beside:
            require_place(self.path)
        elif self.path and not self.path.is_dir():
            raise DataError(
                f"{self.path}: there is no such folder; make it (--format txt-sidecar writes a file an image)"
            )

    @property
    def beside(self) -> bool:
        """Whether each image's caption is a file of its own."""
        return self.form == "txt-sidecar"

    @property
    def file(self) -> Path:
        """The captions, or where text files are made, what they go by: the names of the files below begin like it."""
        if not self.beside:
            assert self.path
            return self.path
        return (self.path or Path()) / "captions"

    @property
    def partial(self) -> Path:
        """The journal of a job that is not done."""
        return self.file.with_name(f"{self.file.name}.partial")

    @property
    def failed(self) -> Path:
        """The images that could not be read, JSON Lines."""
        return self.file.with_name(f"{self.file.stem}.failed.jsonl")

    def __str__(self) -> str:
        return str(self.path) if self.path else "text files beside the images"

    def place(self, name: str) -> Path:
        """The text file of the image `name`."""
        path = Path(name).with_suffix(".txt")
        if self.path is None:
            return path
        return self.path.joinpath(*(part for part in path.parts if part not in (path.anchor, "..")))

    def key(self, name: str) -> str:
        """What tells images apart in the form: the id, the text file's place, or the name."""
        if self.beside:
            return str(self.place(name))
        return str(image_id(name, self.form)) if self.form in ("coco", "imageclef") else name

    def lacks(self, kept: Kept | None) -> Callable[[str], bool]:
        """Whether an image has no caption there yet."""
        if self.beside:
            return lambda name: not self.place(name).exists()
        return lambda name: kept is None or self.key(name) not in kept.names

    def require_new(self, images: Callable[[], Iterable[Reference]]) -> None:
        """DataError where an image has a text file already: it may be what a person wrote."""
        for image in images() if self.beside else ():
            if (path := self.place(image.name)).exists():
                raise DataError(
                    f"{path}: is there already, and would be replaced; --skip-existing captions what has no text file, "
                    "--output FOLDER writes them elsewhere; or remove it"
                )

    def check(self, images: Callable[[], Iterable[Reference]]) -> None:
        """DataError where two images would be one in this form, or one has no place in it. images: called each time that they
        are gone through."""
        if self.form in ("jsonl", "csv"):
            return

        def names() -> Iterator[str]:
            return (image.name for image in images())

        if self.beside and self.path is None:
            for image in images():
                if image.load is not None:
                    raise DataError(f"{image.name}: has no folder for a text file; name one with --output")
        if self.form == "imageclef":
            for name in names():
                if any(mark in self.key(name) for mark in (self.separator, "\n", "\r")):
                    raise DataError(
                        f"{name!r}: the image id holds the separator {self.separator!r} or a line end; choose another "
                        "--separator, or another name"
                    )
        again = Names(map(self.key, names())).repeated()
        found: dict[str, str] = {}
        for name in names() if len(again) else ():
            key = self.key(name)
            if key in found:
                what = "text file" if self.beside else "image id"
                raise DataError(f"{name} and {found[key]} have the same {what}, {key!r}; caption them into two files")
            if key in again:
                found[key] = name

    def kept(self) -> Kept | None:
        """What the file holds already; None where there is none. DataError where it is not of this form."""
        if self.beside or not self.file.exists() or not self.file.stat().st_size:
            return None
        with open(self.file, "rb") as file:
            names = Names(self._keys(file))
            size = self._size(file)
            file.seek(0)
            told = hashlib.sha256()
            for part in _parts(file, size):
                told.update(part)
        return Kept(names, size, told.hexdigest())

    def _size(self, file: BinaryIO) -> int:
        """How much of the file stays when rows are added."""
        size = file.seek(0, os.SEEK_END)
        if self.form != "coco":
            return size
        file.seek(max(size - len(_COCO_END), 0))
        end = file.read()
        if end.endswith(b"[]\n"):
            return 0
        if end != _COCO_END:
            raise DataError(f"{self.file}: does not end as pycap caption writes it; caption into another --output")
        return size - len(_COCO_END)

    def _keys(self, file: BinaryIO) -> Iterator[str]:
        wrong = f"is not {self.form} as pycap caption writes it; give its --format, or another --output"
        if self.form == "csv":
            text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
            reader = csv.reader(text)
            try:
                columns = next(reader, [])
                if "file_name" not in columns:
                    raise DataError(f"{self.file}: {wrong}")
                at = columns.index("file_name")
                yield from (row[at] for row in reader if len(row) > at)
            except csv.Error as error:
                raise DataError(f"{self.file}: line {reader.line_num} {wrong}") from error
            finally:
                text.detach()
            return
        for number, line in enumerate(file, 1):
            try:
                if self.form == "imageclef":
                    name, between, _ = line.decode("utf-8", "surrogateescape").partition(self.separator)
                    if not between:
                        raise ValueError(self.separator)
                    yield name
                elif line not in (b"[\n", b"]\n", b"[]\n"):
                    row = json.loads(line.rstrip(b",\n") if self.form == "coco" else line)
                    name = row["image_id"] if self.form == "coco" else row["file_name"]
                    if not is_id(name) or (self.form == "jsonl" and not isinstance(name, str)):
                        raise ValueError(name)
                    yield str(name) if self.form == "coco" else self.key(name)
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise DataError(f"{self.file}: line {number} {wrong}") from error

    def finish(self, rows: Iterable[dict[str, Any]], kept: Any = None) -> None:
        """Write the captions among the rows of a journal, and the failures; both appear when they are whole.

        kept: of a journal's header, `size` and `sha256` of what the file holds already and is to keep. DataError where the file
        has changed since.
        """
        failures = self.failed.with_name(f".{self.failed.name}.tmp")
        try:
            with open(failures, "wb") as file:
                captions = self._captions(rows, file)
                if self.beside:
                    for row in captions:
                        self._write_beside(row)
                else:
                    more = bool(kept and kept["size"])
                    replace(self.file, chain(self._prefix(kept), pieces(self.form, captions, self.separator, more)))
                some = file.tell()
            if some:
                os.replace(failures, self.failed)
            else:
                self.failed.unlink(missing_ok=True)
        finally:
            failures.unlink(missing_ok=True)

    def _captions(self, rows: Iterable[dict[str, Any]], failures: BinaryIO) -> Iterator[dict[str, Any]]:
        for row in rows:
            if "error" in row:
                failures.write(json_line(row))
            else:
                yield {**row, "image_id": image_id(row["file_name"], self.form)}

    def _prefix(self, kept: dict[str, Any] | None) -> Iterator[bytes]:
        if not kept or not kept["size"]:
            return
        told, part = hashlib.sha256(), b""
        with open(self.file, "rb") as file:
            for part in _parts(file, kept["size"]):
                told.update(part)
                yield part
        if told.hexdigest() != kept["sha256"]:
            raise DataError(f"{self.file}: has changed since the job began, which keeps what it held; put it back")
        if self.form != "coco" and not part.endswith(b"\n"):
            yield b"\n"

    def _write_beside(self, row: dict[str, Any]) -> None:
        path = self.place(row["file_name"])
        if self.path:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(row["caption"] + "\n", "utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (part := file.read(min(size, _COPIED))):
        size -= len(part)
        yield part
