"""The LSTM's sequence on CUDA kernels: the rule of two, each type, more tiles than blocks, what it leaves to Triton."""

from __future__ import annotations

import importlib
import logging
from functools import partial

import numpy as np
import pytest

from pycap import backends
from pycap.device import bfloat16
from pycap.testing import Case, compare
from pycap.testing.arguments import InOut
from pycap.testing.cases_sequence import lstm_backward, lstm_forward
from pycap.testing.on_device import OnDevice

FORMS = ["cooperative", "cluster"]
PRODUCTS = ["fp32", "tf32", "bfloat16", "float16"]
UNIT = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a unit in the last place, relative


@pytest.fixture
def lstm():
    return importlib.import_module("pycap.backends.cuda.lstm")


@pytest.fixture
def native():
    return importlib.import_module("pycap.backends.cuda.native")


@pytest.fixture
def only(lstm, native, cuda, monkeypatch):
    """only(form, hidden, dtype) lets no other form serve, and skips where this GPU cannot run it."""

    def choose(form, hidden, dtype=np.float32):
        monkeypatch.setattr(lstm, "_FORMS", {form: lstm._FORMS[form]})
        if not native.emulated():
            for backward in (False, True):
                reason = lstm.obstacle(form, backward, np.empty((4 * hidden, hidden), dtype), 1)
                if reason:
                    pytest.skip(reason)

    return choose


@pytest.fixture
def small(native, cuda):
    """small(multiprocessors, capability, shared) makes the emulated GPU one of so much."""
    if not native.emulated():
        pytest.skip("the GPU is what it is")
    yield native.module().set_gpu
    native.module().set_gpu(132, 90, 227 * 1024)


def backward_alone(dims, state, masked, upstream, rng):
    """lstm_backward without the gradients of inputs and weights, which are Triton's; betas 0.5 and 2."""
    arguments = lstm_backward(dims, state, masked, upstream, rng)
    n, hidden = dims[1], dims[3]
    old = [InOut(name, rng.standard_normal((n, hidden)).astype(np.float32)) for name in ("dh0", "dc0")]
    return [*[None] * 4, *old, *arguments[6:-1], (0.0, 0.0, 0.0, 0.0, 0.5, 2.0)]


def ids(case):
    return f"{case.primitive}-{case.name}"


def case(build, t, n, hidden, state, masked, *upstream):
    """A case of a builder (`lstm_forward` and the like); upstream: as `lstm_backward` takes it."""
    options = f"{'-state' * state}{'-mask' * masked}{''.join(f'-d{which}' for which in upstream)}"
    primitive = "lstm_backward" if upstream else "lstm_forward"
    name = f"t{t}-n{n}-h{hidden}{options}{'-alone' * (build is backward_alone)}"
    return Case(primitive, name, partial(build, (t, n, 4, hidden), state, masked, *upstream))


