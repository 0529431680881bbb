"""Prepared forms of weights: kept while the weights do not change, never used after they did."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pycap import backends, optim
from pycap.autograd import Tensor
from pycap.backends import WeightCache, constant_weights, reference, weight_cache, weights_changed
from pycap.captioner import Captioner, build_model
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from tests.train.runs import tiny

SPEC = PreprocessSpec(resize=64, crop=64)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Counted:
    """Makes forms, and counts how often."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.count = array, 0

    def __call__(self) -> np.ndarray:
        self.count += 1
        return 2 * self.array


def test_a_form_is_made_once_and_kept_until_it_is_cleared():
    cache, make = WeightCache(), Counted(draw(3, 4))
    first = cache.get(make.array, "doubled", make)
    assert cache.get(make.array, "doubled", make) is first
    assert make.count == 1
    assert cache.nbytes == 48
    cache.clear()
    assert cache.nbytes == 0
    np.testing.assert_array_equal(cache.get(make.array, "doubled", make), 2 * make.array)
    assert make.count == 2


def test_forms_differ_by_name_shape_and_memory():
    cache, a, b = WeightCache(), draw(4, 4), draw(4, 4, seed=1)
    forms = [(a, "x"), (a, "y"), (b, "x"), (a.reshape(2, 8), "x"), (a.T, "x"), (a[:2], "x")]
    for number, (array, name) in enumerate(forms):
        assert cache.get(array, name, lambda number=number: np.full(1, number)) == number
    assert cache.get(a[:2], "x", lambda: np.full(1, -1)) == 5  # a new view of the same numbers finds its form
    assert cache.nbytes == 6 * 8


def test_the_memory_of_a_cached_array_is_not_used_again():
    cache, a = WeightCache(), draw(64, 64)
    alive = weakref.ref(a)
    cache.get(a, "x", lambda: np.zeros(1))
    del a
    gc.collect()
    assert alive() is not None
    cache.clear()
    gc.collect()
    assert alive() is None


def test_forms_beyond_the_limit_are_not_kept():
    cache, small, large = WeightCache(limit=100), Counted(draw(5)), Counted(draw(25))
    for _ in range(2):
        cache.get(small.array, "x", small)
        assert cache.get(large.array, "x", large).nbytes == 100
    assert (small.count, large.count, cache.nbytes) == (1, 2, 20)
    pair = WeightCache(limit=100)
    pair.get(small.array, "x", lambda: (np.zeros(5), np.zeros(5)))
    assert pair.nbytes == 80


def test_constant_weights_nest_and_hold_for_one_thread():
    outer, inner, seen = WeightCache(), WeightCache(), []
    assert weight_cache() is None
    with constant_weights(outer):
        with constant_weights(inner):
            assert weight_cache() is inner
            other = threading.Thread(target=lambda: seen.append(weight_cache()))
            other.start()
            other.join()
        assert weight_cache() is outer
    assert weight_cache() is None
    assert seen == [None]


def test_a_form_made_while_the_weights_change_is_not_kept():
    cache, a = WeightCache(), draw(3)

    def make() -> np.ndarray:
        form = a.copy()
        a[...] = 0
        weights_changed()
        return form

    cache.get(a, "x", make)
    np.testing.assert_array_equal(cache.get(a, "x", a.copy), np.zeros(3))


@pytest.mark.parametrize("rule", [optim.SGD, optim.RMSprop, optim.Adam])
def test_an_optimisers_step_empties_every_cache(rule: Callable[..., optim.Optimizer]):
    parameter = Tensor(draw(8), requires_grad=True)
    caches = [WeightCache(), WeightCache()]
    for cache in caches:
        cache.get(parameter.data, "x", parameter.data.copy)
    parameter.grad, parameter.fresh = np.ones(8, np.float32), True
    rule([optim.ParamGroup("all", {"p": parameter}, 0.1)]).step()
    for cache in caches:
        np.testing.assert_array_equal(cache.get(parameter.data, "x", parameter.data.copy), parameter.data)


def captioner(seed: int = 0) -> Captioner:
    vocab = Vocabulary(["a", "dog", "cat", "runs"])
    config = tiny(Path(), Path(), seed=seed)
    return Captioner(build_model(config, len(vocab)), vocab, SPEC, config)


def logprobs(c: Captioner) -> list[list[float]]:
    images = np.random.default_rng(3).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    return [[p for _, p in beams] for beams in c.caption_batch(images, np.zeros((3, 3), np.int32))]


@pytest.fixture
def frozen_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Convolution and linear layers that use whatever copies of their weights the cache holds; the names of the forms made."""
    made: list[str] = []

    def kept(name: str, w: np.ndarray) -> np.ndarray:
        cache = weight_cache()

        def make() -> np.ndarray:
            made.append(name)
            return w.copy()

        return w if cache is None else cache.get(w, name, make)

    def convolution(y, x, w, b, stride, padding, relu):  # type: ignore[no-untyped-def]
        reference.conv2d_forward(y, x, kept("conv2d", w), b, stride, padding, relu)

    def pooled(y, argmax, x, w, b, stride, padding):  # type: ignore[no-untyped-def]
        reference.conv2d_pool_forward(y, argmax, x, kept("conv2d", w), b, stride, padding)

    def linear(y, x, w, b, relu):  # type: ignore[no-untyped-def]
        reference.linear_forward(y, x, kept("linear", w), b, relu)

    for name, kernel in (("conv2d_forward", convolution), ("conv2d_pool_forward", pooled), ("linear_forward", linear)):
        monkeypatch.setitem(backends.kernels.__dict__, name, kernel)
    return made


def test_a_captioner_prepares_its_weights_once(frozen_kernels: list[str]):
    c = captioner()
    first = logprobs(c)
    count = len(frozen_kernels)
    assert {"conv2d", "linear"} <= set(frozen_kernels)
    assert logprobs(c) == first
    assert len(frozen_kernels) == count
    assert c.weights.nbytes > 0
    assert weight_cache() is None


def test_captions_follow_the_weights_after_a_step_of_training(frozen_kernels: list[str]):
    c = captioner()
    before = logprobs(c)
    parameters = {n: t for n, t in c.model.named_parameters().items() if t.data.ndim > 1}
    for parameter in parameters.values():
        parameter.grad, parameter.fresh = draw(*parameter.data.shape, seed=7), True
    optim.SGD([optim.ParamGroup("all", parameters, 0.3)]).step()
    after = logprobs(c)
    c.weights.clear()
    assert after != before
    assert after == logprobs(c)


def test_captions_follow_loaded_weights(frozen_kernels: list[str]):
    c, other = captioner(), captioner(seed=1)
    before = logprobs(c)
    c.model.load_arrays(other.model.state_arrays())
    assert logprobs(c) != before
    assert logprobs(c) == logprobs(other)


def test_validation_leaves_no_forms_behind(frozen_kernels: list[str], data: Path, tmp_path: Path):
    """The steps between two validations need the memory."""
    from pycap.distributed import ALONE
    from pycap.training.run import _Run

    run = _Run(tiny(data, tmp_path / "run", epochs=1), ALONE)
    held: list[int] = []
    write = run.record.samples
    run.record.samples = lambda *given: (held.append(run.task.captioner.weights.nbytes), write(*given))  # type: ignore[method-assign,assignment,func-returns-value]
    run.go()
    assert "conv2d" in frozen_kernels
    assert held
    assert not any(held)
