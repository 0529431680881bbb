"""Scores of generated captions against human ones, on plain dicts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from pycap.metrics.bleu import Tokenizer, bleu, words

__all__ = ["bleu", "distinct_ratio", "score", "words"]


def score(
    results: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenizer: Tokenizer = words,
) -> dict[str, float]:
    """Every metric of pycap by its name (BLEU-1 ... BLEU-4), for {id: caption} against {id: [captions]}.

    Raises:
        ValueError: no results, or results whose id has no reference (named).
    """
    return bleu(results, references, tokenizer)


def distinct_ratio(captions: Iterable[str]) -> float:
    """The number of different captions over the number of captions, in (0, 1]; 1.0 for none.

    A ratio near 0 is the mark of a model that says the same of every image.
    """
    captions = list(captions)
    return len(set(captions)) / len(captions) if captions else 1.0
