"""Kernels asked for and not run: nothing is launched or imported, and what is asked of memory is what a run asks."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from pycap import arena, backends, device, memory, ops
from pycap.arena import Arena
from pycap.autograd import Tensor
from pycap.backends import cpp, triton
from pycap.backends.cuda import native
from pycap.backends.dry import ARCH, applies, dry_run
from pycap.backends.triton import launching
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.nn.layers import place_dropout
from tests import cupy_standin


def test_the_gpus_kernels_serve_and_leave_their_outputs_as_they_are():
    with backends.use("cpp"):
        with dry_run(ARCH):
            assert backends.kernels.linear_forward is triton.linear_forward
            assert backends.kernels.conv2d_first_forward is triton.conv2d_first_forward
            y, x, w = np.full((3, 5), 7.0, np.float32), np.ones((3, 4), np.float32), np.ones((5, 4), np.float32)
            backends.kernels.linear_forward(y, x, w, None, False)
            assert (y == 7).all()
            with pytest.raises(ValueError, match="w has shape"):  # what is around the launches runs
                backends.kernels.linear_forward(y, x, w[:, 1:], None, False)
        assert backends.kernels.linear_forward is cpp.linear_forward
        with pytest.raises(KeyError), dry_run(ARCH):
            raise KeyError
        assert backends.kernels.linear_forward is cpp.linear_forward and not launching.suppressed()


def test_kernels_that_nobody_selected_are_still_not_selected_afterwards(monkeypatch):
    monkeypatch.setattr(backends, "kernels", type(backends.kernels)())
    with dry_run(ARCH):
        assert backends.kernels.linear_forward is triton.linear_forward
    assert not backends.kernels.__dict__


def test_another_gpu_is_planned_for():
    here = launching.arch(), launching.interpreting()
    with dry_run("sm_80", 108):
        assert (launching.arch(), launching.interpreting(), launching.multiprocessors()) == ("sm_80", False, 108)
        assert (native.multiprocessors(), native.capability(), native.shared_limit()) == (108, 80, 163 << 10)
        assert not native.emulated() and native.call("no_such_kernel", np.ones(3)) is None
        assert launching.odd(np.zeros(64, np.uint8)[1:]) == 1  # addresses are looked at
    with dry_run(ARCH):
        assert (launching.arch(), launching.multiprocessors(), native.capability()) == ("sm_90", 132, 90)
    assert (launching.arch(), launching.interpreting()) == here


def test_the_selected_backends_are_asked_where_no_gpu_is_named(monkeypatch):
    with backends.use("cpp"):
        assert not applies()
        with pytest.raises(backends.BackendError, match="cannot be run dry"), dry_run():
            pass
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with backends.use("reference", "cuda"):
        monkeypatch.setitem(backends.kernels.__dict__, "linear_forward", triton.linear_forward)
        assert applies()
        here = device.module().full((2, 3), 7.0, np.float32)
        with dry_run():
            assert launching.assumed() is None and launching.suppressed() and device.current() == "cpu"
            assert isinstance(memory.empty((3,)), np.ndarray)
            assert backends.kernels.linear_forward is triton.linear_forward
            backends.kernels.conv2d_first_forward(here, None)  # of the reference, to which nothing is passed on
            backends.kernels.cast(here, np.zeros((2, 3), np.float32), 0.0)  # arrays of both sides: nothing is done
            backends.kernels.linear_forward(here, here, memory.empty((3, 3)), None, False)
            assert backends.kernels.sum_squares([here]) == 0
        assert device.current() == "cuda" and (here.get() == 7).all()


def step(layout: arena.Layout | None = None) -> list[bytes]:
    """A convolution with its pool, a dense layer and the vocabulary's loss, forward and backward: the gradients. layout:
    where its arrays go, else they come from the pool, or whatever the caller takes from."""
    rng, parameters = np.random.default_rng(0), []

    def parameter(*shape: int) -> Tensor:
        made = Tensor(rng.standard_normal(shape).astype(np.float32), True)
        arena.prepare_gradients([made])
        parameters.append(made)
        return made

    with Arena.of([layout]).serving(layout) if layout else nullcontext():
        x = Tensor(memory.filled_like(np.empty((2, 6, 6, 3), np.float32), 1))
        y = ops.conv2d(x, parameter(4, 3, 3, 3), parameter(4), relu=True)
        y = ops.conv2d(y, parameter(8, 3, 3, 4), parameter(8), relu=True, pool=True)
        h = ops.linear(ops.reshape(y, (2, -1)), parameter(8, 72), parameter(8), relu=True)
        del x, y
        targets = np.array([1, 2], np.int32)
        ops.linear_cross_entropy(h, parameter(9, 8), parameter(9), targets).backward()
    return [parameter.grad.tobytes() for parameter in parameters]


@pytest.mark.triton
def test_what_is_asked_of_memory_is_what_a_run_asks_and_can_be_planned_by():
    with backends.use("triton"):
        with arena.trace() as run:
            step()
        with arena.trace() as dry, launching.dry():
            step()
        assert [(r.shape, r.dtype) for r in run.requests] == [(r.shape, r.dtype) for r in dry.requests]
        assert run.workspace_nbytes == dry.workspace_nbytes > 0 and len(run.requests) > 10
        assert dry.peak < run.peak  # the interpreter leaves cycles behind, which hold arrays
        with memory.poisoned():
            assert step(arena.plan(dry)) == step()


def joint_model() -> NIC:
    rng = np.random.default_rng(0)
    cnn = VGG("vgg_micro", 16, rng, width=0.25, fc_size=16, drop=0.25)
    model = NIC(cnn, 11, rng, rnn_size=16, input_encoding_size=16, drop_prob_lm=0.25)
    arena.prepare_gradients(model.named_parameters().values())
    return model


def joint_step(model: NIC, number: int) -> tuple[float, list[bytes]]:
    """Forward and backward from bytes of images, the CNN in bfloat16; the loss and the gradients."""
    rng = np.random.default_rng(number)
    images, crops = rng.integers(0, 256, (2, 18, 18, 3)).astype(np.uint8), np.array([[0, 1, 0], [2, 2, 1]], np.int32)
    tokens = rng.integers(1, 11, (4, 4)).astype(np.int32)
    place_dropout(model, number, 0, 2, 2)
    loss = model.loss(ops.pixels(images, crops, 16, (120,) * 3, (50,) * 3, device.bfloat16()), tokens)
    value = loss.item()
    loss.backward()
    parameters = model.named_parameters().values()
    for parameter in parameters:
        parameter.fresh = False
    return value, [parameter.grad.tobytes() for parameter in parameters]


@pytest.mark.triton
@pytest.mark.parametrize("backend", ["triton", pytest.param("cuda", marks=pytest.mark.emu)])
def test_a_joint_step_runs_in_the_memory_that_a_dry_run_planned(backend):
    with backends.use(backend):
        with dry_run(), arena.trace() as seen:
            joint_step(joint_model(), 0)
        layout = arena.plan(seen)
        layout.check()
        room = Arena.of([layout])
        planned, pooled = joint_model(), joint_model()
        for number in (1, 2):
            with memory.poisoned():
                from_pool = joint_step(pooled, number)
                with room.serving(layout):
                    assert joint_step(planned, number) == from_pool


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_large_model_is_traced_where_nothing_is_installed_and_takes_next_to_no_memory():
    program = """
import re, sys
for name in ("cupy", "triton", "scipy_openblas32"):
    sys.modules[name] = None
import numpy as np
from pycap import arena
from pycap.backends.dry import dry_run
from pycap.models.vgg import VGG
from pycap import memory
from pycap.autograd import Tensor
with dry_run("sm_90"):
    model = VGG("vgg16", 224, None)
    arena.prepare_gradients(model.named_parameters().values())
    with arena.trace() as seen:
        model(Tensor(memory.empty((512, 224, 224, 3)))).backward(memory.empty((512, 4096)))
layout = arena.plan(seen)
layout.check()
assert layout.bound > 15 << 30 and layout.workspace > 100 << 20, layout
assert layout.nbytes <= 1.2 * layout.bound
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # getrusage's would begin with the parent's
"""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 400 << 10  # KiB
