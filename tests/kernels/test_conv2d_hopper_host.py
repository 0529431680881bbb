"""The Hopper convolutions from the primitives down: the host's choice of rows, grids and tensor maps, kernels emulated."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest

from pycap.backends import reference
from pycap.backends.triton import conv2d, conv2d_hopper, launching
from pycap.device import bfloat16
from pycap.testing import CASES, compare
from tests.kernels.gluon_emulator import TensorMap, emulate

pytestmark = pytest.mark.triton

#: Cases whose channels the copy engine can move: 3x3, stride 1, padding 1.
NAMES = ("tile_exact", "channels_64", "c16_k48_tile_minus_1", "c32_k16_3x3_image", "c16_k32_row", "c256_k64", "batch0")


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The table prefers Hopper's form, and its kernels run in the emulator; their names, as they are launched."""
    interpreter = launching.kernel_module("_interpret")
    run, names = interpreter.run, []

    def emulated(kernel, grid, arguments, constants):
        names.append(kernel)
        module, function = kernel.split(".")
        if not module.startswith("conv2d_hopper"):
            run(kernel, grid, arguments, constants)
            return
        extent = launching.kernel_module("_launch")._extent
        given = {}
        parameters = launching.kernel_module("_launch").KERNELS[kernel].parameters
        for parameter, argument in zip(parameters, arguments, strict=True):
            if parameter.box and argument is not None:
                argument = TensorMap(argument, [extent(size, constants) for size in parameter.box])
            given[parameter.name] = argument
        emulate(launching.kernel_module(module), function, grid[:2], given | constants)

    monkeypatch.setattr(interpreter, "run", emulated)
    monkeypatch.setitem(launching.forced, "conv2d.form", launching.Row({"FORM": "hopper"}))
    return names


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN in memory that is not looked at
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("primitive", "kernel"),
    [
        ("conv2d_forward", "conv2d_hopper.forward"),
        ("conv2d_pool_forward", "conv2d_hopper.forward_pool"),
        ("conv2d_backward_data", "conv2d_hopper.backward_data"),
        ("conv2d_backward_weight", "conv2d_hopper_weight.backward_weight"),
    ],
)
def test_rule_of_two(launched, primitive, kernel, name):
    backend = importlib.import_module("pycap.backends.triton")
    cases = [case for case in CASES[primitive] if case.name.split("-")[0] == name]
    for case in cases:
        compare(case, backend, bfloat16())
    takes = name != "batch0" and (primitive != "conv2d_pool_forward" or name in ("channels_64", "c256_k64"))
    assert (kernel in launched) == (takes and bool(cases))


def test_the_gradient_through_the_layer_below(launched):
    """Its ReLU mask and its bias gradient come out of the same product."""
    rng = np.random.default_rng(3)
    x, dy = (np.maximum(rng.standard_normal((3, 9, 7, 64)), 0).astype(bfloat16()) for _ in range(2))
    w = (rng.standard_normal((64, 3, 3, 64)) / 24).astype(np.float32)
    dz, db = np.full_like(x, np.nan), np.full(64, 2.0, np.float32)
    conv2d.conv2d_backward_data_relu(dz, db, dy, w, None, None, x, 1, 1, 0.5)
    assert "conv2d_hopper.backward_data" in launched
    exact = np.empty(x.shape)
    rounded = w.astype(bfloat16()).astype(np.float64)
    reference.conv2d_backward_data(exact, dy.astype(np.float64), rounded, None, None, 1, 1, 0.0)
    exact *= x > 0
    half_a_unit = 2.0**-8 * np.abs(exact) + 1e-5
    assert (np.abs(dz.astype(np.float64) - exact) <= half_a_unit).all()
    np.testing.assert_allclose(db, 1.0 + exact.sum((0, 1, 2)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("change", ["stride", "padding", "channels", "filters", "size", "float32", "table"])
def test_what_they_do_not_take_goes_to_the_portable_kernels(launched, monkeypatch, change):
    case = next(c for c in CASES["conv2d_forward"] if c.name == "channels_64")
    _, x, w, *_ = case.arguments()
    shape = {"channels": (64, 3, 3, 12), "filters": (12, 3, 3, 64), "size": (64, 1, 1, 64)}.get(change, w.array.shape)
    x = np.ones((*x.shape[:3], shape[3]), np.float32 if change == "float32" else bfloat16())
    if change == "table":
        monkeypatch.delitem(launching.forced, "conv2d.form")
    stride, padding = 1 + (change == "stride"), 1 + (change == "padding")
    assert not conv2d_hopper.serves(x, np.ones(shape, np.float32), stride, padding)
    assert conv2d_hopper.serves(np.ones((3, 6, 6, 64), bfloat16()), np.ones((64, 3, 3, 64), np.float32), 1, 1) == (
        change != "table"
    )


def test_betas_go_to_the_portable_kernel(launched):
    case = next(c for c in CASES["conv2d_backward_data"] if c.name == "channels_64-none")
    compare(dataclasses.replace(case), importlib.import_module("pycap.backends.triton"), bfloat16())
    assert {"conv2d.backward_data", "conv2d_hopper.backward_data"} <= set(launched)


@pytest.mark.parametrize("shape", [(1, 8, 8, 64), (3, 37, 23, 64), (2, 40, 24, 128), (5, 9, 9, 256)])
@pytest.mark.parametrize("programs", [1, 5, 132])
def test_the_weight_gradients_programs_cover_all_pixels(shape, programs):
    """Each takes whole rings of buffers, and none begins past the end."""
    x = np.empty(shape, bfloat16())
    how, share, splits = conv2d_hopper.weight_splits(x, 64, programs)
    total = conv2d_hopper.boxes(x, how)
    total = -(-total // 2) if how.blocks["BY_PIXELS"] else total
    assert share % how.blocks["NB"] == 0
    assert (splits - 1) * share < total <= splits * share
