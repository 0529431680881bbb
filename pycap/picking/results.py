"""What a model said of images, as `pycap caption` writes it: an index in memory, rows read when they are asked for.

A row of the index takes 37 bytes: where it stands in the file, its log-probability, and 64 bits of a hash of its caption and of
its image's path. Two of half a million different names have equal hashes in one case of a hundred million.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError
from pycap.data.layout import brief, unwritable
from pycap.data.names import hashed
from pycap.data.vocab import has_words
from pycap.picking.images import ImageFolder, endings

_TELL_EVERY = 4096  # rows
_LONGEST = 4096  # letters of a name: Linux takes no longer ones, other systems shorter ones (PATH_MAX)


class Candidate(NamedTuple):
    """One caption of an image. logprob: natural logarithm, None where the results have none."""

    caption: str
    logprob: float | None


class Row(NamedTuple):
    """What was said of one image. captions: the n-best, as the results have them, each once. checkpoint: where they say it."""

    image_id: int | str
    file_name: str
    captions: tuple[Candidate, ...]
    checkpoint: str | None


class Unusable(Exception):
    """A line that no pair can be made of. kind: what it lacks, in words for many; the message: why this one does."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


_BROKEN = "lines that are no rows of results"
_SPEECHLESS = "rows without a caption"
_REPEATED = "rows of an image that an earlier row is of"
_MISSING = "images that are not in"


def parsed(line: bytes) -> Row:
    """A line's row. Unusable for any other."""
    try:
        row: Any = json.loads(line.decode().rstrip())
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, brackets without end
        raise Unusable(_BROKEN, f"not JSON ({error})") from error
    if b"\\u" in line and (half := unwritable(row)):
        raise Unusable(_BROKEN, f"holds half of a character (such as {half}), which no text can have")
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or "\0" in name or os.path.basename(name) in ("", ".", ".."):
        raise Unusable(_BROKEN, f'no object with "file_name" and "caption": {line[:60].decode(errors="replace")!r}')
    if len(name) > _LONGEST:
        raise Unusable(_BROKEN, f"a name of {len(name):,} letters, which no file can have: {brief(name)}")
    said = row.get("beams") or row.get("samples")
    if not isinstance(said, list):
        said = [row]
    captions: dict[str, float | None] = {}
    for each in said:
        text = each.get("caption") if isinstance(each, dict) else None
        if isinstance(text, str) and has_words(text):
            captions.setdefault(" ".join(text.split()), _number(each.get("logprob")))
    if not captions:
        raise Unusable(_SPEECHLESS, brief(name))
    image_id, checkpoint = row.get("image_id"), row.get("checkpoint")
    return Row(
        image_id if isinstance(image_id, (int, str)) else os.path.splitext(os.path.basename(name))[0],
        name,
        tuple(Candidate(text, logprob) for text, logprob in captions.items()),
        checkpoint if isinstance(checkpoint, str) else None,
    )


class Results:
    """The usable rows of a results file, one an image, numbered in its order.

    logprobs: float64 [n], of each row's first caption, NaN where it has none. captions, images: uint64 [n], hashes of the first
    caption, in lower case, and of the image's path below the folder. there: bool [n], whether the image is. left_out: in
    words, what is in the file and not among the rows, or has no image.
    """

    def __init__(self, path: Path, folder: ImageFolder, told: Callable[[int], None] = lambda done: None) -> None:
        """told: called now and then with the bytes read. DataError where the file cannot be read, or no row can be used."""
        self.path, self.folder = path, folder
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (rows are read from it as long as this lives)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give what pycap caption --output wrote"
            ) from error
        self._left: dict[str, list[Any]] = {}
        self._index(told)
        if not len(self.offsets):
            raise DataError(
                f"{path}: no captions in it{'; ' if self.left_out else ''}{'; '.join(self.left_out)}; give what pycap caption "
                "--output wrote, as JSON Lines"
            )
        if not self.there.any():
            raise DataError(
                f"{path}: none of its images is in {folder.given} (first: {brief(self.row(0).file_name)}); give "
                "--images the folder that they are in"
            )

    def _index(self, told: Callable[[int], None]) -> None:
        offsets, lengths, logprobs = array("Q"), array("I"), array("d")
        captions, images, there = array("Q"), array("Q"), bytearray()
        offset = 0
        for number, line in enumerate(self._file, 1):
            try:
                row = parsed(line) if line.strip() else None
            except Unusable as error:
                self._leave(error.kind, f"line {number}: {error}")
                row = None
            if row is not None:
                found = self.folder.find(row.file_name)
                best = row.captions[0]
                offsets.append(offset)
                lengths.append(len(line))
                logprobs.append(math.nan if best.logprob is None else best.logprob)
                captions.append(hashed(best.caption.lower()))
                images.append(hashed(endings(row.file_name)[0] if found is None else found))
                there.append(found is not None)
            offset += len(line)
            if number % _TELL_EVERY == 0:
                told(offset)
        self.folder.forget()
        every = np.frombuffer(images, np.uint64) if images else np.empty(0, np.uint64)
        first = np.zeros(len(every), bool)
        first[np.unique(every, return_index=True)[1]] = True
        self.offsets, self.lengths = _kept(offsets, np.uint64, first), _kept(lengths, np.uint32, first)
        self.logprobs, self.captions = _kept(logprobs, np.float64, first), _kept(captions, np.uint64, first)
        self.images, self.there = every[first], _kept(there, np.bool_, first)
        self._by_image = np.argsort(self.images)
        if (again := int((~first).sum())) > 0:
            at = int(np.argmin(first))
            self._leave(_REPEATED, self._read(offsets[at], lengths[at]).file_name, again)
        if (gone := int((~self.there).sum())) > 0:
            self._leave(f"{_MISSING} {self.folder.given}", self.row(int(np.argmin(self.there))).file_name, gone)

    def _leave(self, kind: str, example: str, count: int = 1) -> None:
        self._left.setdefault(kind, [0, example])[0] += count

    @property
    def left_out(self) -> list[str]:
        """A line for each kind of what is left out."""
        return [f"{kind}: {count:,} (first: {example})" for kind, (count, example) in self._left.items()]

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, number: int) -> Row:
        """One row, read. DataError where the file has been changed since the index was made."""
        return self._read(int(self.offsets[number]), int(self.lengths[number]))

    def _read(self, offset: int, length: int) -> Row:
        try:
            return parsed(os.pread(self._file.fileno(), length, offset))
        except Unusable as error:
            raise DataError(f"{self.path}: has been changed since this began; start it again") from error

    def image(self, number: int, row: Row) -> str:
        """The path below the folder of a row's image. DataError as for `row`."""
        for ending in endings(row.file_name):
            if hashed(ending) == self.images[number]:
                return ending
        raise DataError(f"{self.path}: has been changed since this began; start it again")

    def find(self, image: str) -> int | None:
        """The number of the row of an image, by its path below the folder; None where there is none."""
        own = np.uint64(hashed(image))
        place = int(np.searchsorted(self.images, own, sorter=self._by_image))
        if place == len(self.images) or self.images[self._by_image[place]] != own:
            return None
        return int(self._by_image[place])

    def close(self) -> None:
        self._file.close()


def _kept(values: Any, dtype: Any, which: NDArray[np.bool_]) -> NDArray[Any]:
    return np.frombuffer(values, dtype)[which] if len(which) else np.empty(0, dtype)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None
