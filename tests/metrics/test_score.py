"""All scores together: the official tools' figures, names and their order, scores per image, ids that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycap import config, metrics

RESULTS = {1: "A dog runs on the grass.", 2: "two men talk", 3: "a red car"}
REFERENCES = {
    1: ["A dog runs over the grass.", "The dog's on grass"],
    2: ["Two men sit and talk.", "men talk"],
    3: ["a bus", "there's a bus in the street"],
    4: ["not asked for"],
}


@pytest.mark.realdata
def test_equals_the_official_figures(data_root: Path) -> None:
    """1,000 captions by coco-caption at 3a9afb2: the digits that it was recorded with."""
    folder = data_root / "caption_metrics"
    rows = json.loads((folder / "fakecap_ref_tokenized.json").read_text())
    results = {
        r["image_id"]: r["caption"] for r in json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    }
    references = {r["image_id"]: r["refs"] for r in rows}
    got = metrics.score(results, references, tokenizer=str.split)
    bleu = {"BLEU-1": 0.57940, "BLEU-2": 0.40439, "BLEU-3": 0.27854, "BLEU-4": 0.19083}
    assert {name: got[name] for name in bleu} == pytest.approx(bleu, abs=6e-6)
    assert got["ROUGE-L"] == pytest.approx(0.3962527, abs=6e-8)
    assert got["CIDEr"] == pytest.approx(0.5997905, abs=6e-8)
    # Tokenising twice is not the same, but for captions as these nearly.
    assert metrics.score(results, references) == pytest.approx(got, rel=1e-3)


def test_names_and_their_order() -> None:
    assert tuple(metrics.score(RESULTS, REFERENCES)) == metrics.NAMES
    assert config.SCORES == (*metrics.NAMES, "METEOR")


def test_references_without_a_result_count_for_nothing() -> None:
    asked = {i: REFERENCES[i] for i in RESULTS}
    assert metrics.score(RESULTS, REFERENCES) == metrics.score(RESULTS, asked)


def test_scores_of_each_image() -> None:
    images = metrics.score_images(RESULTS, REFERENCES)
    together = metrics.score(RESULTS, REFERENCES)
    assert list(images) == [1, 2, 3] and all(tuple(row) == metrics.NAMES for row in images.values())
    for name in ("ROUGE-L", "CIDEr"):
        assert sum(row[name] for row in images.values()) / 3 == pytest.approx(together[name], rel=1e-12)
    assert images[1]["BLEU-1"] == pytest.approx(1.0)  # "on" stands in the second reference
    assert images[2]["ROUGE-L"] > 0.9 and images[3]["BLEU-2"] == 0.0
    assert images[1]["CIDEr"] > images[3]["CIDEr"] >= 0.0


def test_captions_are_compared_as_penn_treebank_tokens_or_as_asked() -> None:
    """A reference's `dog's` has the word `dog`, and full stops and capitals do not count."""
    assert metrics.score({1: "The dog"}, {1: ["the dog's."]})["BLEU-2"] == pytest.approx(1 / 2.718281828459045**0.5)
    assert metrics.score({1: "A B C D"}, {1: ["a b c d"]})["BLEU-4"] == 1.0
    assert metrics.score({1: "A B C D"}, {1: ["a b c d"]}, tokenizer=str.split)["BLEU-1"] == 0.0


@pytest.mark.parametrize("scores", [metrics.score, metrics.score_images])
def test_results_without_references_are_named(scores) -> None:
    with pytest.raises(ValueError, match=r"2 of 3 results have no reference \(ids 7, 8; results have int ids"):
        scores({7: "a", 8: "b", 9: "c"}, {9: ["c"], 8: []})
    with pytest.raises(ValueError, match="results have int ids, references str ids"):
        scores({7: "a"}, {"7": ["a"]})
    with pytest.raises(ValueError, match="no captions to score"):
        scores({}, {1: ["a"]})


def test_distinct_ratio() -> None:
    assert metrics.distinct_ratio(["a dog", "a cat", "a dog", "a dog"]) == 0.5
    assert metrics.distinct_ratio(iter(["a"] * 10)) == 0.1
    assert metrics.distinct_ratio([]) == 1.0
