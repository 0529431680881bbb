"""Picked pairs: captions of a model that a person found good, as JSON Lines, to be trained on.

A line is an object with at least `file_name`, the image's path, and `caption`; other keys are left alone, so that rows of
`pycap caption --output` are rows of picks too. A path that is not absolute starts at the picks file's folder, or else at
the data folder. Rows with the same image are its several captions.

`pycap select` appends rows that also say what was decided: `decision`. Of each image the last one counts, an `undo` voids the
one before it, and what counts is a pair if it is `accept`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pycap.data import DataError, Problem
from pycap.data.layout import Entry, Listed, Listing
from pycap.data.vocab import has_words

DECISIONS = ACCEPT, REJECT, SKIP, UNDO = ("accept", "reject", "skip", "undo")
TORN = "cut short: this decision was never confirmed"

Image = TypeVar("Image", bound=Hashable)
Row = dict[str, Any]


class Decisions(Generic[Image]):
    """Which decision of each image counts, of rows in the order in which they were written.

    counts: how many images have each decision.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._rows: dict[int, tuple[Image, Row]] = {}  # those that no undo voids, the oldest first
        self._of: dict[Image, list[int]] = {}
        self._added = 0

    def add(self, image: Image, row: Row) -> None:
        """One more row. An undo of an image without a decision does nothing."""
        before = self.of(image)
        stack = self._of.setdefault(image, [])
        if row["decision"] != UNDO:
            self._rows[self._added] = image, row
            stack.append(self._added)
            self._added += 1
        elif stack:
            del self._rows[stack.pop()]
        for counted, change in ((before, -1), (self.of(image), 1)):
            if counted is not None:
                self.counts[counted["decision"]] += change

    @property
    def any(self) -> bool:
        """Whether anything was ever decided, voided or not."""
        return bool(self._of)

    def of(self, image: Image) -> Row | None:
        """The row that counts; None where the image is open."""
        stack = self._of.get(image)
        return self._rows[stack[-1]][1] if stack else None

    def latest(self) -> Iterator[Image]:
        """The images of all decisions that no undo voids, the latest first."""
        return (image for image, _ in reversed(self._rows.values()))

    def standing(self) -> Iterator[tuple[Image, Row]]:
        """The images that have a decision, each with the row that counts."""
        return ((image, self._rows[stack[-1]][1]) for image, stack in self._of.items() if stack)


def rows(content: bytes) -> Iterator[tuple[int, Row | None, str]]:
    """(line number, row, what is wrong with it, or nothing) of each line of a picks file that is not blank.

    A last line without its end is a row where it is a whole object: then nothing but the end is missing.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            torn = number == len(lines) and line.startswith(b"{")
            yield number, None, TORN if torn else f"not JSON ({error})"
            continue
        if not isinstance(row, dict):
            yield number, None, f"a {type(row).__name__}, not an object"
        elif not isinstance(row.get("file_name"), str) or not row["file_name"].strip():
            yield number, None, f'"file_name" is {row.get("file_name")!r}, not a path'
        elif "decision" in row and row["decision"] not in DECISIONS:
            yield (
                number,
                None,
                f'the "decision" of {row["file_name"]} is {row["decision"]!r}, none of {", ".join(DECISIONS)}',
            )
        else:
            yield number, row, ""


def image_path(folder: str, file_name: str) -> str:
    """By what a decision's image is known: its path, from the picks file's folder where it is not absolute."""
    return os.path.normpath(os.path.join(folder, file_name))


def listed(file: Path, root: Path) -> Listed:
    """The pairs of a picks file, an entry an image, in the order of their rows; ids are the paths as the file has them.

    root: where relative paths may start besides the file's folder. Rows that cannot be used are problems, with their line
    and the reason. DataError when the file cannot be read, is empty, or holds decisions of which none is a pair.
    """
    places = [file.parent, root]
    listing = Listing()
    captions: dict[Path, list[str]] = {}
    names: dict[Path, str] = {}
    problems: list[Problem] = []

    def leave(number: int, reason: str, kind: str = "broken-line") -> None:
        problems.append({"kind": kind, "file": file.name, "line": number, "reason": f"line {number}: {reason}"})

    for number, row in _pairs(file, leave):
        name, caption = row["file_name"], row.get("caption")
        path = next((place / name for place in places if listing.has(place / name)), None)
        if not isinstance(caption, str) or not has_words(caption):
            leave(number, f'the "caption" of {name} is {caption!r}, which has no words', "caption-without-words")
        elif path is None:
            tried = ", ".join(dict.fromkeys(str(place / name) for place in places))
            leave(number, f"no image file {name} (looked for {tried})", "missing-image")
        elif (caption := " ".join(caption.split())) in captions.setdefault(path, []):
            leave(number, f"{name} has the caption {caption!r} twice; it is used once", "caption-twice")
        else:
            captions[path].append(caption)
            names.setdefault(path, name)
    problems.sort(key=lambda problem: problem["line"])
    entries = [Entry(names[path], names[path], path, captions[path]) for path in captions if captions[path]]
    return Listed(entries, f"the pairs of {file}", problems)


def _pairs(file: Path, leave: Any) -> list[tuple[int, Row]]:
    """The rows to train on, each with its line's number: those that were accepted, and those of which nothing was decided.
    leave: told of what is neither."""
    plain: list[tuple[int, Row]] = []
    decided: Decisions[str] = Decisions()
    for number, row, reason in rows(read(file)):
        if row is None:
            leave(number, reason)
        elif "decision" not in row:
            plain.append((number, row))
        else:
            image = image_path(os.path.abspath(file.parent), row["file_name"])
            decided.add(image, {**row, "line": number})
    accepted = [(row["line"], row) for _, row in decided.standing() if row["decision"] == ACCEPT]
    if decided.any and not plain and not accepted:
        raise DataError(
            f"{file}: no pair in it: {decided.counts[REJECT]} rejected, {decided.counts[SKIP]} skipped, none accepted; go on "
            "with pycap select"
        )
    return sorted(plain + accepted, key=lambda pair: pair[0])


def read(file: Path) -> bytes:
    """What the file holds. DataError where it cannot be read, or holds nothing."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not content.strip():
        raise DataError(f"{file}: the file is empty; pick pairs into it with pycap select, or name another")
    return content
