"""The checks themselves: gradcheck and compare find faults that were put there on purpose."""

from __future__ import annotations

import types

import numpy as np
import pytest

from pycap import ops
from pycap.autograd import Function, Tensor
from pycap.backends import reference
from pycap.device import bfloat16, is_bfloat16
from pycap.testing import CASES, ComparisonError, GradientError, compare, compare_op, gradcheck


class Faulty(Function):
    """3x, with a gradient that is wrong in one of several ways."""

    def forward(self, x, *, fault):
        self.fault, self.x = fault, x
        return x * 3.0

    def backward(self, dy):
        dx = dy * 3.0
        if self.fault == "one element":
            dx[(0,) * dx.ndim] *= 1.001
        elif self.fault == "factor":
            dx *= 1 + 1e-5
        elif self.fault == "sign":
            dx = -dx
        elif self.fault == "nan":
            dx[..., -1] = np.nan
        elif self.fault == "none":
            return None
        elif self.fault == "modifies":
            self.x += 1e-3
        return dx


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one element", "slope"), ("factor", "slope"), ("sign", "slope"), ("nan", "not finite"),
        ("none", "no gradient"),
        ("modifies", "was modified"),
    ],
)  # fmt: skip
def test_gradcheck_finds(fault, message):
    with pytest.raises(GradientError, match=message):
        gradcheck(lambda x: Faulty.apply(x, fault=fault), np.random.default_rng(0).standard_normal((5, 7)))


def test_gradcheck_passes_what_is_right():
    gradcheck(lambda x: Faulty.apply(x, fault=""), np.random.default_rng(0).standard_normal((5, 7)))


