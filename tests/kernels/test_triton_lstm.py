"""The LSTM on Triton kernels, beyond the primitives' common cases: half precision, one launch for all steps, masked NaN."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from pycap.backends import reference
from pycap.device import bfloat16
from pycap.memory import poisoned
from pycap.testing import CASES, compare

pytestmark = pytest.mark.triton
HALVES = ["bfloat16", "float16"]


@pytest.fixture(scope="module")
def lstm():
    return pytest.importorskip("pycap.backends.triton.lstm")


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def prefer(monkeypatch, form):
    """Has the table prefer this form of a sequence."""
    launching = importlib.import_module("pycap.backends.triton.launching")
    monkeypatch.setitem(launching.forced, "lstm.form", launching.Row({"FORM": form}))


def dtype_of(name):
    return bfloat16() if name == "bfloat16" else np.dtype(name)


class Spy:
    """Stands for a kernel, and counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.name, self.launches = kernel, kernel.name, 0

    def __call__(self, *arguments, **constants):
        self.launches += 1
        self.kernel(*arguments, **constants)


@pytest.fixture
def persistent(lstm, monkeypatch):
    """Turns the form of one launch on; gives (the forward kernel, the backward kernel), which count their launches."""
    prefer(monkeypatch, "persistent")
    spies = Spy(lstm._sequence_forward), Spy(lstm._sequence_backward)
    monkeypatch.setattr(lstm, "_sequence_forward", spies[0])
    monkeypatch.setattr(lstm, "_sequence_backward", spies[1])
    return spies


def cases(primitive, *names):
    return [case for case in CASES[primitive] if case.name in names]


@pytest.mark.parametrize("case", cases("lstm_forward", "n40", "n40-state-mask", "h64-mask"), ids=lambda case: case.name)
def test_all_steps_forward_in_one_launch(lstm, persistent, case):
    compare(case, lstm)
    assert persistent[0].launches == 1


@pytest.mark.parametrize(
    "case", cases("lstm_backward", "n40-mask-dhc", "n40-state-mask-dc", "h64-state-dhc"), ids=lambda case: case.name
)
def test_all_steps_backward_in_one_launch(lstm, persistent, case):
    compare(case, lstm)
    assert persistent[1].launches == 10  # one for each choice of betas and absent gradients


def test_sizes_that_do_not_fit_take_a_launch_a_step(lstm, persistent):
    for case in cases("lstm_forward", "h31-state-mask", "batch0"):
        compare(case, lstm)
    assert persistent[0].launches == 0


def drawn(rng, t, n, i, hidden, dtype):
    """x, h0, c0, w_x, w_h, b; all but c0 and b are rounded to dtype."""

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    x, h0, c0 = normal(t, n, i), normal(n, hidden), normal(n, hidden)
    w_x, w_h = normal(4 * hidden, i, scale=i**-0.5), normal(4 * hidden, hidden, scale=hidden**-0.5)
    return [x.astype(dtype), h0.astype(dtype), c0, w_x.astype(dtype), w_h.astype(dtype), normal(4 * hidden)]


def exact(arrays):
    return [a.astype(np.float64) for a in arrays]


def near(got, truth, eps=2.0**-20):
    """Within eps of the truth, for values of order 1, or one rounding of got's type."""
    unit = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[got.dtype.name]
    error = np.abs(got.astype(np.float64) - truth)
    assert (error <= eps + unit * np.abs(truth)).all(), error.max()


@pytest.mark.parametrize("name", HALVES)
def test_cell_in_half_precision(lstm, rng, name):
    """Products of x, h and the weights in half precision; c and the gates keep float32's accuracy, h is rounded once."""
    n, i, hidden = 35, 19, 37
    x, h0, c0, w_x, w_h, b = drawn(rng, 1, n, i, hidden, dtype_of(name))
    h, c, gates = np.full((n, hidden), np.nan, x.dtype), *(np.full((n, k * hidden), np.nan, np.float32) for k in (1, 4))
    lstm.lstm_cell_forward(h, c, gates, x[0], h0, c0, w_x, w_h, b)
    wide = [np.empty(a.shape) for a in (h, c, gates)]
    reference.lstm_cell_forward(*wide, *exact((x[0], h0, c0, w_x, w_h, b)))
    for got, truth in zip((h, c, gates), wide, strict=True):
        near(got, truth)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("hidden", [16, 31])
