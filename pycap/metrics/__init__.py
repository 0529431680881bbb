"""Scores of generated captions against human ones, on plain dicts. docs/metrics.md says what each of them is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

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
    "bleu",
    "bleu_keras",
    "distinct_ratio",
    "meteor",
    "meteor_missing",
    "meteor_nltk",
    "ptb_tokens",
    "rouge_l",
    "score",
    "score_images",
]

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
ON_REQUEST = ("METEOR", "bleu_keras", "meteor_nltk")


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
    check_ids(results, references)
    unknown = [name for name in also if name not in ON_REQUEST]
    if unknown:
        raise ValueError(f"also: no score is named {unknown[0]!r}; there are {', '.join(ON_REQUEST)}")
    captions, human = _tokens(results, references, tokenizer)
    images = list(captions)
    cider = CiderD(human.values())
    scores = {
        **bleu(captions, human),
        "ROUGE-L": sum(rouge_l(captions[i], human[i]) for i in images) / len(images),
        "CIDEr": sum(cider.score(captions[i], human[i]) for i in images) / len(images),
    }
    if "METEOR" in also:
        scores["METEOR"], _ = meteor(captions, human)
    if "bleu_keras" in also:
        scores |= bleu_keras(captions, human)
    if "meteor_nltk" in also:
        scores["meteor_nltk"] = meteor_nltk(captions, human)
    return scores


def score_images(
    results: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenizer: Tokenizer = ptb_tokens,
) -> dict[Hashable, dict[str, float]]:
    """The metrics of `NAMES` of each image. Frequencies of CIDEr come from all the images that have a result.

    The mean over images is `score`'s value for ROUGE-L and CIDEr. BLEU is a corpus's: its mean is not.

    Raises:
        ValueError: as for `score`.
    """
    check_ids(results, references)
    captions, human = _tokens(results, references, tokenizer)
    cider = CiderD(human.values())
    return {
        i: {
            **bleu({i: words}, {i: human[i]}),
            "ROUGE-L": rouge_l(words, human[i]),
            "CIDEr": cider.score(words, human[i]),
        }
        for i, words in captions.items()
    }


def distinct_ratio(captions: Iterable[str]) -> float:
    """The number of different captions over the number of captions, in (0, 1]; 1.0 for none.

    A ratio near 0 is the mark of a model that says the same of every image.
    """
    captions = list(captions)
    return len(set(captions)) / len(captions) if captions else 1.0


def _tokens(
    results: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenizer: Tokenizer
) -> tuple[dict[Hashable, list[str]], dict[Hashable, list[list[str]]]]:
    captions = {i: tokenizer(caption) for i, caption in results.items()}
    return captions, {i: [tokenizer(caption) for caption in references[i]] for i in results}