def test_gradcheck_steps_around_kinks_close_by():
    """Pre-activations within 1e-5 of zero: a difference with a step of 1e-3 would be wrong by far more than 1e-6."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 1))
    x[::4] = 1e-5 * rng.standard_normal((5, 1))
    gradcheck(lambda x, w: ops.linear(x, w, relu=True), x, np.ones((3, 1)))


def test_gradcheck_finds_a_wrong_relu_mask_in_spite_of_kinks():
    class Leaky(Function):
        def forward(self, x):
            self.x = x
            return np.maximum(x, 0)

        def backward(self, dy):
            return dy * np.where(self.x > 0.05, 1.0, 0.0)

    with pytest.raises(GradientError, match="slope"):
        gradcheck(Leaky.apply, np.random.default_rng(0).standard_normal(200))


def test_gradcheck_says_when_a_function_is_nowhere_smooth():
    class Rough(Function):
        def forward(self, x):
            return np.floor(x * 1e9) / 1e3

        def backward(self, dy):
            return dy * 1e6

    with pytest.raises(GradientError, match="not smooth along any"):
        gradcheck(Rough.apply, np.random.default_rng(0).standard_normal(4))


def test_gradcheck_refuses_float32():
    with pytest.raises(ValueError, match="float32"):
        gradcheck(lambda x: x * 2.0, np.ones(3, np.float32))


# compare --------------------------------------------------------------------------------------------------------------


def with_fault(primitive, fault):
    """A backend that is the reference but for one primitive, which `fault(reference's, arguments)` stands for."""
    true = getattr(reference, primitive)
    return types.SimpleNamespace(**{primitive: lambda *arguments: fault(true, *arguments)})


def run_all(primitive, fault):
    for case in CASES[primitive]:
        compare(case, with_fault(primitive, fault))


def _reads_the_old_buffer(true, dx, *rest):
    old = dx.copy()
    true(dx, *rest)
    dx += 0 * old


def _ignores_beta(true, dx, dy, w, y, beta):
    true(dx, dy, w, y, 0.0)


def _treats_every_beta_as_one(true, dx, dy, w, y, beta):
    true(dx, dy, w, y, float(beta != 0))


def _modifies_its_input(true, dx, dy, *rest):
    true(dx, dy, *rest)
    dy += 1e-7


def _leaves_a_hole(true, dx, *rest):
    true(dx, *rest)
    dx[-1:, -1:] = np.nan


def _errs(true, dx, *rest):
    true(dx, *rest)
    dx *= np.float32(1 + 1e-5)


def _writes_past_the_end(true, dx, *rest):
    true(dx, *rest)
    past = np.lib.stride_tricks.as_strided(dx.reshape(-1)[-1:], (2,), (4,))
    past[1] = 0.0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_reads_the_old_buffer, "not finite"), (_ignores_beta, "1.0.*error"), (_treats_every_beta_as_one, "0.5.*error"),
        (_modifies_its_input, "was modified"), (_leaves_a_hole, "not finite"), (_errs, "allowed"),
        (_writes_past_the_end, "dx: written outside"),
    ],
)  # fmt: skip
def test_compare_finds(fault, message):
    with pytest.raises(ComparisonError, match=message):
        run_all("linear_backward_data", fault)


def test_compare_finds_an_absent_gradient_that_disturbs_the_others():
    def fault(true, dh, dw, db, *rest):
        true(dh, dw, db, *rest)
        if db is None and dw is not None:
            dw *= 2

    with pytest.raises(ComparisonError, match=r"absent db: dw"):
        run_all("linear_xent_backward", fault)


def test_compare_finds_swapped_betas():
    def fault(true, *arguments):
        *rest, betas = arguments
        true(*rest, (betas[1], betas[0], betas[2]))

    with pytest.raises(ComparisonError, match="linear_xent_backward"):
        run_all("linear_xent_backward", fault)


def test_compare_finds_wrong_winners():
    def last_of_equals(true, y, argmax, x):
        true(y, argmax, x)
        flipped = np.ascontiguousarray(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2][:, ::-1, ::-1])
        true(np.empty_like(y), argmax, flipped)
        argmax[...] = ~argmax[:, ::-1, ::-1]

    with pytest.raises(ComparisonError, match="winners are not the first maximum"):
        run_all("maxpool_forward", last_of_equals)


def test_compare_finds_a_wrong_winner_of_a_fused_pool():
    def fault(true, y, argmax, *rest):
        true(y, argmax, *rest)
        argmax[..., :1] ^= 1

    with pytest.raises(ComparisonError, match="below its window's maximum"):
        run_all("conv2d_pool_forward", fault)


def test_compare_finds_a_seed_that_ignores_its_high_half():
    def fault(true, y, x, p, seed, *rest):
        true(y, x, p, seed & 0xFFFFFFFF, *rest)

    with pytest.raises(ComparisonError, match="dropout"):
        run_all("dropout", fault)


def test_compare_finds_unsorted_ties():
    def fault(true, values, indices, logits, suppress):
        true(values, indices, np.ascontiguousarray(logits[:, ::-1]), tuple(logits.shape[1] - 1 - s for s in suppress))
        indices[...] = logits.shape[1] - 1 - indices

    with pytest.raises(ComparisonError, match="integers differ"):
        run_all("log_softmax_topk", fault)


# compare in bfloat16 ---------------------------------------------------------------------------------------------------


def _run_in_bfloat16(primitive, fault):
    for case in CASES[primitive]:
        compare(case, with_fault(primitive, fault), bfloat16())


def _truncates(true, y, *rest):
    wide = np.zeros(y.shape, np.float32)
    true(wide, *(a.astype(np.float32) if is_bfloat16(a) else a for a in rest))
    y[...] = (wide.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(y.dtype)


def _adds_in_bfloat16(true, y, x, w, b, relu):
    """Sums of the two halves of a row are rounded before they meet."""
    half = x.shape[1] // 2
    first, second = np.zeros_like(y), np.zeros_like(y)
    true(first, np.ascontiguousarray(x[:, :half]), np.ascontiguousarray(w[:, :half]), None, False)
    true(second, np.ascontiguousarray(x[:, half:]), np.ascontiguousarray(w[:, half:]), b, False)
    y[...] = first + second
    if relu:
        np.maximum(y, y.dtype.type(0), out=y)


@pytest.mark.parametrize("fault", [_truncates, _adds_in_bfloat16])
def test_compare_finds_what_rounds_badly(fault):
    with pytest.raises(ComparisonError, match=r"linear_forward.*bfloat16.*(allowed|root mean square)"):
        _run_in_bfloat16("linear_forward", fault)


def test_compare_finds_a_gradient_that_is_rounded_twice():
    def fault(true, dx, *rest):
        *inputs, beta = rest
        new = np.zeros_like(dx)
        true(new, *inputs, 0.0)
        dx[...] = new if not beta else (dx.astype(np.float32) * beta + new.astype(np.float32)).astype(dx.dtype)

    with pytest.raises(ComparisonError, match="rounded twice"):
        _run_in_bfloat16("linear_backward_data", fault)


def test_compare_finds_a_parameters_gradient_that_was_rounded_to_bfloat16():
    def fault(true, dw, db, *rest):
        true(dw, db, *rest)
        dw[...] = dw.astype(bfloat16()).astype(np.float32)

    with pytest.raises(ComparisonError, match="dw .*allowed"):
        _run_in_bfloat16("linear_backward_weight", fault)


def test_compare_finds_a_wrong_winner_in_bfloat16():
    def fault(true, y, argmax, *rest):
        true(y, argmax, *rest)
        argmax[..., :1] ^= 1

    with pytest.raises(ComparisonError, match="below its window's maximum"):
        _run_in_bfloat16("conv2d_pool_forward", fault)


def test_compare_in_bfloat16_lets_a_winner_be_chosen_after_rounding():
    def rounds_first(true, y, argmax, x, w, b, stride, padding):
        p, q = ((n + 2 * padding - m) // stride + 1 for n, m in zip(x.shape[1:3], w.shape[1:3], strict=True))
        full = np.zeros((len(x), p, q, len(w)), x.dtype)
        reference.conv2d_forward(full, x, w, b, stride, padding, True)
        reference.maxpool_forward(y, argmax, full)

    _run_in_bfloat16("conv2d_pool_forward", rounds_first)


def test_compare_refuses_primitives_without_bfloat16():
    with pytest.raises(ValueError, match="lstm_forward takes no bfloat16"):
        compare(CASES["lstm_forward"][0], reference, bfloat16())


def test_compare_op_finds_a_fault_in_backward(monkeypatch):
    true = reference.linear_backward_weight

    def fault(dw, *rest):
        true(dw, *rest)
        if dw.dtype == np.float32 and fault.armed:
            dw[0, 0] += 1e-3

    fault.armed = True
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, 4)), rng.standard_normal((5, 4))
    compare_op(ops.linear, *arrays, backend="reference")
    broken = types.SimpleNamespace(**{n: getattr(reference, n) for n in CASES})
    broken.linear_backward_weight = fault
    from pycap import backends

    load = backends._load
    monkeypatch.setattr(backends, "_load", lambda name: broken if name == "cpp" else load(name))
    with pytest.raises(ComparisonError, match=r"gradient of input 1"):
        compare_op(ops.linear, *arrays, backend="cpp")


def test_tensors_of_a_comparison_keep_float32():
    class Widens(Function):
        def forward(self, x):
            return x.astype(np.float64)

        def backward(self, dy):
            return dy.astype(np.float32)

    with pytest.raises(ComparisonError, match="float64 instead of"):
        compare_op(Widens.apply, np.ones((2, 3)), backend="reference")
    assert Tensor(np.ones(2, np.float32)).dtype == np.float32
