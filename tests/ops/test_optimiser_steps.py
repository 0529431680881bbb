"""The optimisers' primitives against scalar formulas, over several steps, on every backend."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap.device import bfloat16
from tests import naive

SHAPES = [(1,), (7,), (3, 5), (0,), (2, 3, 3, 2)]
OPTIONS = [(0.0, 1.0, 0.0), (0.01, 1.0, 0.0), (0.0, 0.25, 0.0), (0.02, 0.5, 0.3)]  # weight_decay, grad_scale, clip


@pytest.fixture
def kernels(backend):
    return importlib.import_module(f"pycap.backends.{backend}")


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(s) * scale).astype(np.float32) for s in SHAPES]


def scalars(arrays):
    return [float(v) for a in arrays for v in a.ravel()]


def close(arrays, expected):
    np.testing.assert_allclose(scalars(arrays), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(kernels, options, momentum):
    params, momenta = draw(0), draw(1, 0.1)
    p, m = scalars(params), scalars(momenta)
    for step in range(3):
        grads = draw(10 + step)
        held = [g.copy() for g in grads]
        kernels.sgd_step(params, grads, momenta, 0.1, momentum, *options)
        pairs = [naive.sgd(*pgm, 0.1, momentum, *options) for pgm in zip(p, scalars(held), m, strict=True)]
        p, m = [a for a, _ in pairs], [b for _, b in pairs]
        assert all(np.array_equal(g, k) for g, k in zip(grads, held, strict=True))
    close(params, p)
    close(momenta, m)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_rmsprop(kernels, options, eps):
    params, squares = draw(0), [a**2 for a in draw(1, 0.1)]
    p, v = scalars(params), scalars(squares)
    for step in range(3):
        grads = draw(10 + step)
        kernels.rmsprop_step(params, grads, squares, 0.01, 0.95, eps, *options)
        pairs = [naive.rmsprop(*pgv, 0.01, 0.95, eps, *options) for pgv in zip(p, scalars(grads), v, strict=True)]
        p, v = [a for a, _ in pairs], [b for _, b in pairs]
    close(params, p)
    close(squares, v)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("first", [1, 1000])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_adam(kernels, options, first, eps):
    params, ms, vs = draw(0), draw(1, 0.1), [a**2 for a in draw(2, 0.1)]
    if first == 1:
        for a in (*ms, *vs):
            a.fill(0)
    p, m, v = scalars(params), scalars(ms), scalars(vs)
    for step in range(first, first + 3):
        grads = draw(10 + step)
        weight_decay, *rest = options
        kernels.adam_step(params, grads, ms, vs, 1e-2, 0.9, 0.999, eps, weight_decay, step, *rest)
        rows = zip(p, scalars(grads), m, v, strict=True)
        triples = [naive.adam(*row, 1e-2, 0.9, 0.999, eps, weight_decay, step, *rest) for row in rows]
        p, m, v = ([t[i] for t in triples] for i in range(3))
    close(params, p)
    close(ms, m)
    close(vs, v)


def test_adam_moves_a_first_step_by_the_learning_rate(kernels):
    """Kingma & Ba 2015, section 2.1: from zero moments the step is lr * sign(g) whatever the gradient's size."""
    for size in (1e-4, 1.0, 1e4):
        p, m, v = np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)
        kernels.adam_step(
            [p], [np.array([size, -size, size], np.float32)], [m], [v], 0.01, 0.9, 0.999, 1e-8, 0, 1, 1.0, 0
        )
        np.testing.assert_allclose(p, [-0.01, 0.01, -0.01], rtol=1e-3)


def test_zero_gradients_move_nothing(kernels):
    p, zero = np.ones(5, np.float32), np.zeros(5, np.float32)
    kernels.adam_step([p], [zero], [zero.copy()], [zero.copy()], 0.1, 0.9, 0.999, 1e-8, 0.0, 1, 1.0, 0.0)
    kernels.rmsprop_step([p], [zero], [zero.copy()], 0.1, 0.9, 1e-8, 0.0, 1.0, 0.0)
    kernels.sgd_step([p], [zero], [zero.copy()], 0.1, 0.9, 0.0, 1.0, 0.0)
    np.testing.assert_array_equal(p, np.ones(5))


def flat(lists):
    return [a for arrays in lists for a in arrays]


OWN = {
    "sgd_step": ((0.1, 0.9), ()),
    "rmsprop_step": ((0.1, 0.95, 1e-8), ()),
    "adam_step": ((0.1, 0.9, 0.99, 1e-8), (3,)),
}


