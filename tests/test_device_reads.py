"""No primitive of the reference reads back what lies on a GPU: a training step can be launched, or recorded, without waiting.

On the stand-in for CuPy, which counts. `tests/kernels/test_on_device.py` holds the same of the Triton backend.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pycap import backends, device, ops
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.device import bfloat16
from pycap.nn import Dropout, Module
from pycap.nn.layers import dropout_seeds, place_dropout
from pycap.testing import CASES, compare
from pycap.testing.on_device import OnDevice
from tests import cupy_standin

READS = {"sum_squares"}  # returns a number
WITHOUT = [name for name in backends.PRIMITIVES if name not in READS]


@pytest.fixture(autouse=True)
def xp(monkeypatch):
    """The stand-in as the current device's module."""
    module = cupy_standin.make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with backends.use("reference", "cuda"):
        yield module


def counted(function):
    """`function`, that it reads nothing back being asserted at each call."""

    def call(*arguments, **named):
        before = cupy_standin.ndarray.reads
        function(*arguments, **named)
        assert cupy_standin.ndarray.reads == before, f"{function.__name__} waits for the device"

    return call


def sample(primitive):
    """Every case, but of a primitive with many each ninth; each of LSTMs with all that they may be given."""
    cases = CASES[primitive]
    return cases[:: 1 + 8 * (len(cases) > 40)] + [c for c in cases if c.name.startswith("primes-state-mask")]


@pytest.mark.parametrize("primitive", WITHOUT)
def test_primitives_read_nothing_back(primitive):
    backend = OnDevice(SimpleNamespace(**{primitive: counted(getattr(reference, primitive))}))
    for case in sample(primitive):
        compare(case, backend)
        if primitive in backends.BFLOAT16:
            compare(case, backend, bfloat16())


def test_what_reads_is_found():
    def spoiled(y, table, ids):
        y[...] = table[ids]
        float(y.sum())

    def by_mask(y, table, ids):
        y[...] = table[ids]
        y[...] = y[y[:, 0] == y[:, 0]]

    for function in (spoiled, by_mask):
        with pytest.raises(AssertionError, match="waits for the device"):
            compare(CASES["embedding_forward"][1], OnDevice(SimpleNamespace(embedding_forward=counted(function))))
    with pytest.raises(AssertionError, match="sum_squares waits for the device"):
        compare(CASES["sum_squares"][0], OnDevice(SimpleNamespace(sum_squares=counted(reference.sum_squares))))


STEPS = {
    "sgd_step": (1, (9.0, 0.9), ()), "rmsprop_step": (1, (9.0, 0.95, 1e-8), ()),
    "adam_step": (2, (9.0, 0.9, 0.999, 1e-8), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("factor", [0.5, np.nan])
def test_steps_with_everything_on_the_device(xp, name, factor):
    """As on the host, bit for bit, and with nothing read back."""
    states, own, step = STEPS[name]
    rng = np.random.default_rng(3)
    lists = [[rng.random(n).astype(np.float32) for n in (5, 16)] for _ in range(2 + states)]
    copies = [np.zeros(5, bfloat16()), None]
    rates, factors = np.array([1e-2, 0.6, 0.03], np.float32), np.array([factor], np.float32)
    sent = [[xp.asarray(a) for a in arrays] for arrays in lists]
    sent_copies = [xp.asarray(copies[0]), None]
    end = (0.01, *step)
    function = getattr(reference, name)
    given = {"copies": sent_copies, "rates": xp.asarray(rates)}
    counted(function)(*sent, *own, *end, xp.asarray(factors), 0.3, **given)
    function(*lists, *own, *end, factors, 0.3, copies=copies, rates=rates)
    pairs = [pair for both in zip(sent, lists, strict=True) for pair in zip(*both, strict=True)]
    for a, b in [*pairs, (sent_copies[0], copies[0])]:
        assert a.get().tobytes() == b.tobytes()


class Twice(Module):
    """Two layers of dropout."""

    def __init__(self):
        self.first, self.second = Dropout(0.5), Dropout(0.25)

    def __call__(self, x):
        return self.second(self.first(x))


def test_seeds_on_the_device_are_read_where_they_lie(xp):
    """The masks are those of the int; other seeds written to the same array give other masks; nothing is read back."""
    model, x = Twice(), np.ones((3, 6, 33), np.float32)
    model.train(True)
    expected = []
    for seed in (7, 2**63 + 5):
        place_dropout(model, seed, 0, 3, 3)
        expected.append(model(Tensor(xp.asarray(x))).data.get())
    seeds = xp.zeros((2, 2), np.uint32)
    place_dropout(model, seeds, 0, 3, 3)
    for seed, mask in zip((7, 2**63 + 5), expected, strict=True):
        seeds.set(dropout_seeds(model, seed))
        before = cupy_standin.ndarray.reads
        leaf = Tensor(xp.asarray(x), requires_grad=True)
        y = model(leaf)
        ops.sum(y).backward()
        assert cupy_standin.ndarray.reads == before
        np.testing.assert_array_equal(y.data.get(), mask)
        np.testing.assert_array_equal(leaf.grad.get(), mask)
    assert not np.array_equal(*expected)
