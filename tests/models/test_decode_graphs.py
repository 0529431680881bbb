"""Beam search on a GPU, the stand-in for one: a captured step finds what the CPU finds, reads nothing, and never outlives
what it was captured with."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pycap import backends, device, memory
from pycap.autograd import Tensor
from pycap.backends import WeightCache, constant_weights, kernels, weight_cache, weights_changed
from pycap.decode import MOST_BEAMS, Rules, Searches, beam_search, device_beam_search, host_beam_search
from pycap.models.nic import NIC
from tests import cupy_standin
from tests.models.test_nic import batch, small_nic
from tests.row_by_row import row_by_row

START, END = 1, 2
RULES = Rules(3, 9, START, END, (0, START), 0.7)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    row_by_row(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr(memory, "_scratch", {})
    with backends.use("reference", "cuda"):
        yield


@pytest.fixture
def advanced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the model's Python: a replay makes none."""
    rows: list[int] = []
    plain = NIC.advance
    monkeypatch.setattr(NIC, "advance", lambda self, state, words: rows.append(words.size) or plain(self, state, words))
    return rows


def model_of(seed: int = 0) -> NIC:
    model = small_nic(seed=seed)
    model.train(False)
    return model


def images_of(count: int, first: int = 0) -> np.ndarray:
    return batch(images=first + count)[0].data[first:].copy()


def on_the_host(images: np.ndarray, rules: Rules = RULES, seed: int = 0) -> list[list[Any]]:
    with backends.use("reference"):
        return host_beam_search(model_of(seed), Tensor(images), rules)


def uploaded(images: np.ndarray) -> Tensor:
    return Tensor(device.to_device(images))


@pytest.mark.usefixtures("_gpu")
def test_steps_are_replayed_and_read_nothing(advanced: list[int]) -> None:
    model, searches = model_of(), Searches()
    images = [images_of(2), images_of(2, first=3), images_of(2, first=7)]
    expected = [on_the_host(some) for some in images]
    assert expected[0] != expected[1]
    advanced.clear()
    for some, right in zip(images, expected, strict=True):
        data = uploaded(some)
        before = cupy_standin.ndarray.reads
        with memory.poisoned():
            assert device_beam_search(model, data, RULES, searches) == right
        assert cupy_standin.ndarray.reads - before <= 3  # after four steps, after eight, at the end
    assert advanced == [6, 6]  # launched, captured


@pytest.mark.usefixtures("_gpu")
def test_each_shape_and_each_rule_has_its_own_graph_and_the_latest_are_kept(advanced: list[int]) -> None:
    model, searches = model_of(), Searches(limit=2)
    greedy, others = Rules(1, 9, START, END, (0, START)), Rules(3, 9, START, END, (0, START, 5), 0.7)
    calls = []
    for count, rules in ((2, RULES), (1, RULES), (2, RULES), (2, greedy), (2, others), (2, greedy), (2, RULES)):
        expected = on_the_host(images_of(count), rules)
        advanced.clear()
        assert device_beam_search(model, uploaded(images_of(count)), rules, searches) == expected
        calls.append(len(advanced))
    assert calls == [2, 2, 0, 2, 2, 0, 2]


@pytest.mark.usefixtures("_gpu")
def test_weights_that_lie_elsewhere_are_seen(advanced: list[int]) -> None:
    model, other, searches, images = model_of(), model_of(1), Searches(), images_of(2)
    first, second = on_the_host(images), on_the_host(images, seed=1)
    assert [h.ids for h in first[0]] != [h.ids for h in second[0]]
    assert device_beam_search(model, uploaded(images), RULES, searches) == first
    for name, parameter in model.named_parameters().items():
        parameter.data = other.named_parameters()[name].data
    assert device_beam_search(model, uploaded(images), RULES, searches) == second
    assert device_beam_search(model_of(), uploaded(images), RULES, searches) == first


@dataclass
class Echo:
    """A state: logits, an array of the device."""

    logits: Any

    def rows(self, index: np.ndarray) -> Echo:
        return Echo(self.logits[device.to_device(index)])

    def rows_into(self, target: Echo, index: Any) -> None:
        kernels.embedding_forward(target.logits, self.logits, index)


