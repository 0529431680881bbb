"""The scores under names of their own: `bleu_keras` by hand, nltk's METEOR with and without WordNet."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pycap import metrics


def test_bleu_keras_counts_the_marks_of_start_and_end() -> None:
    # startseq red car endseq against startseq blue bus endseq: 2 of 4 words, no pair of words.
    got = metrics.score({1: "red car"}, {1: ["blue bus"]}, also=["bleu_keras"])
    assert list(got) == [*metrics.NAMES, *(f"bleu_keras-{n}" for n in range(1, 5))]
    assert (got["BLEU-1"], got["bleu_keras-1"], got["bleu_keras-2"]) == (0.0, 0.5, 0.0)
    # 3 of 4 words, and 2 of 3 pairs, of which BLEU sees neither mark: 1 of 2 words, and no pair.
    got = metrics.score({1: "red car"}, {1: ["red bus"]}, also=["bleu_keras"])
    assert (got["BLEU-1"], got["BLEU-2"], got["bleu_keras-1"]) == (0.5, 0.0, 0.75)
    assert got["bleu_keras-2"] == pytest.approx((3 / 4 * 1 / 3) ** 0.5)


def test_meteor_of_nltk_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without synonyms: all words match in one chunk, so 1 less a penalty of (1/2) (chunks / words)^3; the mean over images."""
    import nltk.corpus

    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=lambda: None, synsets=lambda word: []))
    got = metrics.score({1: "a dog runs", 2: "bus"}, {1: ["A dog runs."], 2: ["car"]}, also=["meteor_nltk"])
    assert got["meteor_nltk"] == pytest.approx((1 - 0.5 / 27) / 2, rel=1e-12)
    assert "METEOR" not in got


def test_without_wordnet_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk.corpus

    def missing() -> None:
        raise LookupError

    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=missing))
    with pytest.raises(LookupError, match="python -m nltk.downloader wordnet"):
        metrics.score({1: "a"}, {1: ["a"]}, also=["meteor_nltk"])


def test_a_score_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="no score is named 'SPICE'; there are METEOR, bleu_keras, meteor_nltk"):
        metrics.score({1: "a"}, {1: ["a"]}, also=["SPICE"])
