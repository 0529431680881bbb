"""What is to be captioned, as the command line names it: a lazy sequence of items, always in the same order.

Images, folders of them, list files; archives (`shards.py`), stores of images and of features. Memory does not grow with the
number of images: an item is found when it is asked for, and of a folder only the names in it are held while it is gone
through (about a byte a letter).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pycap.data import DataError, shards
from pycap.data.items import Item, Reference
from pycap.data.layout import IMAGE_SUFFIXES, is_image_name

if TYPE_CHECKING:
    import h5py

    from pycap.data.features import Origin

_STANDARD_INPUT = "-"
_KINDS = {".txt": "list", ".h5": "store", ".hdf5": "store"}
_BLOCK_NAMES = 4096  # of a folder, sorted at once
_LONGEST_LINE = 1 << 16  # of a list; Linux knows no path above 4,096 bytes


class Inputs:
    """The items of what was named, in the order named. `find` makes one.

    Each iteration goes through the files anew and gives the same items in the same order, as long as nobody changes them.
    """

    def __init__(self, named: Sequence[str], standard_input: IO[bytes] | None = None) -> None:
        """standard_input: a file with what came from there, where `-` is among what is named; it lives as long as this."""
        self.named = tuple(named)
        self._standard_input = standard_input

    def __iter__(self) -> Iterator[Item]:
        return (reference.item() for reference in self.references())

    def references(self) -> Iterator[Reference]:
        """All items in order, none of them read: of an archive the headers are, and a compressed one is unpacked. DataError for
        a list or a store that is none, and for a folder that has lost its images."""
        for name in self.named:
            kind = self._kind(name)
            if kind == "folder":
                yield from map(Reference, _images_of(name))
            elif kind == "list":
                for line in self._lines(name):
                    yield from shards.images_in(line) if _is_archive(line) else (Reference(line),)
            elif kind == "archive":
                yield from shards.images_in(name)
            elif kind == "store":
                yield from _rows(name)
            else:
                yield Reference(name)

    def count(self) -> int | None:
        """How many items there are: names and headers are read, no image. None where that would mean to decompress."""
        for name in self.named:
            lines = self._lines(name) if self._kind(name) == "list" else (name,)
            if any(_is_archive(line) and shards.is_compressed(line) for line in lines):
                return None
        return sum(1 for _ in self.references())

    def digest(self) -> str:
        """SHA-256 of what was named, in its order, and as what: it tells command lines apart, not what the files hold."""
        kinds = [(name, self._kind(name)) for name in self.named]
        return hashlib.sha256(json.dumps(kinds).encode()).hexdigest()

    def stores(self) -> list[tuple[str, Origin | int]]:
        """The stores among what is named, each with the origin of its features, or with the side of its images in pixels.
        DataError for one that cannot be read."""
        return [(name, _held(name)) for name in self.named if self._kind(name) == "store"]

    def _kind(self, name: str) -> str:
        if name == _STANDARD_INPUT and self._standard_input:
            return "list"
        if os.path.isdir(name):
            return "folder"
        if _is_archive(name):
            return "archive"
        return _KINDS.get(os.path.splitext(name)[1].lower(), "image")

    def _lines(self, name: str) -> Iterator[str]:
        spool = self._standard_input
        return _listed(name, spool.name if spool and name == _STANDARD_INPUT else name)


def find(paths: Iterable[str | os.PathLike[str]], strict: bool = True) -> Inputs:
    """What the paths name: images, folders of them, lists of images and archives (.txt; `-`: standard input, which is read at
    once), tar archives, stores (.h5) of images or of features.

    DataError for a path that is not there, and for a folder without any image; with strict False, an item that cannot be read
    stands for such a path, unless it is a list's or a store's.
    """
    named = [str(Path(path)) for path in paths]
    for name in named if strict else ():
        if name == _STANDARD_INPUT:
            continue
        if not os.path.exists(name):
            raise DataError(f"{name}: no such file or folder; check the path")
        if os.path.isdir(name):
            next(_images_of(name))
    return Inputs(named, _spool() if strict and _STANDARD_INPUT in named else None)


def require_apart(output: Path, inputs: Inputs) -> None:
    """DataError where a file of captions would take the place of what is captioned, or is called as an image, an archive or a
    store: after `--output *.jpg` the first image is the output, and only the others are captioned."""
    if is_image_name(output.name) or _is_archive(output.name) or _KINDS.get(output.suffix.lower()) == "store":
        raise DataError(f"{output}: captions are not written to a file of this name; name another, as captions.jsonl")
    if output.exists() and any(os.path.exists(name) and output.samefile(name) for name in inputs.named):
        raise DataError(f"{output}: is captioned, and would be overwritten with captions; name another file")


def _is_archive(name: str) -> bool:
    return name.lower().endswith(shards.SUFFIXES)


def _open_store(name: str) -> AbstractContextManager[h5py.File]:
    from pycap.data.features import FeatureStore  # h5py takes a while to import
    from pycap.data.growing import reading
    from pycap.data.store import ImageStore

    return reading(name, ImageStore.format, FeatureStore.format)


def _held(name: str) -> Origin | int:
    """What a store holds, as `Inputs.stores` tells it."""
    from pycap.data.features import FeatureStore, read_origin

    with _open_store(name) as file:
        features = file.attrs["format"] == FeatureStore.format
        return read_origin(file, name) if features else int(file.attrs["size"])


def _rows(name: str) -> Iterator[Reference]:
    """The rows of a store of either kind."""
    from pycap.data.features import FeatureStore, stored_vectors
    from pycap.data.store import stored_images

    with _open_store(name) as file:
        rows = stored_vectors if file.attrs["format"] == FeatureStore.format else stored_images
        yield from rows(file, name)


def _spool() -> IO[bytes]:
    """A temporary file with what standard input holds: a list is gone through more than once."""
    file = tempfile.NamedTemporaryFile(prefix="pycap-list-")  # noqa: SIM115 (its owner closes it)
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.flush()
    return file


def _listed(name: str, path: str) -> Iterator[str]:
    """The paths in a list, one a line, blank lines left out. name: what errors call it. A path may begin with anything, `#`
    too: there are no comments."""
    with open(path, "rb") as file:
        for number in range(1, sys.maxsize):
            line = file.readline(_LONGEST_LINE)
            if not line:
                return
            if b"\0" in line or len(line) == _LONGEST_LINE:
                raise DataError(f"{name}: line {number} is no path; a list is a text file with a path on each line")
            text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip("\r\n")
            if text.strip():
                yield text


def _images_of(folder: str) -> Iterator[str]:
    """The paths of the image files below a folder. DataError, at the first `next`, where there are none."""
    path = ""
    for name in images_below(folder):
        path = os.path.join(folder, name) if folder != os.curdir else name
        yield path
    if not path:
        raise DataError(f"{folder}: no images in the folder; suffixes looked for: {', '.join(sorted(IMAGE_SUFFIXES))}")


def images_below(folder: str | os.PathLike[str], prefix: str = "") -> Iterator[str]:
    """The image files below a folder, relative to it: sorted by their parts, hidden files and unknown suffixes left out, links
    to folders not followed. A folder that cannot be listed stands for what is in it. prefix: before each of the names."""
    try:
        names = _sorted_names(os.fspath(folder))
    except OSError:
        yield prefix
        return
    for name in names:
        if name.endswith("\0"):
            inner = name[:-1]
            yield from images_below(os.path.join(folder, inner), f"{prefix}{inner}/")
        else:
            yield prefix + name


def _sorted_names(folder: str) -> Iterator[str]:
    """Images and folders in a folder, sorted; a folder's name ends in NUL, which sorts before all that a name may hold.

    The names are held in sorted blocks, each one string, and merged as they are asked for: a list of strings would take five
    times the memory.
    """
    names = _names(folder)
    blocks = []
    while block := sorted(islice(names, _BLOCK_NAMES)):
        blocks.append("/".join(block))
    return heapq.merge(*map(_split, blocks))


def _names(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield entry.name + "\0"
            elif is_image_name(entry.name) and not (entry.is_symlink() and os.path.isdir(entry.path)):
                yield entry.name


def _split(block: str) -> Iterator[str]:
    first = 0
    while (last := block.find("/", first)) >= 0:
        yield block[first:last]
        first = last + 1
    yield block[first:]
