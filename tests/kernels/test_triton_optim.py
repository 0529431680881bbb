"""The optimisers on Triton kernels, beyond the primitives: values from device memory, bfloat16 copies, clipping by the norm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pycap import backends
from pycap.backends import reference
from pycap.device import bfloat16

OP = "optim"

SHAPES = ((3, 5), (0,), (2100,), (1,))
VALUES = {
    "sgd_step": (1, (0.1,), (0.9,), ()),
    "rmsprop_step": (1, (0.1,), (0.95, 1e-8), ()),
    "adam_step": (2, (0.1,), (0.9, 0.999, 1e-8), (7,)),
}


@pytest.fixture
def optim(kernels):
    return kernels


def lists(states, seed=0):
    rng = np.random.default_rng(seed)
    made = [[rng.standard_normal(s).astype(np.float32) for s in SHAPES] for _ in range(2 + states)]
    return [*made[:2], *([a**2 for a in arrays] for arrays in made[2:])]


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays])


@pytest.fixture(params=sorted(VALUES))
def rule(request, optim):
    """(lists of arrays, step(lists, grad_scale, **options)) of each rule, at its seventh step."""
    states, lr, own, step = VALUES[request.param]

    def call(arrays, grad_scale=0.5, lr=lr, step=step, **options):
        getattr(optim, request.param)(*arrays, *lr, *own, 0.01, *step, grad_scale, 0.3, **options)

    return lambda: lists(states), call


def test_values_from_the_device_are_those_of_the_arguments(rule):
    """But for the last bit: the interpreter divides arguments in float64, and what lies on the device in float32."""
    make, step = rule
    wanted, got = make(), make()
    step(wanted)
    rates = np.array([0.1, 1 - 0.9**7, 1 - 0.999**7], np.float32)
    no_step = () if len(got) == 3 else (1,)
    step(got, np.array([0.5], np.float32), (9.0,), no_step, rates=rates)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(flat(a), flat(b), rtol=2.0**-22, atol=1e-6)


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_changes_nothing(rule, factor):
    make, step = rule
    got = make()
    copies = [np.full(s, 7, bfloat16()) for s in SHAPES]
    step(got, np.array([factor], np.float32), copies=copies)
    for a, b in zip(make(), got, strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))
    assert (flat(copies) == 7).all()


def test_copies_are_the_new_parameters_rounded(rule):
    make, step = rule
    wanted, got = make(), make()
    copies = [np.empty(s, bfloat16()) for s in SHAPES]
    step(wanted)
    step(got, copies=copies)
    np.testing.assert_array_equal(flat(got[0]), flat(wanted[0]))
    np.testing.assert_array_equal(flat(copies), flat(got[0]).astype(bfloat16()))


def test_another_list_at_the_next_call(rule):
    """The tables are kept by their contents: other arrays, and other sizes, get tables of their own."""
    make, step = rule
    first, second = make(), [arrays[::-1] for arrays in make()]
    step(first)
    step(second)
    np.testing.assert_array_equal(flat(first[0]), flat(second[0][::-1]))
    step(first)
    step(second)
    np.testing.assert_array_equal(flat(first[0]), flat(second[0][::-1]))


def test_aligned_arrays_among_others(rule):
    """What is aligned is stepped by a form of its own; the order of the list and the results stay as they are."""
    make, step = rule
    apart, together = make(), make()
    for number in range(len(SHAPES)):
        step([arrays[number : number + 1] for arrays in apart])
    step(together)
    for a, b in zip(apart, together, strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))


@pytest.mark.triton
def test_alignment_parts_a_list():
    optim = pytest.importorskip("pycap.backends.triton.optim")
    sizes, rows = (8, 6, 4, 12), [(16, 32, 64, 80), (16, 32, 68, 80), (0, 0, 0, 0)]
    aligned = (True, ((8, 12), (16, 80), (16, 80), (0, 0)))
    assert optim._by_alignment(sizes, rows) == [aligned, (False, ((6, 4), (32, 64), (32, 68), (0, 0)))]
    assert optim._by_alignment((8, 12), [(16, 80)]) == [(True, ((8, 12), (16, 80)))]
    assert optim._by_alignment((6,), [(16,)]) == [(False, ((6,), (16,)))]
    assert optim._by_alignment((), [()]) == []


def test_not_a_number_passes_the_clipping(optim):
    params, grads, momenta = ([np.array([x, 1.0], np.float32)] for x in (1.0, np.nan, 0.0))
    optim.sgd_step(params, grads, momenta, 1.0, 0.0, 0.0, 1.0, 0.5)
    np.testing.assert_array_equal(params[0], [np.nan, 0.5])


def test_no_parameters_no_launch(optim):
    optim.sgd_step([], [], [], 0.1, 0.9, 0.0, 1.0, 0.0)
    assert optim.sum_squares([]) == 0.0


def test_sum_of_squares_is_exact_where_float32_is_not(optim):
    ones = np.full(3 * 16384 + 5, 1e-3, np.float32)
    large = np.array([3e30], np.float32)
    truth = (ones.astype(np.float64) ** 2).sum()
    assert abs(optim.sum_squares([ones]) - truth) < 1e-12 * truth
    assert optim.sum_squares([large, ones]) == pytest.approx(float(large[0]) ** 2, rel=1e-12)


def test_sum_of_squares_repeats_bit_for_bit_and_stays_on_the_device(optim):
    arrays, out = lists(0)[0], np.empty(1, np.float64)
    optim.sum_squares_into(out, arrays)
    assert out[0] == optim.sum_squares(arrays) == optim.sum_squares(arrays)
    assert out[0] == pytest.approx(reference.sum_squares(arrays), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_total_is_added_in_float64(optim, dtype):
    """1e8 and ten thousand small numbers: in float32 these would vanish, or be lost in part. At most 700 additions follow
    one another (10,000 by 16 lanes, then the lanes), each with half a unit in the last place."""
    x = np.full(10_000, 0.3, dtype)
    x[4321] = 1e8
    out, old = np.array([np.nan], np.float64), np.array([3.0])
    truth = math.fsum(x.tolist())
    optim.total(out, x, 0.0)
    assert out[0] == pytest.approx(truth, rel=700 * 2.0**-53, abs=0)
    optim.total(old, x, 1 / 3)
    assert old[0] == pytest.approx(truth + 1.0, rel=700 * 2.0**-53, abs=0)
    narrow = np.array([np.nan], np.float32)
    optim.total(narrow, x.reshape(100, 100), 0.0)
    assert narrow[0] == np.float32(out[0])


def test_a_total_depends_on_the_size_alone(optim):
    """The same numbers at another address, and among others, give the same bits."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal(3001).astype(np.float32)
    copies = np.concatenate([[np.float32(5)], x, x])
    got = [np.empty(1) for _ in range(3)]
    for out, array in zip(got, (x, copies[1:3002], copies[3002:]), strict=True):
        optim.total(out, array, 0.0)
    assert got[0] == got[1] == got[2]


