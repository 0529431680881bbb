"""ROUGE-L (Lin 2004) of a caption as COCO's evaluation has it: longest common subsequences, recall weighed more."""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The F-measure of one image, in [0, 1]: recall counts BETA times as much as precision.

    As there, the best precision and the best recall may come from two different references.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(caption):
        places[word] = places.get(word, 0) | 1 << i
    precision = recall = 0.0
    for reference in references:
        common = _common(places, len(caption), reference)
        if common:
            precision = max(precision, common / len(caption))
            recall = max(recall, common / len(reference))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(places: dict[str, int], length: int, reference: Sequence[str]) -> int:
    """The length of the longest common subsequence. `places[word]`: a bit for each position of a word in the caption.

    One row of the table of dynamic programming is one integer (Hyyrö 2004): a bit of `row` is 0 where the row's value
    grows from one position to the next, so that its zeros are its last value.
    """
    full = (1 << length) - 1
    row = full
    for word in reference:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return length - row.bit_count()
