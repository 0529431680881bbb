"""Sampling against probabilities worked out by hand, greedy search, and its promises: each sentence has numbers of its own."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pycap import backends, device, memory
from pycap.autograd import Tensor
from pycap.decode import Hypothesis, Sampling, beam_search, sample
from pycap.decode.sampling import draw
from tests import cupy_standin
from tests.models.test_decode import END, START, UNK, Table, V
from tests.models.test_decode_device import MODELS, Hashing
from tests.models.test_nic import batch, small_nic

SUPPRESS = (0, START, UNK)


def sentences(model: Any, images: Any, sampling: Sampling, **how: Any) -> list[list[Hypothesis]]:
    pixels = Tensor(np.asarray(images, np.float32)) if isinstance(images, list) else images
    options = {"max_length": 4, "start": START, "end": END, "suppress": SUPPRESS} | how
    return sample(model, pixels, sampling, **options)


def evenly(probabilities: list[float], sampling: Sampling, suppress: tuple[int, ...] = ()) -> np.ndarray:
    """How many of 1,000 evenly spaced uniform numbers draw each word."""
    logits = np.tile(np.log(np.array(probabilities)).astype(np.float32), (1000, 1))
    ids, _ = draw(logits, (np.arange(1000) + 0.5) / 1000, sampling, suppress)
    return np.bincount(ids, minlength=len(probabilities))


# The last column is worked out by hand: the words that are left, and their probabilities' ratios.
@pytest.mark.parametrize(
    ("sampling", "suppress", "expected"),
    [
        (Sampling(), (), (4, 1, 2, 1, 2)),
        (Sampling(), (0, 3), (0, 1, 2, 0, 2)),
        (Sampling(temperature=0.5), (), (16, 1, 4, 1, 4)),
        (Sampling(temperature=2.0), (1, 2), (2, 0, 0, 1, math.sqrt(2))),
        (Sampling(top_k=1), (), (1, 0, 0, 0, 0)),
        (Sampling(top_k=2), (), (2, 0, 1, 0, 0)),  # of the equal words 2 and 4 the smaller id
        (Sampling(top_k=3), (0,), (0, 1, 2, 0, 2)),
        (Sampling(top_k=99), (), (4, 1, 2, 1, 2)),
        (Sampling(top_p=0.39), (), (1, 0, 0, 0, 0)),
        (Sampling(top_p=0.41), (), (2, 0, 1, 0, 0)),
        (Sampling(top_p=0.79), (), (2, 0, 1, 0, 1)),
        (Sampling(top_p=0.81), (), (4, 1, 2, 0, 2)),
        (Sampling(top_p=0.91), (), (4, 1, 2, 1, 2)),
        (Sampling(top_p=0.49, top_k=3), (), (1, 0, 0, 0, 0)),  # 4 of the 8 that top-k leaves are 0.5
        (Sampling(top_p=0.51, top_k=3), (), (2, 0, 1, 0, 0)),
        (Sampling(top_p=0.6, temperature=0.5), (), (1, 0, 0, 0, 0)),  # 16 of 26 are 0.615
    ],
)
def test_words_are_drawn_as_often_as_probable(
    sampling: Sampling, suppress: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    """Each word owns an interval of the uniform numbers, so of evenly spaced ones it gets its share to within one."""
    counts = evenly([0.4, 0.1, 0.2, 0.1, 0.2], sampling, suppress)
    shares = 1000 * np.array(expected) / sum(expected)
    assert (np.abs(counts - shares) <= 1).all(), (counts, shares)
    assert not counts[shares == 0].any()


def test_the_smallest_number_draws_no_word_without_a_chance() -> None:
    ids, logprobs = draw(np.zeros((1, 3), np.float32), np.zeros(1), Sampling(), (0,))
    assert ids.tolist() == [1] and logprobs[0] == pytest.approx(math.log(0.5))


def test_words_that_sum_to_exactly_p_are_enough() -> None:
    logits = np.array([[0.0, -math.inf, 0.0]], np.float32).repeat(2, 0)  # probabilities without any rounding
    for p, drawn in ((0.5, [0, 0]), (0.51, [0, 2]), (1.0, [0, 2])):
        ids, _ = draw(logits, np.array([0.25, 0.75]), Sampling(top_p=p), ())
        assert ids.tolist() == drawn


def tree(model: Table, image: int, most: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every sentence, END included unless it was cut."""
    found = {}
    words = [w for w in range(V) if w not in (*SUPPRESS, END)]
    for length in range(most + 1):
        for sentence in itertools.product(words, repeat=length):
            logprob, prefix = 0.0, (image, START)
            for word in (*sentence, END)[:most]:
                logprob += model.logp(prefix)[word]
                prefix = (*prefix, word)
            found[sentence] = logprob
    return found


def test_sentences_come_as_often_as_their_probability_says() -> None:
    """Pearson's statistic over all sentences of up to two words. A chi-square variable of f degrees of freedom exceeds
    f + 2 sqrt(f x) + 2 x with a probability of at most exp(-x) (Laurent and Massart 2000): one in a million here."""
    model, count = Table(2), 4000
    (found,) = sentences(model, [1], Sampling(samples=count, seed=3), max_length=2)
    probabilities = {s: math.exp(logprob) for s, logprob in tree(model, 1, 2).items()}
    assert math.fsum(probabilities.values()) == pytest.approx(1.0)
    counts = Counter(h.ids for h in found)
    common = {s: count * p for s, p in probabilities.items() if count * p >= 5}
    rest = count - sum(common.values())
    terms = [(counts[s] - e) ** 2 / e for s, e in common.items()]
    terms.append((count - sum(counts[s] for s in common) - rest) ** 2 / rest)
    free, x = len(terms) - 1, math.log(1e6)
    assert free >= 10 and counts.keys() <= probabilities.keys()
    assert sum(terms) < free + 2 * math.sqrt(free * x) + 2 * x


