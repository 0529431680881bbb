"""Beam search on the device against the one on the host: the same sentences, the same numbers, and nothing read in a step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pycap import backends, memory
from pycap.autograd import Tensor
from pycap.decode import Hypothesis, Rules, Searches, device_beam_search, host_beam_search
from pycap.decode.device import Board
from pycap.device import address
from tests.models.test_nic import batch, small_nic

START, END, V = 1, 2, 7


@dataclass
class Sums:
    """A decoder's state: a number for each row, made of its image and all words so far."""

    values: np.ndarray

    def rows(self, index: np.ndarray) -> Sums:
        return Sums(self.values[index])

    def rows_into(self, target: Sums, index: np.ndarray) -> None:
        target.values[...] = self.values[index]


class Hashing:
    """A decoder whose logits are drawn by a hash of the image and of all words before: from few values, so that they tie.

    ends: added to END's logits. few: how many values a logit may have.
    """

    def __init__(self, seed: int, few: int, ends: float) -> None:
        rng = np.random.default_rng(seed)
        self.table = (rng.integers(0, few, (251, V)) * 0.7).astype(np.float32)
        self.table[:, END] += np.float32(ends)
        self.steps = 0

    def begin(self, images: Tensor) -> Sums:
        return Sums(images.data.astype(np.int64) + 11)

    def advance(self, state: Sums, words: np.ndarray) -> tuple[np.ndarray, Sums]:
        self.steps += 1
        new = Sums((state.values * 31 + words + 1) % 251)
        return self.table[new.values].copy(), new

    def state_arrays(self) -> dict[str, Any]:
        return {"table": self.table}


def images_of(count: int) -> Tensor:
    return Tensor(np.arange(count, dtype=np.float32))


MODELS = [(seed, few, ends) for seed in range(3) for few in (1, 2, 30) for ends in (-1.0, 0.7, 3.0)]


@pytest.mark.parametrize("suppress", [(0, START), (0, START, 3, 5)])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_it_finds_what_the_host_finds_to_the_last_bit(penalty: float, suppress: tuple[int, ...]) -> None:
    lengths: set[int] = set()
    for (seed, few, ends), k, most in itertools.product(MODELS, (1, 2, 3, 5), (1, 2, 7, 12)):
        rules = Rules(k, most, START, END, suppress, penalty)
        images = images_of(1 + (seed + k + most) % 5)
        expected = host_beam_search(Hashing(seed, few, ends), images, rules)
        with memory.poisoned():
            found = device_beam_search(Hashing(seed, few, ends), images, rules)
        assert found == expected, (seed, few, ends, k, most)
        lengths |= {len(h.ids) for beams in expected for h in beams}
    assert {0, 1, 2, 5, 7, 12} <= lengths


def test_searches_in_memory_that_others_left_find_the_same() -> None:
    searches, model = Searches(limit=2), Hashing(1, 30, 0.7)
    for count, k in ((3, 2), (3, 2), (2, 2), (3, 3), (3, 2), (1, 1), (3, 2)):
        rules = Rules(k, 9, START, END, (0, START), 0.7)
        images = Tensor(np.arange(count, dtype=np.float32) + 5 * k)
        assert device_beam_search(model, images, rules, searches) == host_beam_search(model, images, rules)


@pytest.mark.parametrize(("images", "k"), [(1, 1), (3, 1), (5, 3)])
def test_each_array_begins_where_kernels_load_16_bytes_at_once(images: int, k: int) -> None:
    arrays = Board(images, Rules(k, 7, START, END, ())).arrays.values()
    starts = [address(array) for array in arrays]
    assert {(start - starts[0]) % 16 for start in starts} == {0}
    assert all(a + array.nbytes <= b for a, b, array in zip(starts, starts[1:], arrays, strict=False))


def test_it_stops_soon_after_all_images_are_done() -> None:
    model = Hashing(0, 1, 30.0)  # END at once
    rules = Rules(1, 50, START, END, (0, START))
    (found,) = device_beam_search(model, images_of(1), rules)
    assert found[0].ids == () and model.steps == 4


@pytest.mark.parametrize("k", [1, 3])
def test_where_probabilities_are_not_numbers_one_empty_sentence_is_found(k: int) -> None:
    model, rules = Hashing(0, 30, 0.7), Rules(k, 6, START, END, (0, START))
    images = images_of(3)
    model.table[(images.data.astype(int)[1] + 11) * 31 % 251 + START + 1] = np.nan
    with np.errstate(invalid="ignore"):
        found = [search(model, images, rules) for search in (host_beam_search, device_beam_search)]
    assert found[0] == found[1]
    assert [(h.ids, np.isnan(h.logprob)) for h in found[0][1]] == [((), True)]
    assert all(len(beams) == k and beams[0].logprob < 0 for beams in (found[0][0], found[0][2]))


def _ids(found: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[h.ids for h in beams] for beams in found]


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.triton)])
@pytest.mark.parametrize("k", [1, 3])
def test_the_joint_model_says_the_same(backend: str, k: int) -> None:
    if backends.available(backend):
        pytest.skip(f"backend {backend}: {backends.available(backend)}")
    images, _ = batch(images=2)
    rules = Rules(k, 6, START, END, (0, START), 0.7)
    with backends.use(backend):
        model = small_nic()
        model.train(False)
        expected = host_beam_search(model, images, rules)
        with memory.poisoned():
            found = device_beam_search(model, images, rules)
    assert _ids(found) == _ids(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-6)
