"""BLEU against a count by hand, and at its borders."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter

import pytest

from pycap import metrics

ZERO = {f"BLEU-{n}": 0.0 for n in range(1, 5)}


def split(captions: dict[int, str], references: dict[int, list[str]]) -> dict[str, float]:
    return metrics.bleu(
        {i: c.split() for i, c in captions.items()}, {i: [c.split() for c in r] for i, r in references.items()}
    )


def by_hand(results: dict[int, list[str]], references: dict[int, list[list[str]]]) -> dict[str, float]:
    """Papineni et al. 2002 as COCO's evaluation counts: clipped n-grams of the corpus over all n-grams of it."""
    match, total = Counter[int](), Counter[int]()
    length = closest = 0
    for key, words in results.items():
        length += len(words)
        closest += min((len(r) for r in references[key]), key=lambda n: (abs(n - len(words)), n))
        for n in range(1, 5):
            grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            most: Counter[tuple[str, ...]] = Counter()
            for r in references[key]:
                most |= Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            match[n] += sum(min(c, most[g]) for g, c in grams.items())
            total[n] += sum(grams.values())
    brevity = 1.0 if length >= closest else math.exp(1 - closest / length)
    scores, log = {}, 0.0
    for n in range(1, 5):
        log += math.log(match[n] / total[n]) if match[n] else -math.inf
        scores[f"BLEU-{n}"] = brevity * math.exp(log / n)
    return scores


@pytest.mark.parametrize("seed", range(6))
def test_against_a_count_by_hand(seed: int) -> None:
    """Random captions of 1 to 9 words of a few, so that repeats, short captions and brevity all occur."""
    rng = random.Random(seed)

    def caption(least: int, most: int) -> list[str]:
        return [rng.choice("abcd") for _ in range(rng.randint(least, most))]

    results = {i: caption(1, 9 if seed % 2 else 5) for i in range(12)}
    references = {i: [caption(3, 9) for _ in range(rng.randint(1, 5))] for i in range(15)}
    got = metrics.bleu(results, references)
    assert got == pytest.approx(by_hand(results, references), rel=1e-12)


def test_perfect_and_disjoint() -> None:
    references = {1: ["a dog runs over the grass", "a cat"]}
    assert split({1: "a dog runs over the grass"}, references) == dict.fromkeys(ZERO, 1.0)
    assert split({1: "seven red houses stand there"}, references) == ZERO


def test_orders_without_a_match_are_zero_and_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = split({1: "a dog sees the cat"}, {1: ["a dog and one cat ran"]})
        assert got["BLEU-1"] > 0.4 and got["BLEU-2"] > 0.2
        assert (got["BLEU-3"], got["BLEU-4"]) == (0.0, 0.0)
        assert split({1: ""}, {1: ["a dog"]}) == ZERO
        assert split({1: "dog"}, {1: ["dog"]}) == {**ZERO, "BLEU-1": 1.0}
