"""What the captions of a data set are like: names and texts, image by image, and the words of a split as a whole."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycap.data import DataError, Example, Problem
from pycap.data.datasets import Part
from pycap.data.layout import IMAGE_SUFFIXES, Entry, Listed, usable
from pycap.data.vocab import count_words, tokenize
from pycap.doctor.findings import Findings

LONG = 100  # words, beyond which a text is no caption
#: One caption for so many images, and for such a part of them, stands for none in particular.
MANY, MANY_SHARE = 10, 0.02
DISTINCT = 0.5  # less than this part of the captions is all that differ
FEW = 100  # captions, below which neither ratio says anything
UNKNOWN = 10.0  # percent of a held-out split's words
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# UTF-8 read as WINDOWS-1252 or Latin-1: a lead byte and the byte that follows one.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-"
    "\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]|\u00e2\u20ac|\u00ef\u00bf\u00bd|\ufffd"
)


@dataclass
class Read:
    """One split of a part, as it would be trained on. listed: how many images the caption files name; named: the files that
    they mean."""

    part: Part
    split: str
    examples: list[Example]
    listed: int
    named: frozenset[str]


def check_split(
    part: Part, split: str, listed: Listed, findings: Findings, ids: dict[Any, Entry], prefix: str = ""
) -> Read:
    """Names and captions of one split. ids: the part's images so far by their ids, to which these are added. prefix: of names,
    where several sets are looked at together."""
    root = os.path.abspath(part.path)
    for entry in listed.entries:
        name = prefix + entry.file_name
        if part.kind != "picks" and not os.path.abspath(entry.path).startswith(root + os.sep):
            findings.add("path-outside", name, f"is {os.path.abspath(entry.path)}")
        other = ids.setdefault(entry.image_id, entry)
        # The same name in another folder is another split's: a leak, which is told as one.
        if other.path != entry.path and other.path.name != entry.path.name:
            findings.add("image-id-twice", name, f"id {entry.image_id} is {other.file_name} too")
        if _CONTROL.search(entry.file_name):
            findings.add("control-characters", repr(name), "in the file's name")
        if not unicodedata.is_normalized("NFC", entry.file_name):
            findings.add("not-nfc", name, "the file's name")
        _check_texts(name, entry, findings)
    problems: list[Problem] = []
    try:
        examples, problems = usable(listed.entries, part.path, listed.looked_for, problems)
    except DataError as error:
        findings.add("unreadable-file", f"{prefix}{split}", str(error))
        examples = []
    named = {str(entry.path) for entry in listed.entries} | add_problems(findings, problems, prefix)
    return Read(part, split, examples, len(listed.entries), frozenset(named))


def add_problems(findings: Findings, problems: Iterable[Problem], prefix: str = "") -> set[str]:
    """What the readers found by themselves. Returns the files that are meant by names that are nearly theirs."""
    names = _Names()
    meant: set[str] = set()
    for problem in problems:
        kind, detail = problem["kind"], problem["reason"]
        if kind == "missing-image":
            near = names.near(Path(problem["path"])) if "path" in problem else None
            kind, detail = ("name-differs", f"there is {near.name}") if near else (kind, problem.get("path", detail))
            meant.update([str(near)] if near else [])
        elif kind.startswith("caption-") and "caption" in problem:
            detail = f"{problem['caption']!r:.80}"
        elif kind == "image-without-captions":
            detail = ""
        findings.add(kind, prefix + str(problem.get("image", problem["file"])), detail, problem.get("count", 1))
    return meant


def _check_texts(name: str, entry: Entry, findings: Findings) -> None:
    seen: set[str] = set()
    for caption in entry.captions:
        if not isinstance(caption, str):
            continue  # which `usable` says
        text = " ".join(caption.split())
        if text in seen and text:
            findings.add("caption-twice", name, f"{text!r:.80}")
        seen.add(text)
        if len(text) > 2 * LONG and text.count(" ") >= LONG:
            findings.add("caption-very-long", name, f"{text.count(' ') + 1} words: {text!r:.60}")
        if _CONTROL.search(caption):
            findings.add("control-characters", name, f"{caption!r:.80}")
        if caption.isascii():
            continue
        if _MOJIBAKE.search(caption):
            findings.add("mojibake", name, f"{caption!r:.80}")
        if not unicodedata.is_normalized("NFC", caption):
            findings.add("not-nfc", name, f"{caption!r:.80}")


class _Names:
    """Files whose names are nearly those that are missing."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, str]] = {}

    def near(self, path: Path) -> Path | None:
        """The file in the same folder that differs in case, in the suffix of an image, or in how accents are written; None
        where there is none."""
        if path.parent not in self._folders:
            names = os.listdir(path.parent) if path.parent.is_dir() else []
            self._folders[path.parent] = {_folded(name): name for name in names}
        name = self._folders[path.parent].get(_folded(path.name))
        return path.with_name(name) if name else None


def _folded(name: str) -> str:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name.strip()).casefold())
    return stem if suffix in IMAGE_SUFFIXES else stem + suffix


def check_words(reads: Sequence[Read], threshold: int, findings: Findings) -> dict[str, Any]:
    """The words that a run on these splits would learn, and how well the held-out ones are covered; plain JSON values.

    threshold: `--word-count-threshold`. Percent are of running words.
    """
    train = [read for read in reads if read.split == "train"]
    counts = count_words(caption for read in train for example in read.examples for caption in example.captions)
    kept = {word for word, count in counts.items() if count >= threshold}
    total = counts.total()
    for read in train:
        for example in read.examples:
            for caption in example.captions:
                words = tokenize(caption)
                if words and kept.isdisjoint(words):
                    findings.add("caption-only-unknown", example.file_name, f"{caption!r:.80}")
    held: dict[str, float] = {}
    for read in reads:
        _check_repeats(read, findings)
        if read.split == "train" or not total:
            continue
        own = count_words(caption for example in read.examples for caption in example.captions)
        unknown = own.total() - sum(own[word] for word in kept)
        share = 100.0 * unknown / max(own.total(), 1)
        held[read.split] = max(round(share, 2), held.get(read.split, 0.0))
        if share > UNKNOWN and own.total() >= FEW:
            findings.add("unknown-words", f"{read.part.path.name} {read.split}", f"{share:.1f} % of its words")
    return {
        "threshold": threshold,
        "words_seen": len(counts),
        "words_kept": len(kept),
        "seen_once": sum(count == 1 for count in counts.values()),
        "unknown_percent": {
            "train": round(100.0 * (total - sum(counts[word] for word in kept)) / max(total, 1), 2),
            **held,
        },
    }


def _check_repeats(read: Read, findings: Findings) -> None:
    """Captions that say the same of many images."""
    images: Counter[str] = Counter()
    total = 0
    for example in read.examples:
        total += len(example.captions)
        images.update({caption.casefold() for caption in example.captions})
    if total < FEW:
        return
    name = f"{read.part.path.name} {read.split}"
    if len(images) < DISTINCT * images.total():
        findings.add("few-distinct-captions", name, f"{len(images)} different ones of {images.total()}")
    for caption, count in images.most_common(10):
        if count >= max(MANY, MANY_SHARE * len(read.examples)):
            findings.add("caption-of-many", repr(caption), f"{count} of {len(read.examples)} images of {name}")


def counted(read: Read) -> dict[str, int]:
    """Images, captions and words of a split; plain JSON values."""
    words = [len(tokenize(caption)) for example in read.examples for caption in example.captions]
    return {
        "listed": read.listed,
        "images": len(read.examples),
        "captions": len(words),
        "words": sum(words),
        "longest_caption": max(words, default=0),
    }
