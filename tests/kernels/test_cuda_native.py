"""How arrays reach the compiled CUDA kernels, what is refused, and that emulated ones touch nothing else."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pycap import backends

pytestmark = pytest.mark.emu


@pytest.fixture
def native():
    reason = backends.available("cuda")
    if reason:
        pytest.skip(f"backend cuda: {reason}")
    return importlib.import_module("pycap.backends.cuda.native")


@pytest.fixture
def compiled(native, monkeypatch):
    """Stands for the compiled module: what it was told, in order."""
    told = []
    module = SimpleNamespace(
        track=lambda spans: told.append(("track", spans)),
        untrack=lambda spans: told.append(("untrack", spans)),
        step=lambda *arguments: told.append(("step", arguments)),
        breaks=lambda *arguments: (_ for _ in ()).throw(RuntimeError("a race")),
        gpu=lambda: (7, 80, 1000),
    )
    monkeypatch.setattr(native, "module", lambda: module)
    monkeypatch.setattr(native, "_functions", {})
    return told


def test_arrays_become_addresses_and_are_what_the_kernel_may_touch(native, compiled):
    h, x, empty = np.zeros((2, 3), np.float32), np.zeros(4, np.uint8), np.zeros((0, 3), np.float32)
    native.call("step", h, None, x, 5, 2.5, True, np.float32(0.5), np.int64(3), empty)
    begun, done, ended = compiled
    assert done == ("step", (h.ctypes.data, 0, x.ctypes.data, 5, 2.5, True, 0.5, 3, empty.ctypes.data, 0))
    assert begun == ("track", [(h.ctypes.data, 24), (x.ctypes.data, 4), (empty.ctypes.data, 0)])
    assert ended == ("untrack", begun[1])
    assert all(type(a) in (int, float, bool) for a in done[1])


def test_memory_is_forgotten_after_a_fault(native, compiled):
    with pytest.raises(RuntimeError, match="a race"):
        native.call("breaks", np.zeros(3))
    assert [what for what, _ in compiled] == ["track", "untrack"]


def test_what_is_not_contiguous_is_refused(native, compiled):
    with pytest.raises(ValueError, match=r"step: argument 1, of shape \(3, 2\), must be C-contiguous"):
        native.call("step", None, np.zeros((2, 3)).T)
    assert compiled == []


def test_what_the_gpu_is(native, compiled):
    assert (native.multiprocessors(), native.capability(), native.shared_limit()) == (7, 80, 1000)


def test_on_a_gpu_addresses_are_the_gpus_and_the_stream_is_the_current_one(native, compiled, monkeypatch):
    array = SimpleNamespace(flags=SimpleNamespace(c_contiguous=True), data=SimpleNamespace(ptr=4096))
    monkeypatch.setattr(native, "interpreting", lambda: False)
    monkeypatch.setattr(
        native, "gpu", lambda: SimpleNamespace(stream=lambda: SimpleNamespace(ptr=77), device=lambda: 0)
    )
    native.call("step", array, None, 1)
    assert compiled == [("step", (4096, 0, 1, 77))]


def test_it_is_asked_for_by_name_only(native):
    assert not native.asked()
    with backends.use("cuda"):
        assert native.asked()
        with backends.use("triton"):
            assert not native.asked()
        assert native.asked()
    assert not native.asked()


@pytest.mark.parametrize(("emulated", "said"), [(True, "make emulation"), (False, "nvcc.*make dev")])
def test_a_module_that_was_not_built_is_told_with_the_remedy(native, monkeypatch, emulated, said):
    monkeypatch.setattr(native, "interpreting", lambda: emulated)
    monkeypatch.setitem(sys.modules, f"pycap._cuda{'_emu' * emulated}", None)
    with pytest.raises(ImportError, match=said):
        native.module.__wrapped__()


def test_a_driver_that_is_too_old_is_told(native, monkeypatch):
    def gpu():
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    monkeypatch.setattr(native, "module", lambda: SimpleNamespace(gpu=gpu))
    with pytest.raises(ImportError, match="pycap._cuda cannot use this GPU: CUDA driver version is insufficient"):
        native.check()
