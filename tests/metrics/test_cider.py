"""CIDEr-D against loops that follow the paper's formulas, by hand, and at its borders."""

from __future__ import annotations

import math
import random

import pytest

from pycap.metrics import CiderD

Corpus = dict[int, list[list[str]]]


def naive(caption: list[str], references: list[list[str]], corpus: Corpus) -> float:
    """Equations of Vedantam et al. 2015, section 4, with counts for term frequencies as in COCO's evaluation."""

    def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram: tuple[str, ...], words: list[str]) -> float:
        images = sum(any(gram in grams(r, len(gram)) for r in refs) for refs in corpus.values())
        return grams(words, len(gram)).count(gram) * math.log(len(corpus) / max(1, images))

    total = 0.0
    for n in range(1, 5):
        for reference in references:
            every = sorted({*grams(caption, n), *grams(reference, n)})
            c, r = [weight(g, caption) for g in every], [weight(g, reference) for g in every]
            norm = math.sqrt(sum(x * x for x in c)) * math.sqrt(sum(x * x for x in r))
            if norm:
                cosine = sum(min(x, y) * y for x, y in zip(c, r, strict=True)) / norm
                apart = len(caption) - len(reference)
                total += cosine * math.exp(-(apart**2) / 72) / len(references)
    return 10 * total / 4


@pytest.mark.parametrize("seed", range(8))
def test_against_loops(seed: int) -> None:
    rng = random.Random(seed)

    def words(most: int) -> list[str]:
        return [rng.choice("abcdefgh"[: 3 + seed % 6]) for _ in range(rng.randint(0, most))]

    corpus: Corpus = {i: [words(9) for _ in range(rng.randint(1, 5))] for i in range(8)}
    cider = CiderD(corpus.values())
    scores = []
    for i, references in corpus.items():
        captions = [words(14) for _ in range(2)]
        expected = [naive(caption, references, corpus) for caption in captions]
        assert cider.scores(captions, references) == pytest.approx(expected, rel=1e-12, abs=1e-12), i
        assert [cider.score(caption, references) for caption in captions] == cider.scores(captions, references)
        scores += expected
    assert max(scores) > 0.1, "the cases must not all be empty"


def test_by_hand() -> None:
    # Two images without a common word: every weight is log 2. One word of two is right: cosine 1/2 over words, no
    # bigram, and lengths alike; so 10 * (1/2) / 4.
    cider = CiderD([[["a", "b"]], [["c", "d"]]])
    assert cider.score(["a", "x"], [["a", "b"]]) == pytest.approx(10 * 0.5 / 4, rel=1e-14)
    # The clip: a word said twice counts once, against a norm that counts it twice.
    expected = 10 * (1 / (2 * math.sqrt(2))) / 4
    assert cider.score(["a", "a"], [["a", "b"]]) == pytest.approx(expected, rel=1e-14)
    # The Gaussian: three words longer, of which one is right.
    expected = 10 * (1 / (math.sqrt(5) * math.sqrt(2))) * math.exp(-9 / 72) / 4
    assert cider.score(["a", "v", "w", "x", "y"], [["a", "b"]]) == pytest.approx(expected, rel=1e-14)


def test_borders() -> None:
    four = ["a", "b", "c", "d"]
    cider = CiderD([[four], [["e", "f", "g", "h"]]])
    assert cider.score(four, [four]) == pytest.approx(10.0, rel=1e-14)
    assert cider.score(["e", "f", "g", "h"], [four]) == 0.0
    assert cider.score([], [four]) == 0.0 and cider.score(four, [[]]) == 0.0
    assert CiderD([[four]]).score(four, [four]) == 0.0, "what every image has weighs nothing"


def test_the_end_as_a_word() -> None:
    """As a self-critical reward counts it: it weighs nothing by itself, for every reference has it, but says where one ends."""
    plain = [[["a", "b"]], [["c", "d"]]]
    cider = CiderD([[[*words, "<end>"] for words in references] for references in plain])
    reference = ["a", "b", "<end>"]
    assert cider.score(["<end>"], [reference]) == 0.0
    # Of 1 to 3 words all n-grams are right, of 4 there are none.
    assert cider.score(reference, [reference]) == pytest.approx(10 * 3 / 4, rel=1e-14)
    # Not ended: the words, one of two bigrams, no trigram; and one word less.
    expected = 10 * (1 + 1 / math.sqrt(2)) * math.exp(-1 / 72) / 4
    assert cider.score(["a", "b"], [reference]) == pytest.approx(expected, rel=1e-14)
    # One more word before the end: of the words, two of three, or two and one of them twice; one of three bigrams.
    for other, words in (("x", 2 / math.sqrt(3 * 2)), ("a", 2 / math.sqrt(5 * 2))):
        expected = 10 * (words + 1 / math.sqrt(3 * 2)) * math.exp(-1 / 72) / 4
        assert cider.score(["a", "b", other, "<end>"], [reference]) == pytest.approx(expected, rel=1e-14)
