"""The tokeniser and the vocabulary: words to ids and back, saved as JSON."""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pycap.data import DataError
from pycap.data.disk import write_whole

PAD, START, END, UNK = range(4)
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT = "pycap-vocabulary"
VERSION = 1

_WORD = re.compile(r"[a-z']+")
_LETTER = re.compile(r"[A-Za-z]")
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4`", "'"))


def tokenize(text: str) -> list[str]:
    """Words of a caption: runs of `[a-z']` after lower-casing; digits and punctuation separate words.

    Typographic apostrophes become `'`, and accents are dropped (NFKD), so that `Caf\u00e9` and `cafe` are one word.
    """
    if not text.isascii():
        # Before NFKD, which would take U+00B4 apart into a space and an accent.
        decomposed = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES))
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


def has_words(text: str) -> bool:
    """Whether a caption holds at least one word with a letter."""
    return bool(_LETTER.search(text)) or any(word.strip("'") for word in tokenize(text))


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each word occurs in `captions`."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(tokenize(caption))
    return counts


def _frequent(counts: Counter[str], threshold: int) -> list[str]:
    """The words counted at least `threshold` times, by descending count, ties alphabetical."""
    if threshold < 1:
        raise DataError(f"word count threshold {threshold}: must be 1 or more")
    return sorted((word for word, n in counts.items() if n >= threshold), key=lambda word: (-counts[word], word))


class Vocabulary:
    """Words and their ids. 0 is PAD, 1 START, 2 END, 3 UNK; then words by descending count, ties alphabetical.

    Attributes: `words` (all of them, specials first), `threshold` (least count of a kept word),
    `report` (from `build`; see there; empty for a vocabulary made from a plain list of words).
    """

    PAD, START, END, UNK = PAD, START, END, UNK

    def __init__(self, words: Sequence[str], threshold: int = 1, report: dict[str, Any] | None = None) -> None:
        """words: those after the four specials, in order. DataError on one that is empty, a special's name, or twice there."""
        self.words: tuple[str, ...] = SPECIALS + tuple(words)
        self.ids: dict[str, int] = {word: i for i, word in enumerate(self.words)}
        self.threshold = threshold
        self.report: dict[str, Any] = dict(report or {})
        if "" in self.ids:
            raise DataError(f"vocabulary: word {self.ids['']} is empty; copy it from the run again, or name the word")
        if len(self.ids) != len(self.words):
            twice = next(word for word, n in Counter(self.words).items() if n > 1)
            raise DataError(f"vocabulary: the word {reprlib.repr(twice)} stands in it twice; each word needs one id")

    @classmethod
    def build(cls, captions: Iterable[str], threshold: int) -> Vocabulary:
        """The words that occur at least `threshold` times in `captions`.

        `report` then holds: `words_seen`, `words_kept`, `tokens`, `unk_tokens`, `unk_percent` (share of tokens that
        become UNK). DataError when no word is left.
        """
        counts = count_words(captions)
        kept = _frequent(counts, threshold)
        if not kept:
            raise DataError(
                f"vocabulary: none of {len(counts)} words occurs {threshold} times; lower --word-count-threshold"
            )
        tokens = counts.total()
        unknown = tokens - sum(counts[word] for word in kept)
        report = {
            "words_seen": len(counts),
            "words_kept": len(kept),
            "tokens": tokens,
            "unk_tokens": unknown,
            "unk_percent": 100.0 * unknown / tokens,
        }
        return cls(kept, threshold, report)

    def extended(self, captions: Iterable[str], threshold: int) -> Vocabulary:
        """These words under their ids, then those of `captions` that occur at least `threshold` times there and are new."""
        new = [word for word in _frequent(count_words(captions), threshold) if word not in self.ids]
        return Vocabulary([*self.words[len(SPECIALS) :], *new], threshold)

    def __len__(self) -> int:
        """Number of ids, the four specials counted."""
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def encode(self, words: Sequence[str], max_length: int) -> list[int]:
        """START, the ids of the first `max_length` words (UNK for strangers), END: at most max_length + 2 ids."""
        unknown = self.UNK
        return [self.START, *(self.ids.get(word, unknown) for word in words[:max_length]), self.END]

    def decode(self, ids: Iterable[int]) -> str:
        """Words of ids, joined by spaces: stops at END, skips PAD and START. DataError on an id out of range."""
        words = []
        for raw in ids:
            i = int(raw)
            if i == self.END:
                break
            if not 0 <= i < len(self.words):
                raise DataError(
                    f"vocabulary: id {i} is outside 0..{len(self.words) - 1}; the model has another vocabulary"
                )
            if i not in (self.PAD, self.START):
                words.append(self.words[i])
        return " ".join(words)

    def coverage(self, captions: Iterable[str]) -> dict[str, Any]:
        """How well this vocabulary fits other captions: `words_kept`, `tokens`, `unk_tokens`, `unk_percent`."""
        tokens = unknown = 0
        for caption in captions:
            words = tokenize(caption)
            tokens += len(words)
            unknown += sum(word not in self.ids for word in words)
        percent = 100.0 * unknown / tokens if tokens else 0.0
        return {"words_kept": len(self) - 4, "tokens": tokens, "unk_tokens": unknown, "unk_percent": percent}

    def save(self, path: str | Path) -> None:
        """Write as JSON, a whole file or nothing (`disk.write_whole`)."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "threshold": self.threshold,
            "report": self.report,
            "words": list(self.words),
        }
        write_whole(path, json.dumps(body, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote. DataError on an empty file, no JSON, another format, wrong specials, duplicates."""
        from pycap.data.layout import read_json  # layout imports has_words from here

        path = Path(path)
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise DataError(f'{path}: not a pycap vocabulary (no "format": "{FORMAT}"); name the vocab.json of a run')
        if body.get("version") != VERSION:
            version = reprlib.repr(body.get("version"))
            raise DataError(f"{path}: vocabulary version {version}, this pycap reads {VERSION}; update pycap")
        words = body.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f'{path}: "words" must be a list of strings; copy the vocab.json of the run again')
        if tuple(words[:4]) != SPECIALS:
            begin = f"{', '.join(SPECIALS)}, not {reprlib.repr(words[:4])}"
            raise DataError(f"{path}: words must begin with {begin}; copy it from the run again")
        threshold, report = body.get("threshold", 1), body.get("report") or {}
        if type(threshold) is not int or threshold < 1 or not isinstance(report, dict):
            raise DataError(
                f'{path}: "threshold" must be a number from 1 on, and "report" an object; copy the vocab.json of the run again'
            )
        try:
            return cls(words[4:], threshold, report)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
