"""Ensembles: the mean of probabilities against means worked out by hand, under every way of decoding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pycap.autograd import Tensor
from pycap.decode import Ensemble, Rules, Sampling, Views, beam_search, device_beam_search, host_beam_search, sample
from tests.models.test_decode import END, START, UNK, Table, V
from tests.models.test_decode_device import MODELS, Hashing, images_of
from tests.models.test_nic import batch, small_nic

RULES: dict[str, Any] = {"max_length": 4, "start": START, "end": END, "suppress": (0, START, UNK)}


def softmax(logits: np.ndarray) -> np.ndarray:
    mass = np.exp(logits.astype(np.float64))
    return mass / mass.sum(-1, keepdims=True)


def rescored(members: list[Table], image: int, ids: tuple[int, ...]) -> float:
    """The log-probability of a sentence, END included unless it was cut, by the members' mean probabilities."""
    logprob, prefix = 0.0, (image, START)
    for word in (*ids, END)[: RULES["max_length"]]:
        mean = sum(softmax(m.of(prefix)) for m in members) / len(members)
        logprob += math.log(mean[word] / sum(mean[w] for w in range(V) if w not in RULES["suppress"]))
        prefix = (*prefix, word)
    return logprob


def test_the_logits_are_the_logarithm_of_the_mean_probability() -> None:
    logits = [np.log([[0.5, 0.25, 0.25]]), np.log([[0.1, 0.3, 0.6]]) + 3, np.log([[0.3, 0.5, 0.2]]) - 90]
    members = []
    for values in logits:
        member = Table()
        member.of = lambda sentence, values=values: values[0].astype(np.float32)  # type: ignore[method-assign]
        members.append(member)
    together = Ensemble(members)
    state = together.begin(Tensor(np.zeros(1, np.float32)))
    found, _ = together.advance(state, np.array([START], np.int32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found), [[0.3, 0.35, 0.35]], rtol=1e-5)  # logits of 90 are exact to 4e-6


def test_large_logits_do_not_overflow_and_small_probabilities_do_not_vanish() -> None:
    members = [Table(), Table()]
    members[0].of = lambda sentence: np.array([1000, 700, 400, 400], np.float32)  # type: ignore[method-assign]
    members[1].of = lambda sentence: np.array([-1000, -1300, -1000, -1600], np.float32)  # type: ignore[method-assign]
    together = Ensemble(members)
    found, _ = together.advance(together.begin(Tensor(np.zeros(1, np.float32))), np.array([START], np.int32))
    # p = (1, e^-300, e^-600, e^-600) and (1/2, e^-300/2, 1/2, e^-600/2)
    expected = [math.log(0.75), -300 + math.log(0.75), math.log(0.25), -600 + math.log(0.75)]
    np.testing.assert_allclose(found[0], expected, rtol=2**-24)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_one_model_several_times_is_that_model(copies: int) -> None:
    """float64 in between: the logarithms are off by float32's last bit, and sums of five words by as many."""
    images = Tensor(np.arange(4, dtype=np.float32))
    together, alone = Ensemble([Table(3)] * copies), Table(3)
    drawn = [sample(model, images, Sampling(samples=9, seed=2), **RULES) for model in (together, alone)]
    for k in (1, 3):
        searched = [beam_search(model, images, beam_size=k, **RULES) for model in (together, alone)]
        for ours, theirs in (searched, drawn):
            assert [[h.ids for h in beams] for beams in ours] == [[h.ids for h in beams] for beams in theirs]
            logprobs = [[[h.logprob for h in beams] for beams in each] for each in (ours, theirs)]
            np.testing.assert_allclose(np.concatenate(logprobs[0]), np.concatenate(logprobs[1]), rtol=5e-7, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_a_beams_logprob_is_that_of_its_sentence(k: int) -> None:
    members = [Table(seed) for seed in (0, 1, 2)]
    images = Tensor(np.arange(4, dtype=np.float32))
    found = beam_search(Ensemble(members), images, beam_size=k, **RULES)
    for image, beams in enumerate(found):
        for h in beams:
            assert h.logprob == pytest.approx(rescored(members, image, h.ids), rel=1e-5)


def test_samples_come_from_the_mean() -> None:
    """END's share of the first words, to four standard deviations of a binomial count: one in 15,000."""
    members = [Table(5), Table(0)]
    (found,) = sample(Ensemble(members), Tensor(np.zeros(1, np.float32)), Sampling(samples=4000, seed=1), **RULES)
    p = math.exp(rescored(members, 0, ()))
    ended = sum(h.ids == () for h in found)
    assert abs(ended - 4000 * p) < 4 * math.sqrt(4000 * p * (1 - p))
    assert abs(math.exp(Table(5).logp((0, START))[END]) - p) > 0.05  # neither member alone would pass
    for h in found[:50]:
        assert h.logprob == pytest.approx(rescored(members, 0, h.ids), rel=1e-5)


class Renumbered(Table):
    """A table whose words have other numbers: `new[w]` is that of w."""

    def __init__(self, seed: int, new: np.ndarray) -> None:
        super().__init__(seed)
        self.old = np.argsort(new)

    def of(self, sentence: tuple[int, ...]) -> np.ndarray:
        return super().of((sentence[0], *(int(self.old[w]) for w in sentence[1:])))[self.old]


def test_members_may_number_the_same_words_differently() -> None:
    new = np.array([0, 1, 2, 3, 6, 4, 7, 5], np.int32)
    images = Tensor(np.arange(4, dtype=np.float32))
    plain = beam_search(Ensemble([Table(0), Table(1)]), images, beam_size=3, **RULES)
    found = beam_search(Ensemble([Table(0), Renumbered(1, new)], [None, new]), images, beam_size=3, **RULES)
    assert [[h.ids for h in beams] for beams in found] == [[h.ids for h in beams] for beams in plain]
    for ours, theirs in zip(found, plain, strict=True):
        assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], rel=1e-6)
    unmapped = beam_search(Ensemble([Table(0), Renumbered(1, new)]), images, beam_size=3, **RULES)
    assert [[h.ids for h in beams] for beams in unmapped] != [[h.ids for h in beams] for beams in plain]


def test_the_search_on_the_device_finds_the_same_to_the_last_bit() -> None:
    for (seed, few, ends), k in zip(MODELS, (1, 2, 3) * 9, strict=True):
        rules = Rules(k, 7, START, END, (0, START), 0.7)
        expected, found = (
            search(Ensemble([Hashing(seed, few, ends), Hashing(seed + 9, few, ends)]), images_of(4), rules)
            for search in (host_beam_search, device_beam_search)
        )
        assert found == expected


def test_each_member_sees_its_own_view_of_the_images() -> None:
    members = [small_nic(), small_nic(seed=1)]
    for member in members:
        member.train(False)
    images, other = batch(images=2)[0], Tensor(batch(images=2)[0].data * np.float32(0.5) + np.float32(1))
    together = Ensemble(members)
    views = Views([images, other])
    assert views.shape == images.shape
    words = np.array([1, 1], np.int32)
    found, _ = together.advance(together.begin(views), words)
    each = [m.advance(m.begin(x), words)[0] for m, x in zip(members, (images, other), strict=True)]
    np.testing.assert_allclose(np.exp(found), (softmax(each[0]) + softmax(each[1])) / 2, rtol=1e-6)
    assert sorted(together.state_arrays()) == sorted(
        f"member{i}.{name}" for i, m in enumerate(members) for name in m.state_arrays()
    )