def test_sequence_in_half_precision(lstm, rng, name, hidden):
    """The products of all inputs stay float32 until the gates; those of the backward multiply dz as the type rounds it."""
    steps, n, i, dtype = 3, 5, 20, dtype_of(name)
    x, h0, c0, w_x, w_h, b = drawn(rng, steps, n, i, hidden, dtype)
    h = np.full((steps, n, hidden), np.nan, dtype)
    c, gates = (np.full((steps, n, k * hidden), np.nan, np.float32) for k in (1, 4))
    lstm.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, None)
    first = [np.empty(a[0].shape) for a in (h, c, gates)]
    reference.lstm_cell_forward(*first, *exact((x[0], h0, c0, w_x, w_h, b)))
    for got, truth in zip((h, c, gates), first, strict=True):
        near(got[0], truth)
    dx, dw_x, db = np.full(x.shape, 0.5, dtype), np.full(w_x.shape, np.nan, "f4"), np.full(b.shape, np.nan, "f4")
    dh, betas = rng.standard_normal(h.shape).astype(dtype), (2.0, 0, 0, 0, 0, 0)
    lstm.lstm_backward(dx, dw_x, None, db, None, None, gates, dh, None, x, h, c, h0, c0, w_x, w_h, None, betas)
    factors = gates.astype(dtype).astype(np.float64)
    near(dx, factors @ w_x.astype(np.float64) + 1.0)
    near(dw_x, np.einsum("tng,tni->gi", factors, x.astype(np.float64)), 2.0**-18)
    near(db, gates.astype(np.float64).sum((0, 1)), 2.0**-18)


@pytest.mark.parametrize("name", HALVES)
def test_one_launch_in_half_precision_is_a_launch_a_step(lstm, rng, name, monkeypatch):
    steps, n, i, hidden = 4, 21, 16, 64
    x, h0, c0, w_x, w_h, b = drawn(rng, steps, n, i, hidden, dtype_of(name))
    mask = (rng.random((steps, n)) < 0.7).astype(np.uint8)
    inputs = (x.astype(np.float32) @ w_x.astype(np.float32).T + b).astype(np.float32)
    dh, dc = rng.standard_normal((steps, n, hidden)).astype(x.dtype), rng.standard_normal((n, hidden)).astype("float32")
    results = []
    for form in ("step", "persistent"):
        prefer(monkeypatch, form)
        h, c, gates = (
            np.full((steps, n, hidden), np.nan, x.dtype),
            np.full((steps, n, hidden), np.nan, "float32"),
            +inputs,
        )
        dh0, dc0 = np.zeros_like(h0), np.zeros_like(c0)
        lstm._steps_forward(h, c, gates, h0, c0, w_h, mask)
        activated = +gates
        lstm._steps_backward(steps, dh0, dc0, gates, dh, dc, c, c0, w_h, mask, (0,) * 6)
        results.append((h, c, activated, gates, dh0, dc0))
    unit = 2.0**-8 if name == "bfloat16" else 2.0**-11
    for step_by_step, at_once in zip(*results, strict=True):
        difference = np.abs(step_by_step.astype(np.float64) - at_once.astype(np.float64))
        # Sums in another order may round to the neighbouring h, which the later steps then carry on.
        assert difference.max() <= 4 * unit * np.abs(step_by_step.astype(np.float64)).max()
        assert np.mean(difference) <= unit / 8


@pytest.mark.parametrize("form", ["step", "persistent"])
def test_masked_steps_may_hold_nan(lstm, rng, monkeypatch, form):
    """Nothing of x is read where the mask is 0: not by the gates, not by the gradients of the weights."""
    prefer(monkeypatch, form)
    steps, n, i, hidden = 3, 18, 16, 32
    x, h0, c0, w_x, w_h, b = drawn(rng, steps, n, i, hidden, np.float32)
    mask = (rng.random((steps, n)) < 0.5).astype(np.uint8)
    results = []
    for filler in (0.0, np.nan):
        x[mask == 0] = filler
        made = [
            np.full(s, np.nan, np.float32) for s in ((steps, n, hidden), (steps, n, hidden), (steps, n, 4 * hidden))
        ]
        shapes = ((steps, n, i), (4 * hidden, i), (4 * hidden, hidden), (4 * hidden,), (n, hidden), (n, hidden))
        gradients = [np.full(shape, np.nan, np.float32) for shape in shapes]
        with poisoned():
            lstm.lstm_forward(*made, x, h0, c0, w_x, w_h, b, mask)
            assert np.isfinite(made[2]).all()
            h, c, gates = made
            dh = np.ones_like(h)
            lstm.lstm_backward(*gradients, gates, dh, None, x, h, c, h0, c0, w_x, w_h, mask, (0.0,) * 6)
        results.append([*made, *gradients])
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(clean, dirty)


