"""One LSTM step on CUDA kernels: the rule of two, each tile, each type of products, what is left to Triton."""

from __future__ import annotations

import importlib
from functools import partial

import numpy as np
import pytest

from pycap import backends
from pycap.backends import reference
from pycap.device import bfloat16
from pycap.testing import CASES, Case, compare
from pycap.testing.cases_sequence import LSTMS, lstm_cell_backward, lstm_cell_forward
from pycap.testing.on_device import OnDevice

PRODUCTS = ["fp32", "tf32", "bfloat16", "float16"]
#: Half a unit in the last place of what a type holds, relative.
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def ids(case):
    return f"{case.primitive}-{case.name}"


# n, i, hidden: one row; rows of each tile's edge; inputs longer and shorter than the state; parts of tiles and of chunks.
SIZES = (
    (1, 256, 256),
    (3, 256, 256),
    (17, 256, 256),
    (70, 256, 256),
    (9, 12, 20),
    (33, 100, 36),
    (5, 300, 4),
    (8, 4, 68),
)
FORWARD = [Case("lstm_cell_forward", f"n{n}-i{i}-h{h}", partial(lstm_cell_forward, (1, n, i, h))) for n, i, h in SIZES]
# Triton's gradients of the weights, interpreted, take most of the time.
BACKWARD = [
    Case("lstm_cell_backward", f"n{n}-i{i}-h{h}-d{d}", partial(lstm_cell_backward, (1, n, i, h), d))
    for n, i, h, d in (
        (1, 64, 32, "hc"), (3, 256, 256, "hc"), (17, 36, 100, "hc"), (70, 20, 44, "hc"), (9, 12, 20, "h"), (33, 68, 4, "c")
    )
]  # fmt: skip


@pytest.mark.parametrize("case", FORWARD + BACKWARD, ids=ids)
def test_the_rule_of_two(cuda, called, case):
    compare(case, cuda)
    assert set(called) == {case.primitive}


@pytest.mark.parametrize("case", [*CASES["lstm_cell_forward"], *CASES["lstm_cell_backward"]], ids=ids)
def test_the_primitives_own_cases(cuda, called, case):
    """Those whose sizes are multiples of 16 bytes run on the CUDA kernels, the others on Triton's."""
    compare(case, cuda)
    _, _, i, hidden = LSTMS[case.name.split("-")[0]]
    assert set(called) == ({case.primitive} if i % 4 == hidden % 4 == 0 else set())


def dtype_of(products):
    return bfloat16() if products == "bfloat16" else np.dtype("float16" if products == "float16" else "float32")


@pytest.fixture(params=PRODUCTS)
def products(request):
    """How factors are multiplied, while they are multiplied so: "tf32" and "fp32" are both of float32 arrays."""
    if request.param == "tf32":
        backends.set_float32_products("tf32")
    return request.param


def rounded(array, products):
    """A factor as it is multiplied, in float64; TensorFloat-32 has 11 bits, ties go away from zero."""
    if products != "tf32":
        return array.astype(np.float64)
    bits = array.astype(np.float32).view(np.uint32) + np.uint32(1 << 12)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def near(got, truth, products):
    """Within the errors of sums in float32 (values of order 1), and the rounding of got's own type.

    Three TensorFloat-32 products leave out the product of both low parts: 2**-22 of each term."""
    error = np.abs(got.astype(np.float64) - truth)
    allowed = 2.0**-18 + 1.01 * UNIT[got.dtype.name] * np.abs(truth)
    assert np.isfinite(got.astype(np.float64)).all()
    assert (error <= allowed).all(), f"{got.shape} {got.dtype} {products}: {(error - allowed).max()}"


def drawn(n, i, hidden, dtype):
    """x, h_prev, c_prev, w_x, w_h, b; all but c_prev and b are rounded to dtype."""
    rng = np.random.default_rng(n * i + hidden)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    w_x, w_h = normal(4 * hidden, i, scale=i**-0.5), normal(4 * hidden, hidden, scale=hidden**-0.5)
    factors = [a.astype(dtype) for a in (normal(n, i), normal(n, hidden))]
    return [*factors, normal(n, hidden), w_x.astype(dtype), w_h.astype(dtype), normal(4 * hidden)]


def outputs(n, hidden, dtype):
    """h, c, gates, not yet written."""
    return [
        np.full((n, columns), np.nan, kind) for columns, kind in ((hidden, dtype), (hidden, "f4"), (4 * hidden, "f4"))
    ]


