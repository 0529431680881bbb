"""CIDEr-D (Vedantam, Zitnick, Parikh 2015): the score that COCO's evaluation prints as `CIDEr`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

ORDERS = 4
SIGMA = 6.0
SCALE = 10.0

Words = Sequence[str]
_Vector = tuple[dict[tuple[str, ...], float], float, int]  # weights of one order's n-grams, their norm, words


class CiderD:
    """Scores captions against references whose n-grams are weighed by how few images have them.

    An n-gram weighs its count times log(images / images that have it); a caption and a reference are compared by the
    cosine of their weights, the caption's clipped to the reference's (the D), and damped by a Gaussian of the
    difference in length. With one image every weight, and so the score, is 0.
    """

    def __init__(self, corpus: Iterable[Sequence[Words]]) -> None:
        """corpus: the references of each image, for the frequencies."""
        images = 0
        frequencies: Counter[tuple[str, ...]] = Counter()
        for references in corpus:
            images += 1
            frequencies.update({gram for words in references for gram in _grams(words)})
        self._rarest = math.log(images) if images else 0.0  # what an n-gram weighs that one image has, or none
        self._weights = {gram: self._rarest - math.log(n) for gram, n in frequencies.items() if n > 1}

    def score(self, caption: Words, references: Sequence[Words]) -> float:
        """CIDEr-D of one image, in [0, 10]: the mean over references and over n-grams of 1 to 4 words."""
        return self.scores([caption], references)[0]

    def scores(self, captions: Iterable[Words], references: Sequence[Words]) -> list[float]:
        """`score` of several captions of one image, whose references are counted once."""
        others = [self._vectors(words) for words in references]
        found = []
        for caption in captions:
            vectors = self._vectors(caption)
            total = sum(sum(map(_similarity, vectors, other)) for other in others)
            found.append(SCALE * total / ORDERS / len(references))
        return found

    def _vectors(self, words: Words) -> list[_Vector]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        squares = [0.0] * ORDERS
        for gram, count in Counter(_grams(words)).items():
            weight = count * self._weights.get(gram, self._rarest)
            weights[len(gram) - 1][gram] = weight
            squares[len(gram) - 1] += weight * weight
        return [(weights[n], math.sqrt(squares[n]), len(words)) for n in range(ORDERS)]


def _similarity(caption: _Vector, reference: _Vector) -> float:
    weights, norm, length = caption
    other, other_norm, other_length = reference
    product = sum(min(weight, other[gram]) * other[gram] for gram, weight in weights.items() if gram in other)
    if not product:
        return 0.0
    return product / (norm * other_norm) * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))


def _grams(words: Words) -> Iterator[tuple[str, ...]]:
    for n in range(1, ORDERS + 1):
        yield from zip(*(words[i:] for i in range(n)), strict=False)