def test_activations_are_accurate_everywhere(lstm):
    """With no inputs but the bias the gates are sigmoid and tanh of it: within 4 units in the last place, at any size."""
    hidden = 256
    z = np.concatenate([np.geomspace(1e-30, 80, 101), np.linspace(0.5, 0.6, 20), [0.0, 0.55, 200.0]]).astype(np.float32)
    z = np.resize(np.concatenate([z, -z]), hidden)
    h, c, gates = (np.full((1, k * hidden), np.nan, np.float32) for k in (1, 1, 4))
    nothing = [np.zeros(shape, np.float32) for shape in ((1, 1), (1, hidden), (1, hidden), (4 * hidden, 1))]
    lstm.lstm_cell_forward(h, c, gates, *nothing, np.zeros((4 * hidden, hidden), np.float32), np.tile(z, 4))
    wide = z.astype(np.float64)
    for k, truth in enumerate(
        (1 / (1 + np.exp(-wide)), 1 / (1 + np.exp(-wide)), np.tanh(wide), 1 / (1 + np.exp(-wide)))
    ):
        got = gates[0, k * hidden : (k + 1) * hidden]
        # exp(-z) errs by z units, so far below 0 that is what sigmoid does
        units = 4 + (np.maximum(-wide, 0) if k != 2 else 0)
        assert (np.abs(got - truth) <= units * 2.0**-23 * np.abs(truth) + 1e-38).all()


def test_wrong_shapes_are_named(lstm, rng):
    x, h0, c0, w_x, w_h, b = drawn(rng, 2, 3, 5, 4, np.float32)
    h, c, gates = np.empty((2, 3, 4), "f4"), np.empty((2, 3, 4), "f4"), np.empty((2, 3, 16), "f4")
    with pytest.raises(ValueError, match=r"lstm_forward: c0 has shape \(2, 4\), expected \(3, 4\)"):
        lstm.lstm_forward(h, c, gates, x, h0, c0[1:], w_x, w_h, b, None)
    with pytest.raises(ValueError, match=r"lstm_forward: mask has shape"):
        lstm.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, np.ones((3, 2), np.uint8))
    with pytest.raises(TypeError, match=r"lstm.cell_forward: mask must be uint8, got bool"):
        lstm.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, np.ones((2, 3), bool))


_HELD = """
import re, triton
from pycap.cubins import variants
compile = triton.compile
def kept(*arguments, **named):
    global text
    made = compile(*arguments, **named)
    text = made.asm["ttgir"]
    return made
triton.compile = kept
for arch in ("sm_80", "sm_90"):
    for name, gates in (("lstm_persistent.forward", 4), ("lstm_persistent.backward", 1)):
        for variant in variants(arch, name):
            variant.compile(arch)
            blocks = variant.row.blocks
            tile = f"tensor<{blocks['BLOCK_K']}x{gates * blocks['BLOCK_H']}x!tt.ptr"
            before, after = text.split("scf.for", 1)
            loads = [len(re.findall(rf"tt.load .*{tile}", part)) for part in (before, after)]
            print(arch, name, loads, blocks["CHUNKS"])
            if gates == 4 or blocks["BLOCK_K"] != blocks["BLOCK_N"]:  # else tiles of the state look the same
                assert loads == [blocks["CHUNKS"], 0], variant.describe()
            assert before.count("ttg.local_alloc") >= blocks["CHUNKS"], variant.describe()
"""


@pytest.mark.slow
def test_weights_stay_in_shared_memory(lstm):
    """Compiled, each chunk of the weights is loaded once, before the loop over steps, and put in shared memory there."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _HELD], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 15
