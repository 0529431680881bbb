"""What the primitives launch on a GPU was built ahead: every type, size and alignment finds its variant. Needs no GPU."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pycap import backends, device
from pycap.device import bfloat16
from pycap.testing import CASES, ComparisonError, compare
from pycap.testing.on_device import OnDevice
from tests import cupy_standin

pytestmark = pytest.mark.triton
PRIMITIVES = (
    "linear_forward", "linear_backward_data", "linear_backward_weight", "linear_xent_forward", "linear_xent_backward",
    "log_softmax_topk", "beam_select", "sgd_step", "rmsprop_step", "adam_step", "total", "sum_squares_into",
    "sum_squares", "clip_factors", "dropout", "embedding_forward",
    "embedding_backward", "lstm_forward", "lstm_backward", "lstm_cell_forward", "lstm_cell_backward",
)  # fmt: skip


@pytest.fixture(params=["sm_80", "sm_90"])
def launches(request, monkeypatch):
    """Runs what is declared on a machine of this architecture: (kernel's name, whether its variant was built) a launch."""
    backend = importlib.import_module("pycap.backends.triton")
    launching = backend.launching
    launch, configs = launching.kernel_module("_launch"), launching.kernel_module("configs")
    made: list[tuple[str, bool]] = []

    def prepare(kernel, machine, number, row, aligned, arguments, constants):
        types = tuple(sorted(kernel.bind(arguments).items()))
        variant = launch.Variant(kernel, row, types, tuple(sorted(constants.items())), aligned)
        built = {v.describe() for v in kernel.built_variants(configs.ROWS, request.param)}
        made.append((variant.describe(), variant.describe() in built))
        layout = launch.packing(kernel.parameters, 2)
        return layout.pack_into, layout.size, 0, 128, 0, ()

    def refuse(variant, arch):
        raise AssertionError(f"{variant.describe()} is compiled")

    machine = SimpleNamespace(
        driver=SimpleNamespace(launch_kernel=lambda *arguments: 0), device=lambda: 0, arch=lambda number: request.param,
        stream=lambda: SimpleNamespace(ptr=0),
    )  # fmt: skip
    module = cupy_standin.make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "_module", module)
    monkeypatch.setattr(launch, "_gpu", machine)
    monkeypatch.setattr(launch, "_interpreting", False)
    monkeypatch.setattr(launch.Kernel, "_prepare", prepare)
    monkeypatch.setattr(launch.Variant, "compile", refuse)
    for kernel in launch.KERNELS.values():
        monkeypatch.setattr(kernel, "_ready", {})
    monkeypatch.setattr(backend.linear, "PROGRAMS", 264)
    monkeypatch.setattr(backend.linear, "LEAST", 4)
    return made


def missing(launches):
    assert launches
    return "\n".join(sorted({name for name, built in launches if not built}))


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("products", ["fp32", "tf32", "bf16"])
def test_every_case(launches, monkeypatch, primitive, offset, products):
    if products == "bf16" and primitive not in backends.BFLOAT16:
        pytest.skip("takes no bfloat16")
    monkeypatch.setattr(backends, "_float32_products", "fp32" if products == "bf16" else products)
    backend = OnDevice(importlib.import_module("pycap.backends.triton"), offset)
    for case in CASES[primitive]:
        try:
            compare(case, backend, bfloat16() if products == "bf16" else np.float32)
        except ComparisonError:  # nothing was computed
            continue
    assert not missing(launches)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float32 weights"])
