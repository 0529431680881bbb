"""Scores of generated captions against human ones, on plain dicts. docs/metrics.md says what each of them is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pycap.metrics.bleu import Tokenizer, bleu, check_ids
from pycap.metrics.cider import CiderD
from pycap.metrics.meteor import MeteorUnavailable, meteor, meteor_missing
from pycap.metrics.ptb import ptb_tokens
from pycap.metrics.rouge import rouge_l
from pycap.metrics.variants import bleu_keras, meteor_nltk

__all__ = [
    "NAMES",
    "ON_REQUEST",
    "CiderD",
    "MeteorUnavailable",
    "Report",
    "bleu",
    "bleu_keras",
    "distinct_ratio",
    "meteor",
    "meteor_missing",
    "meteor_nltk",
    "ptb_tokens",
    "report",
    "rouge_l",
    "score",
    "score_images",
]

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
ON_REQUEST = ("METEOR", "bleu_keras", "meteor_nltk")


@dataclass(frozen=True)
class Report:
    """scores: of all captions together, by name. images: each image's, by id. missing: what was asked for and cannot be
    computed here; the error says why, and what helps."""

    scores: dict[str, float]
    images: dict[Hashable, dict[str, float]]
    missing: dict[str, MeteorUnavailable | LookupError]


def report(
    results: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenizer: Tokenizer = ptb_tokens,
    also: Sequence[str] = (),
) -> Report:
    """`score` and `score_images` in one, and what there is where something is missing. ValueError as for `score`."""
    return _report(results, references, tokenizer, also, each=True)


def score(
    results: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenizer: Tokenizer = ptb_tokens,
    also: Sequence[str] = (),
) -> dict[str, float]:
    """Every metric of `NAMES`, in that order, for {id: caption} against {id: [captions]}; references without a result
    are left out. Each is in [0, 1], but CIDEr in [0, 10]. also: which of `ON_REQUEST` to add (`bleu_keras` is four).

    Raises:
        ValueError: no results, results whose id has no reference (named), or a name in `also` that is unknown.
        MeteorUnavailable: METEOR is asked for and cannot be computed here.
        LookupError: meteor_nltk is asked for and WordNet is missing.
    """
    return _whole(_report(results, references, tokenizer, also, each=False)).scores


def score_images(
    results: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenizer: Tokenizer = ptb_tokens,
    also: Sequence[str] = (),
) -> dict[Hashable, dict[str, float]]:
    """The metrics of `NAMES` of each image, and those of `also`. Frequencies of CIDEr come from all the images that have a
    result.

    The mean over images is `score`'s value for ROUGE-L, CIDEr and meteor_nltk. BLEU and METEOR are a corpus's: their means
    are not.

    Raises:
        As for `score`.
    """
    return _whole(_report(results, references, tokenizer, also, each=True)).images


def _report(
    results: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenizer: Tokenizer,
    also: Sequence[str],
    each: bool,
) -> Report:
    """each: with BLEU of each image, which takes a third as long as all the rest; else without `images`."""
    check_ids(results, references)
    unknown = [name for name in also if name not in ON_REQUEST]
    if unknown:
        raise ValueError(f"also: no score is named {unknown[0]!r}; there are {', '.join(ON_REQUEST)}")
    captions = {i: tokenizer(caption) for i, caption in results.items()}
    human = {i: [tokenizer(caption) for caption in references[i]] for i in results}
    alone = [({i: words}, {i: human[i]}) for i, words in captions.items()] if each else []
    cider = CiderD(human.values())
    by_image = {
        "ROUGE-L": {i: rouge_l(words, human[i]) for i, words in captions.items()},
        "CIDEr": {i: cider.score(words, human[i]) for i, words in captions.items()},
    }
    scores = bleu(captions, human) | {name: sum(v.values()) / len(v) for name, v in by_image.items()}
    images = dict(zip(captions, (bleu(*one) for one in alone), strict=False))
    missing: dict[str, MeteorUnavailable | LookupError] = {}
    for name, compute in (("METEOR", meteor), ("meteor_nltk", meteor_nltk)):
        if name in also:
            try:
                scores[name], by_image[name] = compute(captions, human)
            except (MeteorUnavailable, LookupError) as error:
                missing[name] = error
    for i, row in images.items():
        row |= {name: values[i] for name, values in by_image.items()}
    if "bleu_keras" in also:
        scores |= bleu_keras(captions, human)
        for row, one in zip(images.values(), alone, strict=True):
            row |= bleu_keras(*one)
    return Report(scores, images, missing)


def _whole(found: Report) -> Report:
    """The same; raises what says why a score is missing."""
    for error in found.missing.values():
        raise error
    return found


def distinct_ratio(captions: Iterable[str]) -> float:
    """The number of different captions over the number of captions, in (0, 1]; 1.0 for none.

    A ratio near 0 is the mark of a model that says the same of every image.
    """
    captions = list(captions)
    return len(set(captions)) / len(captions) if captions else 1.0
