"""BLEU against the official tool's figures, a count by hand, and its borders; and the ratio of distinct captions."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections import Counter
from pathlib import Path

import pytest

from pycap import metrics


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
    got = metrics.score(
        {i: " ".join(c) for i, c in results.items()},
        {i: [" ".join(r) for r in refs] for i, refs in references.items()},
    )
    assert got == pytest.approx(by_hand(results, references), rel=1e-12)


@pytest.mark.realdata
def test_equals_the_official_figures(data_root: Path) -> None:
    folder = data_root / "caption_metrics"
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    rows = json.loads((folder / "fakecap_ref_tokenized.json").read_text())
    got = metrics.score(
        {r["image_id"]: r["caption"] for r in results}, {r["image_id"]: r["refs"] for r in rows}, tokenizer=str.split
    )
    official = {"BLEU-1": 0.57940, "BLEU-2": 0.40439, "BLEU-3": 0.27854, "BLEU-4": 0.19083}
    assert got == pytest.approx(official, abs=6e-6)  # they are given to five digits


def test_perfect_and_disjoint() -> None:
    references = {"x": ["a dog runs over the grass", "a cat"]}
    assert metrics.score({"x": "A dog runs over the grass."}, references) == {f"BLEU-{n}": 1.0 for n in range(1, 5)}
    assert metrics.score({"x": "seven red houses stand there"}, references) == {f"BLEU-{n}": 0.0 for n in range(1, 5)}


def test_orders_without_a_match_are_zero_and_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = metrics.score({1: "a dog sees the cat"}, {1: ["a dog and one cat ran"]})
        assert got["BLEU-1"] > 0.4 and got["BLEU-2"] > 0.2
        assert (got["BLEU-3"], got["BLEU-4"]) == (0.0, 0.0)
        assert metrics.score({1: ""}, {1: ["a dog"]}) == {f"BLEU-{n}": 0.0 for n in range(1, 5)}
        assert metrics.score({1: "dog"}, {1: ["dog"]}) == {"BLEU-1": 1.0, "BLEU-2": 0.0, "BLEU-3": 0.0, "BLEU-4": 0.0}


def test_tokenizer_is_used_on_both_sides() -> None:
    assert metrics.words("It's a T-shirt, 2 of them!") == ["it's", "a", "t", "shirt", "2", "of", "them"]
    assert metrics.score({1: "A B C D"}, {1: ["a b c d"]}, tokenizer=str.split)["BLEU-1"] == 0.0
    assert metrics.score({1: "A B C D"}, {1: ["a b c d"]}, tokenizer=lambda s: s.lower().split())["BLEU-4"] == 1.0


def test_references_without_a_result_are_left_out() -> None:
    assert metrics.score({1: "a b c d"}, {1: ["a b c d"], 2: ["x"]})["BLEU-4"] == 1.0


def test_results_without_references_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 results have no reference \(ids 7, 8; results have int ids"):
        metrics.score({7: "a", 8: "b", 9: "c"}, {9: ["c"], 8: []})
    with pytest.raises(ValueError, match="results have int ids, references str ids"):
        metrics.score({7: "a"}, {"7": ["a"]})
    with pytest.raises(ValueError, match="no captions to score"):
        metrics.score({}, {1: ["a"]})


def test_distinct_ratio() -> None:
    assert metrics.distinct_ratio(["a dog", "a cat", "a dog", "a dog"]) == 0.5
    assert metrics.distinct_ratio(iter(["a"] * 10)) == 0.1
    assert metrics.distinct_ratio([]) == 1.0
