"""Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), the same numbers as COCO's evaluation gives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Any

Tokenizer = Callable[[str], list[str]]
ORDERS = 4


def bleu(
    captions: Mapping[Hashable, Sequence[str]], references: Mapping[Hashable, Sequence[Sequence[str]]]
) -> dict[str, float]:
    """BLEU over the whole corpus, brevity penalty against the closest reference.

    Args:
        captions: words by image id. references: the words of human captions by image id, one or more for each of
            `captions`; others are left out.
    Returns:
        {"BLEU-1": x, ..., "BLEU-4": x} in [0, 1]; an order without a single match scores 0, as do the higher ones.
    """
    from nltk.translate.bleu_score import corpus_bleu

    hypotheses = [list(words) for words in captions.values()]
    human = [[list(words) for words in references[key]] for key in captions]
    matched = [False] * ORDERS

    def counted(precisions: Sequence[Fraction], **_: Any) -> list[float]:
        # nltk counts one n-gram for a caption too short to hold any, where COCO's evaluation counts none; and its own
        # treatment of orders without a match warns and yields tiny numbers. Precisions come in as unreduced fractions.
        values = []
        for i, p in enumerate(precisions):
            total = p.denominator - sum(len(hypothesis) <= i for hypothesis in hypotheses)
            matched[i] = p.numerator > 0
            values.append(p.numerator / total if matched[i] else 1.0)
        return values

    weights = [(1 / n,) * n for n in range(1, ORDERS + 1)]
    scores = corpus_bleu(human, hypotheses, weights=weights, smoothing_function=counted)
    return {f"BLEU-{n + 1}": float(scores[n]) if all(matched[: n + 1]) else 0.0 for n in range(ORDERS)}


def check_ids(results: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> None:
    """ValueError unless there are results and each has at least one reference."""
    if not results:
        raise ValueError("results: no captions to score; give {image_id: caption}")
    lacking = [key for key in results if not references.get(key)]
    if lacking:
        kinds = f"results have {type(lacking[0]).__name__} ids"
        if references:
            kinds += f", references {type(next(iter(references))).__name__} ids"
        raise ValueError(
            f"references: {len(lacking)} of {len(results)} results have no reference "
            f"(ids {', '.join(map(repr, lacking[:5]))}{', ...' if len(lacking) > 5 else ''}; {kinds}); "
            "score against the annotations of the same split"
        )