def forward_near_the_truth(cuda, n, i, hidden, products):
    x, h_prev, c_prev, w_x, w_h, b = drawn(n, i, hidden, dtype_of(products))
    h, c, gates = outputs(n, hidden, x.dtype)
    cuda.lstm_cell_forward(h, c, gates, x, h_prev, c_prev, w_x, w_h, b)
    exact = [rounded(a, products) for a in (x, h_prev)], [rounded(a, products) for a in (w_x, w_h)]
    wide = [np.empty(a.shape) for a in (h, c, gates)]
    reference.lstm_cell_forward(*wide, *exact[0], c_prev.astype(np.float64), *exact[1], b.astype(np.float64))
    for got, truth in zip((h, c, gates), wide, strict=True):
        near(got, truth, products)
    return h, c, gates


@pytest.mark.parametrize("tile", range(4))
def test_each_tile(cuda, called, monkeypatch, products, tile):
    """Rows and units that fill no tile, inputs and states that fill no chunk, more chunks than a warp has on their way."""
    launching = importlib.import_module("pycap.backends.triton.launching")
    monkeypatch.setitem(launching.forced, "lstm_cell.form", launching.Row({"FORM": "cuda", "TILE": tile}))
    forward_near_the_truth(cuda, 67, 488, 72, products)
    assert called == ["lstm_cell_forward"]


def test_each_type_at_once(cuda, called, products):
    """The least sizes: 16 bytes a row."""
    size = 16 // dtype_of(products).itemsize
    forward_near_the_truth(cuda, 1, size, size, products)
    assert called == ["lstm_cell_forward"]


@pytest.mark.parametrize(("n", "i", "hidden"), [(3, 88, 264), (20, 24, 40), (70, 48, 8)])
def test_backward(cuda, called, products, n, i, hidden):
    """dz in float32's accuracy; dx and dh_prev are products of dz as its type rounds it, and are rounded once."""
    dtype = dtype_of(products)
    x, h_prev, c_prev, w_x, w_h, b = drawn(n, i, hidden, dtype)
    rng = np.random.default_rng(3)
    dh, dc = rng.standard_normal((n, hidden)).astype(dtype), rng.standard_normal((n, hidden)).astype(np.float32)
    wide = [np.empty((n, k * hidden)) for k in (1, 1, 4)]
    reference.lstm_cell_forward(*wide, *(a.astype(np.float64) for a in (x, h_prev, c_prev, w_x, w_h, b)))
    c, gates = (a.astype(np.float32) for a in wide[1:])
    dx, dh_prev, dc_prev = np.full((n, i), 0.5, dtype), np.full((n, hidden), np.nan, dtype), np.ones((n, hidden), "f4")
    betas, given = (2.0, 0.0, 0.0, 0.0, 0.0, -1.0), (dh, dc, x, c, h_prev, c_prev, w_x, w_h)
    truth = [
        np.full((n, i), 0.5),
        None,
        None,
        None,
        np.empty((n, hidden)),
        np.ones((n, hidden)),
        gates.astype(np.float64),
    ]
    reference.lstm_cell_backward(*truth, *(a.astype(np.float64) for a in given), betas)
    cuda.lstm_cell_backward(dx, None, None, None, dh_prev, dc_prev, gates, *given, betas)
    assert called == ["lstm_cell_backward"]
    near(gates, truth[6], products)
    near(dc_prev, truth[5], products)
    factors = rounded(gates.astype(dtype), products)
    near(dx, factors @ rounded(w_x, products) + 1.0, products)
    near(dh_prev, factors @ rounded(w_h, products), products)


def test_gradients_of_the_weights_in_half_precision(cuda, products):
    """From Triton's kernels, which multiply dz as the type of x rounds it."""
    if products not in ("bfloat16", "float16"):
        pytest.skip("the rule of two holds float32's")
    n, i, hidden, dtype = 10, 16, 24, dtype_of(products)
    x, h_prev, c_prev, w_x, w_h, b = drawn(n, i, hidden, dtype)
    h, c, gates = outputs(n, hidden, dtype)
    cuda.lstm_cell_forward(h, c, gates, x, h_prev, c_prev, w_x, w_h, b)
    shapes = ((4 * hidden, i), (4 * hidden, hidden), (4 * hidden,))
    dw_x, dw_h, db = (np.full(shape, np.nan, np.float32) for shape in shapes)
    dh = np.ones((n, hidden), dtype)
    cuda.lstm_cell_backward(
        None, dw_x, dw_h, db, None, None, gates, dh, None, x, c, h_prev, c_prev, w_x, w_h, (0.0,) * 6
    )
    factors = rounded(gates.astype(dtype), products)
    near(dw_x, factors.T @ x.astype(np.float64), products)
    near(dw_h, factors.T @ h_prev.astype(np.float64), products)
    near(db, gates.astype(np.float64).sum(0), products)


