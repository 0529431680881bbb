"""Files of captions as pycap writes them: JSON Lines, COCO's results, CSV, a text file beside each image, ImageCLEF's runs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pycap.data import DataError
from pycap.data.disk import sync

#: Files that hold all captions, and text files beside the images.
FILE_FORMATS = ("jsonl", "coco", "csv", "imageclef")
FORMATS = (*FILE_FORMATS, "txt-sidecar")
TAB = "\t"
CSV_COLUMNS = ("file_name", "image_id", "caption", "logprob")
_COCO_NAME = re.compile(r"(?:COCO_[A-Za-z0-9]+_)?([0-9]+)")

Row = Mapping[str, Any]


def check_separator(separator: str) -> str:
    """What stands between id and caption, `\\t` read as a tab; DataError for one that words or lines may hold."""
    separator = separator.replace("\\t", TAB)
    if not separator or re.search(r"[\w'\n\r]", separator):
        raise DataError(
            f"separator {separator!r}: it must be something that no word holds, as a tab (\\t), a comma or ' | '"
        )
    return separator


def require_place(path: Path) -> None:
    """DataError where no file `path` can be made: what takes long asks before it begins."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file; name a file in it")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it, or name another")


def image_id(name: str | Path, form: str) -> int | str:
    """The id of an image: its file's name without folder and suffix; in COCO's results the number, where the name is one of
    COCO's."""
    stem = Path(name).stem
    number = _COCO_NAME.fullmatch(stem) if form == "coco" else None
    return int(number[1]) if number else stem


def json_line(row: Row) -> bytes:
    """A row as a line of JSON. Of a file name that is no text, its bytes are escaped (`\\udcff`), and are read again so."""
    return _json(row) + b"\n"


def pieces(form: str, rows: Iterable[Row], separator: str = TAB, more: bool = False) -> Iterator[bytes]:
    """A file of one of `FILE_FORMATS`, row by row; together they are the file.

    rows: `image_id`, `caption`, and what else JSON Lines and CSV are to hold. more: the rows go to the end of a file that has
    some, of which what `closing` counts was cut off.
    """
    if form == "coco":
        between = b",\n" if more else b"[\n"
        for row in rows:
            yield between + _json({name: row[name] for name in ("image_id", "caption")})
            between = b",\n"
        yield b"[]\n" if between == b"[\n" else b"\n]\n"
    elif form == "csv":
        if not more:
            yield _csv(CSV_COLUMNS)
        for row in rows:
            yield _csv([row.get(column, "") for column in CSV_COLUMNS])
    elif form == "imageclef":
        for row in rows:
            yield _bytes(f"{row['image_id']}{separator}{one_line(row['caption'], separator)}\n")
    else:
        yield from map(json_line, rows)


def write(path: Path, form: str, rows: Iterable[Row], separator: str = TAB) -> None:
    """A whole file of one of `FILE_FORMATS`, or nothing: under another name until it is whole."""
    replace(path, pieces(form, rows, separator))


def replace(path: Path, content: Iterable[bytes]) -> None:
    """Put a file in the place of `path` at once, when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def one_line(caption: str, separator: str = TAB) -> str:
    """The caption without line ends and without the separator, each run of blanks one blank."""
    return " ".join(caption.replace(separator, " ").split())


def _json(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(row).encode()


def _csv(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return _bytes(text.getvalue())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