@pytest.mark.parametrize("sampling", [Sampling(samples=40), Sampling(3.0, 4, 0.9, 40), Sampling(0.3, samples=40)])
def test_a_logprob_is_the_models_own_with_end_unless_it_was_cut(sampling: Sampling) -> None:
    model = Table(1)
    lengths = set()
    for image, found in enumerate(sentences(model, [0, 1, 2], sampling)):
        rescored = tree(model, image, 4)
        for h in found:
            assert h.logprob == h.score == pytest.approx(rescored[h.ids], rel=1e-5)
            lengths.add(len(h.ids))
    assert {0, 4} <= lengths or sampling.temperature < 1


def test_temperature_0_is_a_beam_of_one_to_the_last_bit() -> None:
    for seed, few, ends in MODELS:
        rules = {"max_length": 7, "start": START, "end": END, "suppress": (0, START)}
        images = Tensor(np.arange(5, dtype=np.float32))
        greedy = beam_search(Hashing(seed, few, ends), images, beam_size=1, **rules)
        cold = sample(Hashing(seed, few, ends), images, Sampling(temperature=0, samples=2), **rules)
        assert cold == [beams * 2 for beams in greedy]
        both = sample(Hashing(seed, few, ends), images, Sampling(samples=3), **rules, greedy=True)
        assert [found[:1] for found in both] == greedy
        assert [found[1:] for found in both] == sample(Hashing(seed, few, ends), images, Sampling(samples=3), **rules)


def test_a_sentence_depends_on_its_seed_key_and_number_alone() -> None:
    model = Table(4)
    together = sentences(model, [0, 1, 2, 3], Sampling(samples=6, seed=5), keys=["a", "b", 7, "d"])
    for image, key in enumerate(["a", "b", 7, "d"]):
        assert sentences(model, [image], Sampling(samples=6, seed=5), keys=[key]) == [together[image]]
        assert sentences(model, [image], Sampling(samples=2, seed=5), keys=[key]) == [together[image][:2]]
    warm, others = Sampling(2.0, samples=20), {}
    for seed, key in itertools.product((0, 1), (0, 1)):
        (found,) = sentences(model, [2], replace(warm, seed=seed), keys=[key])
        others[seed, key] = [h.ids for h in found]
        assert len(set(others[seed, key])) > 5
    assert len({str(found) for found in others.values()}) == 4
    assert [[h.ids for h in found] for found in sentences(model, [2, 2], warm)] == [others[0, 0], others[0, 1]]


class Counting(Table):
    """Counts the images that the model looks at, and the rows that it computes."""

    looked, rows = 0, 0

    def begin(self, images: Tensor) -> Any:
        self.looked += images.shape[0]
        return super().begin(images)

    def advance(self, state: Any, words: np.ndarray) -> Any:
        self.rows += len(words)
        return super().advance(state, words)


def test_an_image_is_looked_at_once_and_ended_sentences_leave_the_batch() -> None:
    model = Counting(6)
    found = sentences(model, [0, 1, 2], Sampling(samples=30), max_length=6)
    assert model.looked == 3
    assert model.rows == sum(min(len(h.ids) + 1, 6) for beams in found for h in beams) < 3 * 30 * 6


def test_where_probabilities_are_not_numbers_a_sentence_is_empty_and_leaves_the_batch() -> None:
    model = Counting(0)
    model.logits[1, :, 5] = model.logits[2] = np.nan
    sound, some, none = sentences(model, [0, 1, 2], Sampling(samples=60), greedy=True)
    assert all(h.logprob < 0 for h in sound)
    broken = [h for h in some if math.isnan(h.logprob)]
    assert 0 < len(broken) < 61 and all(h.ids == () for h in broken)
    assert not any(5 in h.ids[:3] for h in some)
    assert all(h.ids == () and math.isnan(h.logprob) for h in none)
    model.rows = 0
    sentences(model, [2], Sampling(samples=60), greedy=True)
    assert model.rows == 61


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": 0.001}, "temperature 0.001"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"samples": 0}, "samples 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Sampling(**values)


def test_another_number_of_keys_or_no_words_are_refused_and_no_images_are_fine() -> None:
    with pytest.raises(ValueError, match="2 keys"):
        sentences(Table(), [0], Sampling(), keys=[1, 2])
    with pytest.raises(ValueError, match="max_length 0"):
        sentences(Table(), [0], Sampling(), max_length=0)
    assert sentences(Table(), [], Sampling()) == []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr(memory, "_scratch", {})
    monkeypatch.setenv("PYCAP_BACKEND", "reference")
    yield


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("sampling", [Sampling(samples=4), Sampling(1.5, 5, 0.8, 3, 1), Sampling(0, samples=2)])
def test_the_joint_model_says_the_same_on_a_gpu_and_reads_back_every_few_steps(sampling: Sampling) -> None:
    found, images = {}, batch(images=3)[0]
    for name in ("cpu", "cuda"):
        with backends.use("reference", device=name):
            model = small_nic()
            model.train(False)
            pixels = Tensor(device.to_device(images.data))
            reads = cupy_standin.ndarray.reads
            found[name] = sentences(model, pixels, sampling, max_length=9, suppress=(0, START), greedy=True)
            reads = cupy_standin.ndarray.reads - reads
    assert reads <= 9 // 4 + 2  # a look every four steps; words and log-probabilities at the end
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert [h.ids for h in ours] == [h.ids for h in theirs]
        assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], rel=1e-6)
    assert len(found["cpu"][0]) == sampling.samples + 1