# One sequence; one tile of them, full or not; several; a single step; every size of the state that has kernels.
FORWARD = [
    case(lstm_forward, t, n, hidden, state, masked)
    for t, n, hidden, state, masked in (
        (3, 3, 64, 1, 0), (4, 33, 64, 1, 1), (3, 17, 64, 0, 1), (1, 16, 64, 0, 0), (5, 1, 64, 0, 0),
        (3, 3, 256, 1, 1), (2, 3, 512, 1, 0), (2, 3, 1024, 0, 1),
    )
]  # fmt: skip
BACKWARD = [
    case(build, t, n, hidden, state, masked, upstream)
    for build, t, n, hidden, state, masked, upstream in (
        (lstm_backward, 3, 3, 64, 1, 0, "hc"), (lstm_backward, 2, 17, 64, 0, 1, "h"), (lstm_backward, 1, 5, 64, 1, 1, "hc"),
        (backward_alone, 4, 33, 64, 1, 1, "hc"), (backward_alone, 5, 1, 64, 1, 0, "c"), (backward_alone, 3, 3, 256, 0, 1, "hc"),
        (backward_alone, 2, 3, 512, 1, 0, "h"), (backward_alone, 2, 3, 1024, 1, 1, "hc"),
    )
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", FORWARD + BACKWARD, ids=ids)
def test_the_rule_of_two(cuda, called, only, form, case):
    hidden = int(case.name.split("-h")[1].split("-")[0])
    if form == "cluster" and hidden > 256:
        pytest.skip("no cluster holds the weights in float32")
    only(form, hidden)
    compare(case, cuda)
    assert set(called) - {"lstm_obstacle", "lstm_workspace"} == {case.primitive}


def dtype_of(products):
    return bfloat16() if products == "bfloat16" else np.dtype("float16" if products == "float16" else "float32")


@pytest.fixture(params=PRODUCTS)
def products(request):
    """How factors are multiplied, while they are multiplied so: "tf32" and "fp32" are both of float32 arrays."""
    if request.param == "tf32":
        backends.set_float32_products("tf32")
    return request.param


def factor(array, products):
    """A float32 array as it is multiplied, in float64; TensorFloat-32 has 11 bits, ties go away from zero."""
    if products != "tf32":
        return array.astype(dtype_of(products)).astype(np.float64)
    bits = array.astype(np.float32).view(np.uint32) + np.uint32(1 << 12)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


class Sequence:
    """Inputs of a sequence, of the products' type; those of the product before the recurrence are exact in every type."""

    def __init__(self, t, n, hidden, products, masked, state=True):
        rng = np.random.default_rng(3)
        dtype = dtype_of(products)

        def normal(*shape, scale=1.0):
            return (scale * rng.standard_normal(shape)).astype(np.float32)

        self.x = (rng.integers(-8, 9, (t, n, 4)) / 8).astype(dtype)
        self.w_x = (rng.integers(-8, 9, (4 * hidden, 4)) / 8).astype(dtype)
        self.h0, self.c0 = (normal(n, hidden).astype(dtype), normal(n, hidden)) if state else (None, None)
        self.w_h, self.b = normal(4 * hidden, hidden, scale=hidden**-0.5).astype(dtype), normal(4 * hidden)
        self.mask = (rng.random((t, n)) < 0.7).astype(np.uint8) if masked else None
        self.dh, self.dc = normal(t, n, hidden).astype(dtype), normal(n, hidden)
        self.dtype, self.shape = dtype, (t, n, hidden)

    def forward(self, cuda):
        """h, c and the activated gates."""
        t, n, hidden = self.shape
        h = np.full((t, n, hidden), np.nan, np.float32).astype(self.dtype)
        c, gates = (np.full((t, n, k * hidden), np.nan, np.float32) for k in (1, 4))
        cuda.lstm_forward(h, c, gates, self.x, self.h0, self.c0, self.w_x, self.w_h, self.b, self.mask)
        return h, c, gates

    def backward(self, cuda, h, c, gates):
        """dh0, dc0 and the gradients of the pre-activations."""
        dh0, dc0, dz = np.zeros(h.shape[1:], h.dtype), np.zeros(h.shape[1:], np.float32), gates.copy()
        cuda.lstm_backward(
            None, None, None, None, dh0, dc0, dz, self.dh, self.dc, self.x, h, c, self.h0, self.c0, self.w_x, self.w_h,
            self.mask, (0.0,) * 6,
        )  # fmt: skip
        return dh0, dc0, dz


def near(got, truth, allowed):
    """Within `allowed`, and one rounding of got's type."""
    error = np.abs(got.astype(np.float64) - truth)
    excess = error - allowed - UNIT[got.dtype.name] * np.abs(truth)
    assert (excess <= 0).all(), f"{error[excess > 0].size} of {error.size} values err, by up to {error.max():.3g}"


#: Sums in float32, relative to the sum of the terms' sizes: far more than what any order of some thousand additions errs by
#: (2**-24 times the square root of their number), far less than a factor rounded to another type.
SUM = 2.0**-20
POINTWISE = 2.0**-21  # a few units in the last place of float32


def sizes(hidden):
    return {64: (4, 17), 256: (3, 9)}.get(hidden, (2, 3))


@pytest.mark.parametrize("hidden", [64, 256, 512, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_each_step_follows_from_the_one_before(cuda, called, only, products, form, hidden):
    """Each output, in every type, from what was stored before it: errors do not pile up, so the bounds are close."""
    if form == "cluster" and hidden > (256 if dtype_of(products) == np.float32 else 512):
        pytest.skip("no cluster holds the weights")
    only(form, hidden, dtype_of(products))
    t, n = sizes(hidden)
    made = Sequence(t, n, hidden, products, masked=True)
    h, c, gates = made.forward(cuda)
    dh0, dc0, dz = made.backward(cuda, h, c, gates)
    assert {"lstm_forward", "lstm_backward"} <= set(called)

    w = factor(made.w_h, products)
    z_from_x = made.x.astype(np.float64) @ made.w_x.T.astype(np.float64) + made.b
    runs = made.mask[..., None] != 0
    before = [np.concatenate([first[None], rest[:-1]]) for first, rest in ((made.h0, h), (made.c0, c))]
    h_before, c_before = factor(before[0], products), before[1].astype(np.float64)
    a = gates.astype(np.float64)
    i, f, g, o = np.split(a, 4, -1)
    z = z_from_x + h_before @ w.T
    truth = 1 / (1 + np.exp(-z))
    truth[..., 2 * hidden : 3 * hidden] = np.tanh(z[..., 2 * hidden : 3 * hidden])
    near(gates, np.where(runs, truth, 0), SUM * (np.abs(z_from_x) + np.abs(h_before) @ np.abs(w.T)) + POINTWISE)
    near(c, np.where(runs, f * c_before + i * g, c_before), np.where(runs, POINTWISE * (1 + np.abs(c_before)), 0))
    new_h = o * np.tanh(c.astype(np.float64))
    near(h, np.where(runs, new_h, before[0].astype(np.float64)), np.where(runs, POINTWISE, 0))

    into_h, into_c, h_error, c_error = np.zeros((n, hidden)), made.dc.astype(np.float64), 0.0, 0.0
    tanh_c = np.tanh(c.astype(np.float64))
    for step in reversed(range(t)):
        dh = into_h + made.dh[step].astype(np.float64)
        dc = into_c + dh * o[step] * (1 - tanh_c[step] ** 2)
        d = [g[step] * i[step] * (1 - i[step]), c_before[step] * f[step] * (1 - f[step]), i[step] * (1 - g[step] ** 2)]
        truth = np.concatenate([*(dc * part for part in d), dh * tanh_c[step] * o[step] * (1 - o[step])], -1)
        c_error = c_error + h_error + POINTWISE * (1 + np.abs(dc) + np.abs(dh))
        size = np.maximum(1, np.abs(c_before[step]))
        near(dz[step], np.where(runs[step], truth, 0), np.tile(size * (c_error + h_error + POINTWISE), 4))
        into_c = np.where(runs[step], dc * f[step], into_c)
        sent = factor(dz[step], products)
        past = np.where(runs[step], 0, dh)
        into_h, h_error = past + sent @ w, SUM * (np.abs(past) + np.abs(sent) @ np.abs(w)) + POINTWISE
    near(dh0, into_h, h_error)
    near(dc0, into_c, c_error)


@pytest.mark.parametrize("form", FORMS)
def test_masked_steps_may_hold_nan(cuda, only, form):
    """Nothing of x is read where the mask is 0."""
    only(form, 64)
    results = []
    made = Sequence(3, 18, 64, "fp32", masked=True, state=False)
    for filler in (0.0, np.nan):
        made.x[made.mask == 0] = filler
        h, c, gates = made.forward(cuda)
        results.append([h, c, gates, *made.backward(cuda, h, c, gates)])
    for clean, dirty in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_whoever_is_first(cuda, native, only, form):
    """Blocks that run in another order make the same numbers."""
    only(form, 64)
    made = Sequence(4, 33, 64, "bfloat16", masked=True)
    results = []
    for seed in range(4 if native.emulated() else 50):
        if native.emulated():
            native.module().set_seed(seed)
        h, c, gates = made.forward(cuda)
        results.append([h, c, gates, *made.backward(cuda, h, c, gates)])
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize(("form", "gpu"), [("cooperative", (1, 80, 48 * 1024)), ("cluster", (2, 90, 22 * 1024))])
def test_few_blocks_take_many_tiles(cuda, called, only, small, form, gpu):
    """Where there is one group of blocks it takes all tiles of 33 sequences in turn; where one cluster runs at a time, it
    takes as many as its shared memory holds."""
    only(form, 64)
    many = Sequence(3, 33, 64, "bfloat16", masked=True)
    expected = many.forward(cuda)
    gradients = many.backward(cuda, *expected)
    small(*gpu)
    called.clear()
    for got, want in zip((*many.forward(cuda), *many.backward(cuda, *expected)), (*expected, *gradients), strict=True):
        np.testing.assert_array_equal(got, want)
    assert {"lstm_forward", "lstm_backward"} <= set(called)


@pytest.fixture
def reasons(lstm, caplog):
    lstm._say.cache_clear()
    caplog.set_level(logging.INFO, logger="pycap.backends.cuda.lstm")
    return caplog


@pytest.mark.parametrize(
    ("multiprocessors", "capability", "shared", "reason"),
    [
        (1, 80, 99 * 1024, "16 blocks of 256 threads, which hold the weights among them, do not run at once"),
        (132, 80, 4 * 1024, "16 blocks of 256 threads, which hold the weights among them, do not run at once"),
    ],
)
def test_where_the_gpu_is_too_small_triton_serves(
    cuda, called, small, reasons, multiprocessors, capability, shared, reason
):
    small(multiprocessors, capability, shared)
    made = Sequence(1, 2, 256, "fp32", masked=False)
    for _ in range(2):
        h, c, gates = made.forward(cuda)
        assert np.isfinite(made.backward(cuda, h, c, gates)[2]).all()
    assert not {"lstm_forward", "lstm_backward"} & set(called)
    for direction in ("forward", "backward"):
        said = [record for record in reasons.records if reason in record.message and direction in record.message]
        assert [record.levelname for record in said] == ["INFO", "WARNING"], reasons.messages


def test_without_clusters_blocks_exchange_through_memory(cuda, called, lstm, small, reasons):
    small(108, 80, 163 * 1024)
    made = Sequence(2, 3, 64, "fp32", masked=False)
    made.forward(cuda)
    assert "lstm_forward" in called
    assert any("the cluster form does not serve" in line for line in reasons.messages)
    assert not any("the cooperative form does not serve" in line for line in reasons.messages)


def test_other_sizes_and_unaligned_arrays_are_left_to_triton(cuda, called, native, reasons):
    Sequence(2, 3, 48, "fp32", masked=False).forward(cuda)
    assert any("not for 48" in line for line in reasons.messages)
    module = importlib.import_module("pycap.backends.cuda")
    Sequence(2, 3, 64, "fp32", masked=False).forward(OnDevice(module, offset=1))
    assert any("multiples of 16 bytes" in line for line in reasons.messages)
    assert "lstm_forward" not in called
    with pytest.raises(ValueError, match="there are kernels for 64, 256, 512 and 1024 hidden units, not for 48"):
        native.module().lstm_forward(*[0] * 9, 1, 1, 48, 0, 0, 0)


@pytest.mark.parametrize(("name", "dtype"), [("c", np.float64), ("gates", np.float16), ("mask", bool)])
def test_wrong_types_are_named(cuda, name, dtype):
    made = Sequence(2, 3, 64, "fp32", masked=True)
    h, c, gates = (np.zeros((2, 3, k * 64), np.float32) for k in (1, 1, 4))
    arrays = {"h": h, "c": c, "gates": gates, "x": made.x, "h0": None, "c0": None, "w_x": made.w_x, "w_h": made.w_h}
    arrays |= {"b": made.b, "mask": made.mask}
    arrays[name] = arrays[name].astype(dtype)
    with pytest.raises(TypeError, match=f"lstm_forward: {name} must be .*, got {np.dtype(dtype)}"):
        cuda.lstm_forward(*arrays.values())