def factors(optim, squares, limits, scale=0.5, loss=1.0, failed=0):
    out, flag = np.zeros(len(squares), np.float32), np.array([failed], np.int32)
    given = None if loss is None else np.array([loss])
    optim.clip_factors(out, np.array(squares, np.float64), np.array(limits, np.float32), given, flag, scale)
    return out, int(flag[0])


@pytest.mark.parametrize("scale", [0.25, -2.0])
def test_clip_factors_are_the_optimisers_formula(optim, scale):
    """Limits below, at and above the norm, and none; a norm of 0, and one that float32 does not hold."""
    squares = [3600.0, 3600.0, 3600.0, 3600.0, 0.0, 0.0, 1e90]
    limits = [5.0, abs(scale) * 60.0, 1000.0, 0.0, 5.0, 0.0, 1.0]
    out, failed = factors(optim, squares, limits, scale)
    expected = [
        scale * min(1.0, limit / (abs(scale) * s**0.5)) if limit and s else scale
        for s, limit in zip(squares, limits, strict=True)
    ]
    np.testing.assert_allclose(out, np.array(expected, np.float32), rtol=2.0**-23, atol=0)
    assert out[1:6].tolist() == [scale] * 5 and failed == 0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", ["loss", 0, 3, 20])
def test_what_is_not_finite_fails_all_groups(optim, bad, where):
    squares, loss = [4.0] * 21, 1.0
    if where == "loss":
        loss = bad
    else:
        squares[where] = bad
    out, failed = factors(optim, squares, [0.0, 5.0, 0.5] * 7, loss=loss)
    assert np.isnan(out).all() and failed == 1


