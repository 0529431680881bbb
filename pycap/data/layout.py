"""What all layouts share: listing folders, reading text and JSON with clear errors, dropping what cannot be
used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pycap.data import DataError, Example, Problem
from pycap.data.vocab import has_words

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character of two halves, or one by itself
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))

EXPECTED = {
    "coco": "annotations/captions_{train,val}2017.json with train2017/ and val2017/ (or the same with 2014)",
    "flickr8k": "Flickr8k_text/ (Flickr8k.token.txt, Flickr_8k.{train,dev,test}Images.txt) with Flicker8k_Dataset/, "
    "or Kaggle's captions.txt with Images/",
    "flickr30k": "results_20130124.token with flickr30k-images/, or Kaggle's results.csv with flickr30k_images/",
    "imageclef": "captions.txt (lines `IMAGE_ID<TAB>sentence`) or captions.json (COCO's form) with images/, or the "
    "task's own scaleconcepts16_images/",
    "picks": 'JSON Lines, {"file_name": ..., "caption": ...}',
    "pretrain": "train/CLASS/*.JPEG and val/CLASS/*.JPEG, a folder for each class (without val/, a tenth is held out)",
}


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without its folder, is looked at as an image: its suffix is an image's, and it is not
    hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_id(value: Any) -> bool:
    """Whether an image may be called so: a whole number (which a boolean is to Python) or a text."""
    return type(value) in (int, str)


class Entry(NamedTuple):
    """An image as a caption file names it, and what the file says of it; neither is checked yet."""

    image_id: int | str
    file_name: str
    path: Path
    captions: Sequence[Any]


@dataclass
class Listed:
    """One split as the caption files have it, before the images are looked for.

    looked_for: where the entries and their files are taken from, for an error message. problems: of the caption files.
    """

    entries: list[Entry]
    looked_for: str
    problems: list[Problem] = field(default_factory=list)


def contents(folder: Path, limit: int = 12) -> str:
    """What a folder holds, for an error message: the first `limit` names, folders with a slash."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name + ("/" if _is_folder(entry) else "") for entry in entries)
    if not names:
        return "nothing"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def require_folder(root: Path, stage: str) -> None:
    """DataError unless `root` is a folder; the message says what belongs there and what is there instead."""
    if root.is_dir():
        return
    what = "is a file, not a folder" if root.exists() else "no such folder"
    beside = f"; {root.parent} holds: {contents(root.parent)}" if root.parent.is_dir() else ""
    expected = EXPECTED.get(stage, "a caption data set")
    raise DataError(f"{root}: {what}; give --data the folder that holds {expected}{beside}")


def layout_error(root: Path, stage: str, missing: str) -> DataError:
    """The error for a folder that lacks a layout's files: what is missing, what belongs there, what is there."""
    return DataError(f"{root}: {missing}; {stage} needs {EXPECTED[stage]}; the folder holds: {contents(root)}")


class Files(Protocol):
    """How caption files are read: each gives what `read_text`, `read_json` would, and raises what they do."""

    def text(self, path: Path) -> str: ...
    def json(self, path: Path) -> Any: ...


_files: ContextVar[Files | None] = ContextVar("files", default=None)


@contextmanager
def reading(files: Files) -> Iterator[None]:
    """Within this, the layouts' readers get their caption files from `files`, which may keep them, and look closer."""
    before = _files.set(files)
    try:
        yield
    finally:
        _files.reset(before)


def read_text(path: Path) -> str:
    """A text file as UTF-8 (a byte order mark is dropped). DataError if it cannot be read, is empty, or is not
    UTF-8.
    """
    if (files := _files.get()) is not None:
        return files.text(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason}); fetch the file again") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; fetch it again")
    return text


def brief(text: str) -> str:
    """Text out of a file for an error's message: what is missing in a damaged file has names of any length."""
    return text if len(text) <= 400 else f"{text[:200]}...{text[-200:]}"