@pytest.mark.parametrize("m", [5, 50, 100, 300])
@pytest.mark.parametrize(("i", "o"), [(64, 48), (64, 33), (33, 64)])
def test_dense_layers_with_any_array_unaligned(launches, name, m, i, o):
    """Few rows and many, weights of either type, and each array in turn off its alignment."""
    backend = importlib.import_module("pycap.backends.triton")
    kind = np.float32 if name == "float32" else bfloat16()
    weights = np.float32 if name == "float32 weights" else kind
    shapes = {
        "x": ((m, i), kind), "y": ((m, o), kind), "w": ((o, i), weights), "b": ((o,), np.float32),
        "dw": ((o, i), np.float32), "loss": ((m,), np.float32), "targets": ((m,), np.int32),
    }  # fmt: skip
    for odd in (None, *shapes):
        arrays = {}
        for which, (shape, dtype) in shapes.items():
            size, shift = int(np.prod(shape)), int(which == odd)
            arrays[which] = device.module().zeros(size + 16, dtype)[shift : shift + size].reshape(*shape)
            assert arrays[which].data.ptr % 16 == shift * np.dtype(dtype).itemsize
        x, y, w, b, dw, loss, targets = arrays.values()
        for relu in (False, True):
            backend.linear_forward(y, x, w, b, relu)
            backend.linear_backward_data(x, y, w, y if relu else None, 0.0)
            backend.linear_backward_weight(dw, b, y, x, y if relu else None, 0.0, 0.0)
        backend.linear.linear_dropout_forward(y, x, w, b, True, 0.5, 1, m, 0)
        backend.linear_xent_forward(loss, y, x, w, b, targets, None)
        backend.linear_xent_forward(loss, y, x, w, b, targets, loss)
        backend.linear_xent_backward(x, dw, b, y, x, w, 1.0, (0.0, 0.0, 0.0))
    assert not missing(launches)


def test_steps_with_everything_on_the_device(launches):
    """Recorded in a graph: no value is read back, and none comes from the host but addresses."""
    optim, xp = importlib.import_module("pycap.backends.triton.optim"), device.module()
    lists = [[xp.zeros(n, np.float32) for n in (5, 16)] for _ in range(4)]
    copies = [xp.zeros(n, bfloat16()) for n in (5, 16)]
    squares, loss = xp.zeros(1, np.float64), xp.zeros(1, np.float64)
    factor, most, rates = xp.zeros(1, np.float32), xp.zeros(1, np.float32), xp.zeros(3, np.float32)
    failed = xp.zeros(1, np.int32)
    reads = cupy_standin.ndarray.reads
    optim.sum_squares_into(squares, lists[1])
    optim.total(loss, lists[0][0], 0.0)
    optim.clip_factors(factor, squares, most, loss, failed, 1.0)
    optim.sgd_step(*lists[:3], 0.1, 0.9, 0.0, factor, 0.0, copies=copies, rates=rates)
    optim.rmsprop_step(*lists[:3], 0.1, 0.9, 1e-8, 0.0, factor, 0.0, copies=copies, rates=rates)
    optim.adam_step(*lists, 0.1, 0.9, 0.999, 1e-8, 0.0, 1, factor, 0.0, copies=copies, rates=rates)
    assert cupy_standin.ndarray.reads == reads
    assert not missing(launches)


@pytest.mark.parametrize(
    ("n", "hidden", "at_once"),
    [(64, 256, 2), (65, 256, 2), (256, 256, 0), (64, 512, 1), (64, 1024, 0), (64, 255, 0), (32, 192, 2), (8, 96, 1)],
)
def test_the_lstm_in_one_launch(launches, monkeypatch, n, hidden, at_once):
    """Where all programs fit on 132 multiprocessors at once: forward and backward, or at_once = 1 of them, or neither."""
    backend = importlib.import_module("pycap.backends.triton")
    machine = backend.launching.gpu()
    arch, grids = machine.arch(0), []

    def launch_cooperative(function, grid, *rest):
        grids.append(grid)
        return 0

    monkeypatch.setattr(
        machine, "runtime", SimpleNamespace(deviceGetAttribute=lambda which, number: 132), raising=False
    )
    monkeypatch.setattr(machine.driver, "launch_cooperative", launch_cooperative, raising=False)
    launching = backend.launching
    monkeypatch.setitem(launching.forced, "lstm.form", launching.Row({"FORM": "persistent"}))
    zeros = device.module().zeros
    x, h, c, gates = (zeros((3, n, k), np.float32) for k in (16, hidden, hidden, 4 * hidden))
    w_x, w_h, b = (zeros((4 * hidden, *k), np.float32) for k in ((16,), (hidden,), ()))
    backend.lstm_forward(h, c, gates, x, None, None, w_x, w_h, b, None)
    gradients = [zeros(a.shape, np.float32) for a in (x, w_x, w_h, b, h[0], c[0])]
    backend.lstm_backward(*gradients, gates, h, None, x, h, c, None, None, w_x, w_h, None, (0.0,) * 6)
    expected = at_once if arch == "sm_90" or hidden <= 256 else 0  # sm_86 has not the shared memory for more
    assert len(grids) == sum("lstm_persistent" in name for name, _ in launches) == expected
    assert all(units * tiles <= 132 for units, tiles, _ in grids)
    assert not missing(launches)