@pytest.mark.parametrize("loss", [None, 1.0])
def test_a_failure_stays(optim, loss):
    """A step that failed stops those after it, however finite, until the flag is cleared."""
    out, failed = factors(optim, [4.0, 9.0], [0.0, 1.0], loss=loss, failed=1)
    assert np.isnan(out).all() and failed == 1
    out, failed = factors(optim, [4.0, 9.0], [0.0, 1.0], loss=loss, failed=-7)
    assert np.isnan(out).all() and failed == 1
    out, failed = factors(optim, [4.0, 9.0], [0.0, 1.0], loss=loss)
    assert out.tolist() == [0.5, np.float32(1 / 3)] and failed == 0


@pytest.mark.triton
def test_what_does_not_fit_is_named():
    optim = pytest.importorskip("pycap.backends.triton.optim")
    params, grads, momenta = lists(1)
    last = (0.1, 0.9, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="sgd_step: grads has 3 arrays, expected 4"):
        optim.sgd_step(params, grads[1:], momenta, *last)
    with pytest.raises(ValueError, match=r"sgd_step: momenta\[0\] has shape \(5, 3\), expected \(3, 5\)"):
        optim.sgd_step(params, grads, [momenta[0].reshape(5, 3), *momenta[1:]], *last)
    with pytest.raises(TypeError, match=r"sgd_step: grads\[2\] must be float32, got float64"):
        optim.sgd_step(params, [*grads[:2], grads[2].astype(np.float64), grads[3]], momenta, *last)
    with pytest.raises(ValueError, match=r"sgd_step: params\[0\] must be C-contiguous"):
        optim.sgd_step([np.asfortranarray(params[0]), *params[1:]], grads, momenta, *last)
    with pytest.raises(TypeError, match=r"sgd_step: copies\[0\] must be bfloat16, got float32"):
        optim.sgd_step(params, grads, momenta, *last, copies=grads)
    with pytest.raises(ValueError, match=r"sgd_step: rates has shape \(1,\), expected \(3,\)"):
        optim.sgd_step(params, grads, momenta, *last, rates=np.zeros(1, np.float32))


@pytest.mark.gpu
def test_a_step_recorded_in_a_graph_follows_what_lies_on_the_device():
    """Norm, clipping and update in one graph; gradients, rate and bias corrections change between its runs."""
    import cupy

    optim = pytest.importorskip("pycap.backends.triton.optim")
    rng = np.random.default_rng(5)
    host = [rng.standard_normal(5000).astype(np.float32) for _ in range(2)]
    host += [np.zeros(5000, np.float32) for _ in range(2)]
    gradients = [scale * rng.standard_normal(5000).astype(np.float32) for scale in (1.0, 1e-3)]
    stream = cupy.cuda.Stream(non_blocking=True)
    with backends.use("triton", "cuda"), stream:
        p, g, m, v = (cupy.asarray(a) for a in host)
        squares, factor, rates = cupy.zeros(1), cupy.zeros(1, np.float32), cupy.zeros(3, np.float32)
        most, failed = cupy.ones(1, np.float32), cupy.zeros(1, np.int32)

        def step():
            optim.sum_squares_into(squares, [g])
            optim.clip_factors(factor, squares, most, None, failed, 0.5)
            optim.adam_step([p], [g], [m], [v], 0.0, 0.9, 0.999, 1e-8, 0.01, 1, factor, 0.0, rates=rates)

        step()  # loads the code, and uploads the tables of addresses
        for array, start in zip((p, m, v), (host[0], host[2], host[3]), strict=True):
            array.set(start)
        stream.synchronize()
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for number, gradient in enumerate(gradients, 1):
            g.set(gradient)
            rates.set(np.array([1e-2 / number, 1 - 0.9**number, 1 - 0.999**number], np.float32))
            graph.launch(stream)
            stream.synchronize()
        got = [array.get() for array in (p, m, v)]
    wanted = [a.astype(np.float64) for a in (host[0], host[2], host[3])]
    for number, gradient in enumerate(gradients, 1):
        wide = gradient.astype(np.float64)
        norm = 0.5 * np.sqrt((wide**2).sum())
        scale = 0.5 * min(1.0, 1.0 / norm)
        lists = [[wanted[0]], [wide], [wanted[1]], [wanted[2]]]
        reference.adam_step(*lists, 1e-2 / number, 0.9, 0.999, 1e-8, 0.01, number, scale, 0.0)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
