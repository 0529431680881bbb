"""Update rules against their formulas in float64, clipping, saved state, late starters and schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pycap import backends
from pycap.autograd import Tensor
from pycap.optim import (
    SGD,
    Adam,
    Combined,
    NonFiniteGradient,
    Optimizer,
    OptimizerStateError,
    ParamGroup,
    RMSprop,
)
from pycap.schedules import ScheduleStateError, make_schedule

Arrays = dict[str, np.ndarray]
SHAPES = {"a": (7, 3), "b": (5,), "c": (2, 3, 1, 4)}


def tensors(seed: int, dtype: Any = np.float64, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {n: Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for n, s in shapes.items()}


def give_grads(params: dict[str, Tensor], seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    for t in params.values():
        t.grad = (rng.standard_normal(t.shape) * 3).astype(t.dtype)
        t.fresh = True
    return {n: t.grad.astype(np.float64) for n, t in params.items()}


def sgd(p: np.ndarray, g: np.ndarray, s: dict[str, Any], lr: float) -> np.ndarray:
    s["m"] = 0.9 * s.get("m", 0) + g
    return p - lr * s["m"]


def rmsprop(p: np.ndarray, g: np.ndarray, s: dict[str, Any], lr: float) -> np.ndarray:
    s["v"] = 0.95 * s.get("v", 0) + 0.05 * g**2
    return p - lr * g / (np.sqrt(s["v"]) + 1e-6)


def adam(p: np.ndarray, g: np.ndarray, s: dict[str, Any], lr: float) -> np.ndarray:
    s["t"] = s.get("t", 0) + 1
    s["m"] = 0.8 * s.get("m", 0) + 0.2 * g
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g**2
    return p - lr * (s["m"] / (1 - 0.8 ** s["t"])) / (np.sqrt(s["v"] / (1 - 0.99 ** s["t"])) + 1e-8)


RULES: dict[str, tuple[Callable[..., Optimizer], Callable[..., np.ndarray]]] = {
    "sgd": (lambda g: SGD(g, momentum=0.9), sgd),
    "rmsprop": (lambda g: RMSprop(g, alpha=0.95, eps=1e-6), rmsprop),
    "adam": (lambda g: Adam(g, beta1=0.8, beta2=0.99, eps=1e-8), adam),
}


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """The only backend that also computes in float64; `backend` below asks for others."""
    with backends.use("reference"):
        yield


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> Any:
    reason = backends.available(request.param)
    if reason:
        pytest.skip(f"backend {request.param}: {reason}")
    with backends.use(request.param):
        yield request.param


@pytest.mark.parametrize("clip_mode", ["off", "value", "norm", "norm-inactive"])
@pytest.mark.parametrize("rule", RULES)
def test_against_the_formula(rule: str, clip_mode: str, backend: str) -> None:
    make, formula = RULES[rule]
    dtype = np.float64 if backend == "reference" else np.float32
    params = tensors(0, dtype)
    clip = {"off": 0.0, "value": 0.5, "norm": 2.0, "norm-inactive": 1e6}[clip_mode]
    decay, scale = 0.03, 0.25
    group = ParamGroup("g", params, 0.05, decay, clip, "value" if clip_mode in ("off", "value") else "norm")
    optimizer = make([group])
    expected = {n: t.data.astype(np.float64) for n, t in params.items()}
    states: dict[str, dict[str, Any]] = {n: {} for n in params}
    for step in range(5):
        grads = {n: g * scale for n, g in give_grads(params, 10 + step).items()}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        if clip_mode == "value":
            used = {n: np.clip(g, -clip, clip) for n, g in grads.items()}
        else:
            used = {n: g * (clip / norm if clip and norm > clip else 1.0) for n, g in grads.items()}
        group.lr = 0.05 / (step + 1)
        for n in expected:
            expected[n] = formula(expected[n], used[n] + decay * expected[n], states[n], group.lr)
        assert optimizer.step(scale) == {"g": pytest.approx(norm, rel=1e-6)}
        assert not any(t.fresh for t in params.values())
    tolerance = 1e-12 if dtype is np.float64 else 3e-6
    for n, t in params.items():
        assert t.dtype == dtype
        np.testing.assert_allclose(t.data, expected[n], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_groups_have_their_own_rate_and_clipping(rule: str) -> None:
    make = RULES[rule][0]
    one, two = tensors(1), tensors(2, shapes={"d": (4,), "e": (3, 3)})
    alone = tensors(2, shapes={"d": (4,), "e": (3, 3)})
    both = make([ParamGroup("one", one, 0.1, clip=0.1), ParamGroup("two", two, 0.01, 0.1, 1.0, "norm")])
    only = make([ParamGroup("two", alone, 0.01, 0.1, 1.0, "norm")])
    for step in range(3):
        give_grads(one, step)
        give_grads(two, 50 + step)
        give_grads(alone, 50 + step)
        norms = both.step()
        assert set(norms) == {"one", "two"} and norms["two"] == only.step()["two"]
    for n, t in two.items():
        np.testing.assert_array_equal(t.data, alone[n].data)


@pytest.mark.parametrize("rule", RULES)
def test_only_fresh_gradients_are_stepped_and_late_ones_count_from_their_start(rule: str) -> None:
    """A parameter that joins at step 3 moves exactly as if the optimiser had been made then."""
    make = RULES[rule][0]
    params = tensors(3)
    optimizer = make([ParamGroup("g", params, 0.1, weight_decay=0.1)])
    before = params["c"].data.copy()
    for step in range(3):
        give_grads(params, step)
        params["c"].fresh = False
        optimizer.step()
        np.testing.assert_array_equal(params["c"].data, before)
    assert not any(key.startswith("c.") for key in optimizer.state_arrays())
    twin = {"c": Tensor(before.copy(), requires_grad=True)}
    late = make([ParamGroup("g", twin, 0.1, weight_decay=0.1)])
    for step in range(3):
        give_grads(params, 20 + step)
        twin["c"].grad, twin["c"].fresh = params["c"].grad, True
        optimizer.step()
        late.step()
    np.testing.assert_array_equal(params["c"].data, twin["c"].data)
    arrays = optimizer.state_arrays()
    assert (int(arrays["a.step"]), int(arrays["c.step"])) == (6, 3)


def test_a_step_without_gradients_changes_nothing() -> None:
    params = tensors(4)
    optimizer = Adam([ParamGroup("g", params, 0.1)])
    before = {n: t.data.copy() for n, t in params.items()}
    assert optimizer.step() == {}
    assert all((t.data == before[n]).all() for n, t in params.items())
    assert optimizer.state_arrays() == {}


@pytest.mark.faults
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_gradient_stops_before_anything_changes(bad: float) -> None:
    good, broken = tensors(5), tensors(6, shapes={"d": (4,), "e": (3, 3)})
    optimizer = Combined([Adam([ParamGroup("lm", good, 0.1)]), SGD([ParamGroup("cnn", broken, 0.1, clip=1.0)])])
    give_grads(good, 1)
    give_grads(broken, 2)
    optimizer.step()
    saved = {k: v.copy() for k, v in optimizer.state_arrays().items()}
    data = {n: t.data.copy() for n, t in (good | broken).items()}
    give_grads(good, 3)
    give_grads(broken, 4)
    broken["e"].grad[1, 2] = bad
    with pytest.raises(NonFiniteGradient, match=r"group cnn: the gradient of e \(1 of 2 parameters\)"):
        optimizer.step()
    assert all((t.data == data[n]).all() for n, t in (good | broken).items())
    after = optimizer.state_arrays()
    assert saved.keys() == after.keys() and all((after[k] == saved[k]).all() for k in saved)
    broken["e"].grad[1, 2] = 0.0
    assert set(optimizer.step()) == {"lm", "cnn"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", [*RULES, "combined"])
def test_saved_state_continues_bit_for_bit(rule: str, dtype: Any) -> None:
    def build() -> tuple[dict[str, Tensor], Any]:
        params = tensors(7, dtype)
        if rule != "combined":
            return params, RULES[rule][0]([ParamGroup("g", params, 0.1)])
        rest = {n: params[n] for n in "ab"}
        return params, Combined(
            [Adam([ParamGroup("lm", rest, 0.1)]), RMSprop([ParamGroup("cnn", {"c": params["c"]}, 0.01)])]
        )

    def steps(params: dict[str, Tensor], optimizer: Any, numbers: range) -> None:
        for step in numbers:
            give_grads(params, step)
            params["c"].fresh = step >= 2
            optimizer.step()

    whole, optimizer = build()
    steps(whole, optimizer, range(8))
    first, optimizer = build()
    steps(first, optimizer, range(4))
    arrays = {k: v.copy() for k, v in optimizer.state_arrays().items()}
    second, fresh = build()
    for n, t in second.items():
        t.data[...] = first[n].data
    fresh.load_state_arrays(arrays)
    assert {k: v.tolist() for k, v in fresh.state_arrays().items()} == {k: v.tolist() for k, v in arrays.items()}
    steps(second, fresh, range(4, 8))
    for n, t in second.items():
        assert t.data.dtype == dtype
        np.testing.assert_array_equal(t.data, whole[n].data)


def test_loaded_state_is_the_optimizers_own() -> None:
    params = tensors(8)
    source = Adam([ParamGroup("g", params, 0.1)])
    give_grads(params, 0)
    source.step()
    arrays = {k: v.copy() for k, v in source.state_arrays().items()}
    target = Adam([ParamGroup("g", params, 0.1)])
    target.load_state_arrays(arrays)
    give_grads(params, 1)
    target.step()
    assert (arrays["a.m"] == source.state_arrays()["a.m"]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: {**a, "zz.m": a["a.m"]}, "zz.m belongs to no parameter"),
        (lambda a: {k: v for k, v in a.items() if k != "b.v"}, "of b holds m, step but Adam keeps m, step, v"),
        (lambda a: {**a, "b.m": np.zeros(6)}, r"b\.m has shape \(6,\), the parameter \(5,\)"),
        (lambda a: {"a.momentum": a["a.m"], "a.step": a["a.step"]}, "saved by another update rule"),
    ],
)
def test_foreign_state_is_refused(change: Callable[[Arrays], Arrays], says: str) -> None:
    params = tensors(9)
    optimizer = Adam([ParamGroup("g", params, 0.1)])
    give_grads(params, 0)
    optimizer.step()
    before = {k: v.copy() for k, v in optimizer.state_arrays().items()}
    with pytest.raises(OptimizerStateError, match=says):
        optimizer.load_state_arrays(change(before))
    assert all((v == before[k]).all() for k, v in optimizer.state_arrays().items())
    with pytest.raises(OptimizerStateError, match=r"zz\.m belongs to no parameter"):
        Combined([optimizer]).load_state_arrays({"zz.m": np.zeros(3)})


def test_groups_that_cannot_be() -> None:
    params = tensors(10)
    with pytest.raises(ValueError, match="parameter a is in the optimiser already"):
        SGD([ParamGroup("one", params, 0.1), ParamGroup("two", {"a": params["b"]}, 0.1)])
    with pytest.raises(ValueError, match="parameter alias is in the optimiser already"):
        SGD([ParamGroup("one", params, 0.1), ParamGroup("two", {"alias": params["b"]}, 0.1)])
    with pytest.raises(ValueError, match="clip_mode 'nrom'"):
        ParamGroup("one", params, 0.1, clip_mode="nrom")


def test_constant_and_warmup() -> None:
    schedule = make_schedule("constant", total_steps=10, warmup_steps=4)
    assert [schedule.lr(2.0, s) for s in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert make_schedule("constant", total_steps=10).lr(2.0, 0) == 2.0


def test_step_decay() -> None:
    schedule = make_schedule("step", total_steps=100, decay_start=10, decay_every=5, decay_rate=0.1, min_lr=0.005)
    rates = [schedule.lr(1.0, s) for s in (0, 9, 10, 14, 15, 19, 20, 25, 90)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.005, 0.005])
    assert schedule.lr(0.001, 0) == 0.001 and schedule.lr(0.001, 90) == 0.001  # never raised to the least rate


def test_cosine() -> None:
    schedule = make_schedule("cosine", total_steps=110, warmup_steps=10)
    assert schedule.lr(1.0, 9) == 1.0 and schedule.lr(1.0, 10) == 1.0
    assert schedule.lr(1.0, 60) == pytest.approx(0.5)
    assert schedule.lr(1.0, 35) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert schedule.lr(1.0, 110) == pytest.approx(0.0, abs=1e-12) and schedule.lr(1.0, 500) == schedule.lr(1.0, 110)
    rates = [schedule.lr(1.0, s) for s in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_plateau_and_its_state() -> None:
    def make() -> Any:
        return make_schedule("plateau", total_steps=0, decay_rate=0.5, patience=1)

    scores = [3.0, 2.0, 2.5, 2.0, 1.9, 2.0, 2.0, 2.0, 2.0]
    schedule = make()
    lowered = [schedule.observe(s) for s in scores]
    assert lowered == [False, False, False, True, False, False, True, False, True]
    assert schedule.lr(1.0, 3) == 0.125
    for cut in range(len(scores)):
        first, second = make(), make()
        for s in scores[:cut]:
            first.observe(s)
        second.load_state(first.state())
        assert [second.observe(s) for s in scores[cut:]] == lowered[cut:]
        assert second.state() == schedule.state()


def test_schedules_refuse_what_is_not_theirs() -> None:
    with pytest.raises(ValueError, match="lr_schedule 'cosin' is unknown; use constant, step, cosine, plateau"):
        make_schedule("cosin", total_steps=1)
    state = make_schedule("plateau", total_steps=1).state()
    with pytest.raises(ScheduleStateError, match="another lr_schedule"):
        make_schedule("cosine", total_steps=1).load_state(state)
    with pytest.raises(ScheduleStateError, match="not of lr_schedule plateau"):
        make_schedule("plateau", total_steps=1).load_state({})
    make_schedule("step", total_steps=1).load_state({})


def test_set_lr_scales_each_group_from_its_first_rate() -> None:
    params = tensors(11)
    one = SGD([ParamGroup("lm", {"a": params["a"]}, 0.4), ParamGroup("none", {"b": params["b"]}, 0.0)])
    both = Combined([one, Adam([ParamGroup("cnn", {"c": params["c"]}, 0.1)])])
    schedule = make_schedule("step", total_steps=10, decay_every=1)
    for step in (0, 1, 2):
        both.set_lr(schedule, step)
    assert {g.name: g.lr for g in both.groups} == {"lm": 0.1, "none": 0.0, "cnn": 0.025}
