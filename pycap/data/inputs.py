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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError
from pycap.data.images import ImageError, decode_image, run_ahead
from pycap.data.layout import IMAGE_SUFFIXES

#: Where an item's image is: a file's path, a file's bytes, the CNN's vector float32 [F] in the image's place, or why there is
#: none.
Source = str | bytes | NDArray[np.float32] | ImageError
Array = NDArray[Any]

_STANDARD_INPUT = "-"
_BLOCK_NAMES = 4096  # of a folder, sorted at once
_LONGEST_LINE = 1 << 16  # of a list; Linux knows no path above 4,096 bytes


class Item(NamedTuple):
    """One image to caption. name: as results and errors call it: its path as the user began it, or ARCHIVE/MEMBER."""

    name: str
    source: Source


class Reference(NamedTuple):
    """An item that has not been read. load: reads it, before the next one is asked for; None: `name` is the file's path."""

    name: str
    load: Callable[[], Source] | None = None

    def item(self) -> Item:
        """The item, its bytes read where it is no file of its own."""
        return Item(self.name, self.name if self.load is None else self.load())


class Inputs:
    """The items of what was named, in the order named. `find` makes one.

    Each iteration goes through the files anew and gives the same items in the same order, as long as nobody changes them.
    """

    def __init__(self, named: Sequence[str], standard_input: IO[bytes] | None = None) -> None:
        """standard_input: a file with what came from there, where `-` is among what is named; it lives as long as this."""
        self.named = tuple(named)
        self._standard_input = standard_input

    def __iter__(self) -> Iterator[Item]:
        return self.iterate()

    def iterate(self, start: int = 0, step: int = 1, keep: Callable[[str], bool] | None = None) -> Iterator[Item]:
        """Items number start, start + step, ... (from 0); of them only those whose name `keep` wants. What is left out is not
        read, though an archive's headers are, and a compressed archive is unpacked up to the item."""
        for reference in islice(self.references(), start, None, step):
            if keep is None or keep(reference.name):
                yield reference.item()

    def references(self) -> Iterator[Reference]:
        """All items in order, none of them read."""
        for name in self.named:
            yield from self._of(name)

    def count(self) -> int | None:
        """How many items there are: names and headers are read, no image. None where that would mean decompressing."""
        return sum(1 for _ in self.references())

    def digest(self) -> str:
        """SHA-256 of what was named, and as what: the same for the same command line."""
        kinds = [(name, self._kind(name)) for name in self.named]
        return hashlib.sha256(json.dumps(kinds).encode()).hexdigest()

    def _kind(self, name: str) -> str:
        if name == _STANDARD_INPUT and self._standard_input:
            return "list"
        if os.path.isdir(name):
            return "folder"
        return "list" if name.lower().endswith(".txt") else "image"

    def _of(self, name: str) -> Iterator[Reference]:
        kind = self._kind(name)
        if kind == "folder":
            return (Reference(os.path.join(name, inner) if name != "." else inner) for inner in images_below(name))
        if kind == "list":
            spool = self._standard_input
            return map(Reference, _listed(name, spool.name if spool and name == _STANDARD_INPUT else name))
        return iter((Reference(name),))


def find(paths: Iterable[str | os.PathLike[str]], strict: bool = True) -> Inputs:
    """What the paths name: images, folders of them, lists (.txt; `-`: standard input, which is read at once).

    DataError for a path that is not there, and for a folder without any image; with strict False, an item that cannot be read
    stands for the path in the first case.
    """
    named = [str(Path(path)) for path in paths]
    for name in named if strict else ():
        if name == _STANDARD_INPUT:
            continue
        if not os.path.exists(name):
            raise DataError(f"{name}: no such file or folder; check the path")
        if os.path.isdir(name):
            next(images_below(name))
    return Inputs(named, _spool() if strict and _STANDARD_INPUT in named else None)


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


def images_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The image files below a folder, relative to it: sorted by their parts, hidden files and unknown suffixes left out, links
    to folders not followed. DataError, at the first `next`, where there are none."""
    found = False
    for name in _below(os.fspath(folder), ""):
        found = True
        yield name
    if not found:
        raise DataError(
            f"{os.fspath(folder)}: no images in the folder; suffixes looked for: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )


def _below(folder: str, prefix: str) -> Iterator[str]:
    for name in _sorted_names(folder):
        if name.endswith("\0"):
            inner = name[:-1]
            yield from _below(os.path.join(folder, inner), f"{prefix}{inner}/")
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
            elif _is_image(entry.name) and not (entry.is_symlink() and os.path.isdir(entry.path)):
                yield entry.name


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _split(block: str) -> Iterator[str]:
    first = 0
    while (last := block.find("/", first)) >= 0:
        yield block[first:last]
        first = last + 1
    yield block[first:]


class ReadItems(NamedTuple):
    """Some items, read. arrays: for each size asked for, pixels uint8 [B, size, size, 3] of those that could be read, in
    order; of features their vectors, float32 [B, F]. errors: for each item, why it could not be read, or None."""

    names: list[str]
    arrays: dict[int, Array]
    errors: list[ImageError | None]


def read_ahead(
    items: Iterable[Item], sizes: Sequence[int], batch_size: int, workers: int = 2
) -> Generator[ReadItems, None, None]:
    """Read items in batches, in order, while the caller is busy with the last one: one thread gets the items, `workers` others
    decode them (0: all in the caller's thread).

    sizes: to which images are resized. Every batch stands for `batch_size` items, the last one
    for fewer; one with only unreadable items has B = 0.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size}: must be 1 or more")
    sizes = sorted(set(sizes))
    coming = iter(items)
    taken = run_ahead(repeat(lambda: list(islice(coming, batch_size))), min(workers, 1), 2)
    read = run_ahead((partial(_read, batch, sizes) for batch in iter(partial(next, taken), [])), workers, workers + 1)
    try:
        yield from read
    finally:
        read.close()
        taken.close()


def _read(items: Sequence[Item], sizes: Sequence[int]) -> ReadItems:
    errors: list[ImageError | None] = []
    arrays: dict[int, list[Array]] = {size: [] for size in sizes}
    for item in items:
        try:
            decoded = _decode(item, sizes)
        except ImageError as error:
            errors.append(error)
        else:
            errors.append(None)
            for size, array in decoded.items():
                arrays[size].append(array)
    stacked = {
        size: np.stack(found) if found else np.empty((0, size, size, 3), np.uint8) for size, found in arrays.items()
    }
    return ReadItems([item.name for item in items], stacked, errors)


def _decode(item: Item, sizes: Sequence[int]) -> dict[int, Array]:
    name, source = item
    if isinstance(source, ImageError):
        raise source
    if isinstance(source, np.ndarray):
        return dict.fromkeys(sizes, source)
    return {size: decode_image(source, size, name) for size in sizes}
