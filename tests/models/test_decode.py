"""Beam search against exhaustive search on a model small enough to enumerate, and its promises."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from pycap.autograd import Tensor
from pycap.decode import beam_search

START, END, UNK, V = 1, 2, 3, 8


@dataclass
class Prefixes:
    """The decoder's state: each row's image and the words fed so far."""

    sentences: list[tuple[int, ...]]

    def rows(self, index: np.ndarray) -> Prefixes:
        return Prefixes([self.sentences[i] for i in index])


class Table:
    """A decoder whose logits are a fixed function of the image and of the last two words."""

    def __init__(self, seed: int = 0) -> None:
        self.logits = np.random.default_rng(seed).standard_normal((4, V, V, V)).astype(np.float32) * 1.5
        self.calls = 0

    def begin(self, images: Tensor) -> Prefixes:
        return Prefixes([(int(i),) for i in images.data])

    def advance(self, state: Prefixes, words: np.ndarray) -> tuple[np.ndarray, Prefixes]:
        self.calls += 1
        new = Prefixes([(*s, int(w)) for s, w in zip(state.sentences, words, strict=True)])
        return np.stack([self.of(s) for s in new.sentences]), new

    def of(self, sentence: tuple[int, ...]) -> np.ndarray:
        before = sentence[-2] if len(sentence) > 2 else 0
        return self.logits[sentence[0], before, sentence[-1]]

    def logp(self, sentence: tuple[int, ...]) -> np.ndarray:
        z = self.of(sentence).astype(np.float64)
        z[[0, START, UNK]] = -np.inf
        return z - np.log(np.exp(z - z.max()).sum()) - z.max()


def search(model: Table, images: int, **how: object) -> list[list]:
    options = {"beam_size": 3, "max_length": 4, "start": START, "end": END, "suppress": (0, START, UNK)} | how
    return beam_search(model, Tensor(np.arange(images, dtype=np.float32)), **options)  # type: ignore[arg-type]


def exhaustive(model: Table, image: int, max_length: int, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    words = [w for w in range(V) if w not in (0, START, UNK, END)]
    found = []
    for length in range(max_length + 1):
        for sentence in itertools.product(words, repeat=length):
            logprob, prefix = 0.0, (image, START)
            for word in sentence:
                logprob += model.logp(prefix)[word]
                prefix = (*prefix, word)
            if length < max_length:
                logprob += model.logp(prefix)[END]
                found.append((logprob / (length + 1) ** penalty, sentence))
            else:  # at the limit a sentence is taken as it stands
                found.append((logprob / (length + 1) ** penalty, sentence))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_a_beam_as_wide_as_the_tree_finds_the_best_sentence(penalty: float) -> None:
    model = Table()
    results = search(model, 4, beam_size=300, max_length=4, length_penalty=penalty)
    for image in range(4):
        best = exhaustive(model, image, 4, penalty)
        assert results[image][0].ids == best[0][1]
        assert results[image][0].score == pytest.approx(best[0][0], rel=1e-5)


def test_a_beam_of_one_is_greedy() -> None:
    model = Table(3)
    for image, (hypothesis,) in enumerate(search(model, 4, beam_size=1, max_length=6)):
        prefix, logprob = (image, START), 0.0
        for _ in range(6):
            word = int(np.argmax(model.logp(prefix)))
            logprob += model.logp(prefix)[word]
            if word == END:
                break
            prefix = (*prefix, word)
        assert hypothesis.ids == prefix[2:]
        assert hypothesis.logprob == pytest.approx(logprob, rel=1e-5)


def test_an_end_outside_the_beam_ends_nothing() -> None:
    """The k best candidates of a step may end; an END that ranks below them may not, however well it would do later."""
    model = Table()
    model.logits[:] = 0
    model.logits[:, 0, START, :] = -50
    model.logits[:, 0, START, [4, 5]] = (1.0, 0.9)  # two beams: 4 and 5
    for word in (4, 5):
        model.logits[:, START, word, :] = -50
    model.logits[:, START, 4, [END, 6]] = (1.0, 0.6)  # ranks 0 and 1
    model.logits[:, START, 5, [END, 6, 7]] = (0.5, 0.4, 0.3)  # rank 2: END after 5
    found = [h.ids for h in search(model, 1, beam_size=2, max_length=3)[0]]
    assert found[0] == (4,)
    assert (5,) not in found and found[1][:2] == (4, 6)


def test_every_beam_at_the_limit_is_a_sentence() -> None:
    """However the next words would rank: one beam's continuations may not crowd the others out."""
    model = Table()
    model.logits[:] = -50
    model.logits[:, 0, START, [4, 5, 6]] = (1.0, 0.9, 0.8)
    for word, after in ((4, (0.0, 0.0, 0.0)), (5, (9.0, 0.0, -9.0)), (6, (1.0, 0.9, -50.0))):
        model.logits[:, START, word, [4, 5, 6]] = after
    hypotheses = search(model, 1, beam_size=3, max_length=1)[0]
    assert [h.ids for h in hypotheses] == [(4,), (5,), (6,)]
    prefix = model.logp((0, START))
    assert [h.logprob for h in hypotheses] == pytest.approx([prefix[w] for w in (4, 5, 6)], rel=1e-5)


def test_results_do_not_depend_on_the_batch() -> None:
    together = search(Table(), 4)
    for image in range(4):
        alone = beam_search(
            Table(),
            Tensor(np.array([image], np.float32)),
            beam_size=3,
            max_length=4,
            start=START,
            end=END,
            suppress=(0, START, UNK),
        )
        assert alone[0] == together[image]


def test_beams_are_sorted_distinct_and_never_hold_suppressed_words() -> None:
    for beams in search(Table(5), 4, beam_size=4, max_length=5):
        assert len({h.ids for h in beams}) == len(beams) >= 1
        assert [h.score for h in beams] == sorted((h.score for h in beams), reverse=True)
        assert all(not {0, START, UNK, END} & set(h.ids) for h in beams)
        assert all(len(h.ids) <= 5 for h in beams)


def test_search_stops_once_nothing_can_improve() -> None:
    model = Table()
    model.logits[:, :, :, END] = 30  # END at once
    search(model, 4, beam_size=1, max_length=50)
    assert model.calls == 1


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="beam_size 0"):
        search(Table(), 1, beam_size=0)
