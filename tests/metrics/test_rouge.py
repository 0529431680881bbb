"""ROUGE-L against the textbook's table of longest common subsequences, by hand, and at its borders."""

from __future__ import annotations

import random

import pytest

from pycap.metrics import rouge_l


def naive(caption: list[str], references: list[list[str]]) -> float:
    """Lin 2004 with the maxima of COCO's evaluation, by dynamic programming over a table."""
    precisions, recalls = [], []
    for reference in references:
        table = [[0] * (len(reference) + 1) for _ in range(len(caption) + 1)]
        for i, a in enumerate(caption):
            for j, b in enumerate(reference):
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
        precisions.append(table[-1][-1] / len(caption))
        recalls.append(table[-1][-1] / len(reference))
    p, r = max(precisions), max(recalls)
    return (1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_against_the_table(seed: int) -> None:
    rng = random.Random(seed)

    def words(most: int) -> list[str]:
        return [rng.choice("abcde"[: 2 + seed % 4]) for _ in range(rng.randint(1, most))]

    for _ in range(20):
        caption, references = words(80 if seed % 5 == 0 else 12), [words(12) for _ in range(rng.randint(1, 5))]
        assert rouge_l(caption, references) == naive(caption, references)


def test_by_hand() -> None:
    # "the cat" is common: 2 of 3 words of the caption, 2 of 4 of the reference.
    expected = 2.44 * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3)
    assert rouge_l(["the", "cat", "sat"], [["the", "big", "cat", "lay"]]) == pytest.approx(expected, rel=1e-14)


def test_precision_and_recall_may_come_from_different_references() -> None:
    # Precision 1 from the long reference, recall 1 from the short one: together a perfect score.
    assert rouge_l(["a", "b", "c"], [["a", "x", "b", "y", "c", "z"], ["b"]]) == pytest.approx(1.0, rel=1e-14)


def test_borders() -> None:
    assert rouge_l(["a", "b"], [["a", "b"]]) == pytest.approx(1.0, rel=1e-14)
    assert rouge_l(["a", "b"], [["c", "d"]]) == 0.0
    assert rouge_l([], [["a"]]) == 0.0
    assert rouge_l(["a"], [[]]) == 0.0