def read_json(path: Path) -> Any:
    """The parsed JSON of a file. DataError (file, line, column) if it is empty or not JSON, or nothing that anyone means: a
    number of thousands of digits, brackets in brackets without end, halves of characters."""
    files = _files.get()
    return parse_json(path, read_text(path)) if files is None else files.json(path)


def parse_json(path: Path, text: str) -> Any:
    """As `read_json`, of what the file holds."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{path}: not valid JSON at {where}: {error.msg}; the file may be cut short, fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets without end
        raise DataError(f"{path}: no JSON that can be read ({error}); fetch it again") from error
    if _HALF.search(text) and (half := unwritable(body)):
        raise DataError(f"{path}: holds half of a character (such as {half}), which no text can have; fetch it again")
    return body


def unwritable(value: Any) -> str:
    """Of parsed JSON, a half of a character that no text can have, as JSON writes it; nothing where there is none. Halves that
    stand for the bytes of a file's name that is no UTF-8 (`\\udcff`) are none of these."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return ""


def find_folder(root: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` that is a folder in `root`; a folder that holds only one of the same name is looked into
    (Kaggle's Flickr30k).
    """
    for name in names:
        folder = root / name
        if folder.is_dir():
            inner = folder / folder.name
            return inner if inner.is_dir() else folder
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle: reading it says so
        return False


class Listing:
    """Which files exist, from one scan of each folder (100,000 stats would take minutes on a network disk)."""

    def __init__(self) -> None:
        self._folders: dict[Path, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = _names_in(folder)
        return path.name in self._folders[folder]


def _names_in(folder: Path) -> frozenset[str]:
    """The names of the files in a folder; none where there is no such folder, or can be none of that name."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not _is_folder(entry))
    except (OSError, ValueError):  # not there, not to be read, too long a name; a NUL in it
        return frozenset()


def usable(
    images: Iterable[Entry], root: Path, looked_for: str, problems: list[Problem]
) -> tuple[list[Example], list[Problem]]:
    """Make examples of entries, leaving out and listing what cannot be used.

    Left out: captions without a word, images without captions, images without a file, and a second image with an id.
    `problems` holds what the caller
    found already; the list returned continues it. DataError when no example is left, with the first problems.
    """
    listing = Listing()
    examples: list[Example] = []
    names: dict[int | str, str] = {}
    count = 0
    for image_id, file_name, path, raw in images:
        count += 1
        captions = []
        for number, caption in enumerate(raw, 1):
            if isinstance(caption, str) and has_words(caption):
                captions.append(" ".join(caption.split()))
            else:
                reason = f"caption {number} of {len(raw)} has no words ({caption!r}); it is left out"
                kind = "caption-without-words" if isinstance(caption, str) else "caption-not-text"
                problems.append({"kind": kind, "file": file_name, "caption": caption, "reason": reason})
        if not captions:
            reason = "the image has no usable caption; it is left out"
            problems.append({"kind": "image-without-captions", "file": file_name, "reason": reason})
        elif not listing.has(path):
            reason = f"no image file {path}; it is left out"
            problems.append({"kind": "missing-image", "file": file_name, "path": str(path), "reason": reason})
        elif image_id in names:
            reason = f"its image id {image_id} is that of {names[image_id]}, too; it is left out"
            kind = "image-twice" if names[image_id] == file_name else "image-id-twice"
            problems.append({"kind": kind, "file": file_name, "reason": reason})
        else:
            names[image_id] = file_name
            examples.append(Example(image_id, file_name, path, tuple(captions)))
    if not examples:
        first = "; ".join(brief(f"{p['file']}: {p['reason']}") for p in problems[:3]) or "the list of images is empty"
        raise DataError(
            f"{root}: none of {count} images can be used (looked for {looked_for}). First problems: {first}. "
            "Put the images where they belong, or point --data at the folder that has both images and captions; "
            f"pycap doctor {root} tells more"
        )
    return examples, problems