def test_rows_and_units_keep_to_themselves(cuda, products):
    """NaN in the first row of x, or in the first unit's weights, reaches no other, where tiles are not full either."""
    n, i, hidden = 5, 16, 24
    x, h_prev, c_prev, w_x, w_h, b = drawn(n, i, hidden, dtype_of(products))
    for array in (x, w_x):
        clean, dirty = outputs(n, hidden, x.dtype), outputs(n, hidden, x.dtype)
        cuda.lstm_cell_forward(*clean, x, h_prev, c_prev, w_x, w_h, b)
        held = array[0].copy()
        array[0] = np.nan
        cuda.lstm_cell_forward(*dirty, x, h_prev, c_prev, w_x, w_h, b)
        array[0] = held
        for before, after in zip(clean, dirty, strict=True):
            before, after = before.astype(np.float32), after.astype(np.float32)
            if array is x:
                assert np.isnan(after[0]).all()
                np.testing.assert_array_equal(after[1:], before[1:])
            else:
                assert np.isnan(after[:, 0]).all()
                np.testing.assert_array_equal(after[:, 1:], before[:, 1:])


def test_the_same_bits_every_time(cuda, products):
    """In whichever order blocks and warps run."""
    first = forward_near_the_truth(cuda, 12, 96, 40, products)
    native = importlib.import_module("pycap.backends.cuda.native")
    for seed in (1, 2):
        if hasattr(native.module(), "set_seed"):
            native.module().set_seed(seed)
        for a, b in zip(first, forward_near_the_truth(cuda, 12, 96, 40, products), strict=True):
            assert a.tobytes() == b.tobytes()


def test_unaligned_arrays_go_to_triton(cuda, called):
    """The factors must lie at multiples of 16 bytes, the outputs need not."""
    compare(FORWARD[4], OnDevice(importlib.import_module("pycap.backends.cuda"), offset=1))
    assert called == []


@pytest.mark.emu
def test_the_form_is_the_tables_unless_asked_for(monkeypatch, called):
    """Where the backend is chosen automatically, the table decides."""
    launching = importlib.import_module("pycap.backends.triton.launching")
    native = importlib.import_module("pycap.backends.cuda.native")
    module = importlib.import_module("pycap.backends.cuda")
    monkeypatch.setattr(native, "asked", lambda: False)
    for form, names in (("portable", []), ("cuda", ["lstm_cell_forward"])):
        monkeypatch.setitem(launching.forced, "lstm_cell.form", launching.Row({"FORM": form}))
        compare(FORWARD[4], OnDevice(module))
        assert called == names


@pytest.mark.emu
def test_the_tile_whose_busiest_multiprocessor_reads_least():
    """On 132 multiprocessors, H = 512: 128 blocks of 4 units for a few rows; large tiles once there are enough of them."""
    module = importlib.import_module("pycap.backends.cuda.native").module()
    tiles = [module.lstm_cell_tile(n, 512, 512) for n in (1, 8, 17, 32, 64, 320, 1000)]
    assert module.LSTM_CELL_TILES == ((4, 8), (4, 32), (8, 64), (32, 64))
    assert tiles == [0, 0, 1, 1, 1, 3, 3]


def test_what_does_not_fit_is_named(cuda):
    x, h_prev, c_prev, w_x, w_h, b = drawn(2, 8, 4, np.float32)
    h, c, gates = outputs(2, 4, np.float32)
    with pytest.raises(TypeError, match="lstm_cell_forward: c must be float32, got float64"):
        cuda.lstm_cell_forward(h, c.astype(np.float64), gates, x, h_prev, c_prev, w_x, w_h, b)
    with pytest.raises(ValueError, match=r"lstm_cell_forward: b has shape \(15,\), expected \(16,\)"):
        cuda.lstm_cell_forward(h, c, gates, x, h_prev, c_prev, w_x, w_h, b[1:])
    native = importlib.import_module("pycap.backends.cuda.native")
    with pytest.raises(ValueError, match="N = 2, I = 6, H = 4: I and H must be multiples of 4"):
        native.module().lstm_cell_forward(*[0] * 9, 2, 6, 4, 0, -1, 0)
    with pytest.raises(ValueError, match="there is no tile 4, but 4"):
        native.module().lstm_cell_forward(*[0] * 9, 2, 8, 4, 0, 4, 0)
    with pytest.raises(ValueError, match="products: 9 is none of"):
        native.module().lstm_cell_forward(*[0] * 9, 2, 8, 4, 9, -1, 0)