@pytest.fixture(params=OWN)
def rule(request, kernels):
    """(lists of arrays, step(lists, grad_scale, **keywords)) of each rule."""
    own, step = OWN[request.param]
    lists = [draw(0), draw(1), *([a**2 for a in draw(2 + i)] for i in range(1 + len(step)))]
    return lists, lambda arrays, scale, **named: getattr(kernels, request.param)(
        *arrays, *own, 0.01, *step, scale, 0.3, **named
    )


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
def test_a_factor_in_an_array_that_is_not_finite_changes_nothing(rule, factor):
    lists, step = rule
    held = [[a.copy() for a in arrays] for arrays in lists]
    copies = [np.full(s, 7, bfloat16()) for s in SHAPES]
    step(lists, np.array([factor], np.float32), copies=copies)
    assert all(np.array_equal(a, b) for a, b in zip(flat(lists), flat(held), strict=True))
    assert all((copy == 7).all() for copy in copies)
    step(lists, np.array([0.5], np.float32))
    assert not np.array_equal(lists[0][1], held[0][1])


def test_copies_are_the_new_parameters_rounded_to_nearest(rule):
    lists, step = rule
    copies = [np.full(s, np.nan, bfloat16()) if i != 2 else None for i, s in enumerate(SHAPES)]
    step(lists, 0.5, copies=copies)
    for p, copy in zip(lists[0], copies, strict=True):
        assert copy is None or copy.tobytes() == p.astype(bfloat16()).tobytes()


def test_what_the_cpp_backend_cannot_take_is_named():
    cpp = pytest.importorskip("pycap.backends.cpp")
    lists = [draw(0), draw(1), draw(2)]
    with pytest.raises(ValueError, match=r"sgd_step: grad_scale has shape \(2,\), expected \(1,\)"):
        cpp.sgd_step(*lists, 0.1, 0.9, 0.0, np.ones(2, np.float32), 0.0)
    with pytest.raises(TypeError, match="rmsprop_step: rates must be float32, got float64"):
        cpp.rmsprop_step(*lists, 0.1, 0.9, 1e-8, 0.0, 1.0, 0.0, rates=np.ones(3))
    with pytest.raises(ValueError, match="sgd_step: copies has 1 arrays, expected 5"):
        cpp.sgd_step(*lists, 0.1, 0.9, 0.0, 1.0, 0.0, copies=[None])
    out = np.zeros((2, 3), np.float32)
    for seed, said in ((np.zeros(3, np.uint32), r"seed has shape \(3,\)"), (np.zeros(2, np.int64), "must be uint32")):
        with pytest.raises((TypeError, ValueError), match=f"dropout: .*{said}"):
            cpp.dropout(out[None], out[None], 0.5, seed, 3, 0, 0.0)


def test_clip_factors_stop_every_group_where_one_fails(kernels):
    """And go on doing so, until the flag is cleared."""
    factors, failed = np.zeros(3, np.float32), np.zeros(1, np.int32)
    squares, limits, loss = np.array([16.0, 16.0, 0.0]), np.array([1.0, 0.0, 5.0], np.float32), np.array([2.5])
    kernels.clip_factors(factors, squares, limits, loss, failed, -0.5)
    assert factors.tolist() == [-0.25, -0.5, -0.5] and failed[0] == 0
    for bad in (np.nan, np.inf):
        for array in (loss, squares[:1], squares[2:]):
            held, failed[0] = array[0], 0
            array[0] = bad
            kernels.clip_factors(factors, squares, limits, loss, failed, -0.5)
            assert np.isnan(factors).all() and failed[0] == 1
            array[0] = held
            factors.fill(0)
            kernels.clip_factors(factors, squares, limits, None, failed, -0.5)
            assert np.isnan(factors).all() and failed[0] == 1


def test_sum_squares_accumulates_in_float64(kernels):
    """In float32 the small values after the large one would vanish."""
    arrays = [np.array([1e4], np.float32), np.full((1000, 10), 1e-2, np.float32), np.zeros((0, 3), np.float32)]
    got = kernels.sum_squares(arrays)
    assert isinstance(got, float)
    np.testing.assert_allclose(got, 1e8 + 1e4 * float(np.float32(1e-2)) ** 2, rtol=1e-12)
    assert kernels.sum_squares([]) == 0.0
    out = np.array([np.nan])
    kernels.sum_squares_into(out, arrays)
    assert out[0] == got


def test_lists_of_different_lengths_are_refused(kernels):
    a = np.ones(3, np.float32)
    with pytest.raises(ValueError):
        kernels.sgd_step([a, a.copy()], [a.copy()], [a.copy(), a.copy()], 0.1, 0.9, 0.0, 1.0, 0.0)
