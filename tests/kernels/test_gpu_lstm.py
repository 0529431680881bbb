"""The LSTM's form of one launch for all steps, on a GPU: it agrees with a launch a step, and repeats itself bit for bit."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap import backends
from pycap.backends.triton import launching
from pycap.device import to_device, to_host

pytestmark = pytest.mark.gpu
STEPS, INPUTS = 20, 32
REPEATS = 50  # a program that does not wait for another reads what the step before left there, now and then


@pytest.fixture(autouse=True)
def _on_the_gpu():
    with backends.use("triton", "cuda"):
        yield


def gradients_and_states(lstm, n, hidden):
    """Everything that a forward and a backward write, on the host."""
    rng = np.random.default_rng(17)

    def normal(*shape, scale=1.0):
        return to_device((scale * rng.standard_normal(shape)).astype(np.float32))

    def empty(*shape):
        return to_device(np.full(shape, np.nan, np.float32))

    x, h0, c0, b = normal(STEPS, n, INPUTS), normal(n, hidden), normal(n, hidden), normal(4 * hidden)
    w_x, w_h = normal(4 * hidden, INPUTS, scale=INPUTS**-0.5), normal(4 * hidden, hidden, scale=hidden**-0.5)
    dh, dc = normal(STEPS, n, hidden), normal(n, hidden)
    mask = to_device((rng.random((STEPS, n)) < 0.8).astype(np.uint8))
    h, c, gates = (empty(STEPS, n, k * hidden) for k in (1, 1, 4))
    lstm.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, mask)
    made = [to_host(a).copy() for a in (h, c, gates)]
    gradients = [empty(*a.shape) for a in (x, w_x, w_h, b, h0, c0)]
    lstm.lstm_backward(*gradients, gates, dh, dc, x, h, c, h0, c0, w_x, w_h, mask, (0.0,) * 6)
    return made + [to_host(a).copy() for a in (*gradients, gates)]


@pytest.mark.parametrize("products", ["fp32", "tf32"])
@pytest.mark.parametrize(("n", "hidden"), [(64, 256), (33, 256), (128, 256), (1, 256), (64, 512)])
def test_one_launch_is_a_launch_a_step(monkeypatch, n, hidden, products):
    """Within float32's errors (or TensorFloat-32's), and every time alike, whichever program waits for whichever."""
    lstm = importlib.import_module("pycap.backends.triton.lstm")
    backends.set_float32_products(products)
    monkeypatch.setitem(launching.forced, "lstm.form", launching.Row({"FORM": "step"}))
    expected = gradients_and_states(lstm, n, hidden)
    monkeypatch.setitem(launching.forced, "lstm.form", launching.Row({"FORM": "persistent"}))
    whole = lstm._persistent(lstm._sequence_forward, to_device(np.zeros((4 * hidden, hidden), np.float32)), n, hidden)
    if whole is None:
        pytest.skip(f"this GPU has too few multiprocessors for N = {n} and H = {hidden} at once")
    first = gradients_and_states(lstm, n, hidden)
    for got, want in zip(first, expected, strict=True):
        scale = float(np.abs(want).max())
        assert np.abs(got - want).max() <= scale * (1e-4 if products == "fp32" else 1e-2)
    for _ in range(REPEATS):
        for got, want in zip(gradients_and_states(lstm, n, hidden), first, strict=True):
            np.testing.assert_array_equal(got, want)