class Prepared:
    """A decoder that adds rows of its table to the logits, by way of a prepared form: the table, thrice."""

    def __init__(self) -> None:
        table = np.random.default_rng(3).standard_normal((7, 7)).astype(np.float32)
        self.table = device.to_device(table)

    def begin(self, images: Tensor) -> Echo:
        return Echo(images.data)

    def advance(self, state: Echo, words: Any) -> tuple[Any, Echo]:
        cache = weight_cache()
        assert cache is not None
        tripled = cache.get(self.table, "thrice", lambda: self.table * np.float32(3))
        added = memory.empty(state.logits.shape)
        kernels.embedding_forward(added, tripled, device.to_device(words))
        new = state.logits * np.float32(0.5) + added
        return new, Echo(new)

    def state_arrays(self) -> dict[str, Any]:
        return {"table": self.table}


@pytest.mark.usefixtures("_gpu")
def test_prepared_forms_live_as_long_as_the_graph_and_change_with_the_weights() -> None:
    model, searches, cache = Prepared(), Searches(), WeightCache()
    images = uploaded(np.random.default_rng(4).standard_normal((2, 7)).astype(np.float32))
    with constant_weights(cache):
        first = device_beam_search(model, images, RULES, searches)
        cache.clear()  # the memory is needed
        assert device_beam_search(model, images, RULES, searches) == first == host_beam_search(model, images, RULES)
        model.table *= np.float32(-1)
        weights_changed()
        second = device_beam_search(model, images, RULES, searches)
        assert second == host_beam_search(model, images, RULES) != first


class _NothingKept:
    """As `Graphs`, of a GPU: a capture has the addresses of what it found, and keeps none of it alive."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        self.on_stream = nullcontext

    def run(self, key: Any, work: Callable[[], None]) -> str:
        work()
        return "captured"


def test_the_forms_that_a_capture_found_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pycap.decode.device"), "Graphs", _NothingKept)
    model, searches, cache = Prepared(), Searches(), WeightCache()
    images = Tensor(np.ones((2, 7), np.float32))
    with constant_weights(cache):
        device_beam_search(model, images, RULES, searches)
        form = weakref.ref(cache.get(model.table, "thrice", lambda: pytest.fail("it has been made")))
        cache.clear()
        gc.collect()
        assert form() is not None
        weights_changed()
        device_beam_search(model, images, RULES, searches)
        gc.collect()
        assert form() is None


@pytest.mark.usefixtures("_gpu")
def test_searches_from_two_threads_wait_for_each_other() -> None:
    model, searches = model_of(), Searches()
    images = [images_of(2), images_of(2, first=3)]
    expected = [on_the_host(some) for some in images]
    found: dict[int, list[Any]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(4):
            found[number].append(device_beam_search(model, uploaded(images[number]), RULES, searches))

    threads = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == [expected[number]] * 4 for number in found)


@pytest.mark.usefixtures("_gpu")
def test_a_step_that_cannot_be_captured_is_launched_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = NIC.advance

    def asking(self: NIC, state: Any, words: Any) -> Any:
        device.to_host(words)
        return plain(self, state, words)

    expected = on_the_host(images_of(2))
    monkeypatch.setattr(NIC, "advance", asking)
    assert device_beam_search(model_of(), uploaded(images_of(2)), RULES) == expected
    (line,) = caplog.messages
    assert "a step of beam search with 6 rows: launched kernel by kernel, not as a CUDA graph" in line


@pytest.mark.usefixtures("_gpu")
def test_the_gpu_searches_there_and_more_beams_than_the_kernel_takes_on_the_host(advanced: list[int]) -> None:
    how = {"max_length": 9, "start": START, "end": END, "suppress": (0, START)}
    model, images = model_of(), uploaded(images_of(1))
    for beams, calls in ((MOST_BEAMS, 2), (MOST_BEAMS + 1, 9)):
        advanced.clear()
        found = beam_search(model, images, beam_size=beams, **how)  # type: ignore[arg-type]
        assert len(advanced) == calls and len(found[0]) == beams
