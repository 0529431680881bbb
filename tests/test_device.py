"""Devices: what is said of one that cannot be used, where arrays are made, and how they cross between host and device."""

from __future__ import annotations

import builtins
import sys
import weakref

import numpy as np
import pytest

from pycap import backends, device, memory, ops
from pycap.autograd import Tensor
from pycap.backends.weights import WeightCache
from pycap.device import DeviceError, bfloat16
from tests import cupy_standin


def install(monkeypatch: pytest.MonkeyPatch, **gpu: object) -> object:
    """The stand-in, as if CuPy and a driver were there."""
    module = cupy_standin.make(**gpu)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    return module


# Which device, and why not the other ----------------------------------------------------------------------------------


def test_without_a_driver_cupy_is_not_even_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it would raise
    monkeypatch.setattr(device.ctypes, "CDLL", _no_library)
    with pytest.raises(DeviceError, match=r"device cuda cannot be used: no NVIDIA driver \(libcuda.*--device cpu"):
        backends.select("cuda")
    assert device.current() == "cpu"


def _no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_without_cupy_it_is_named_with_its_packages(monkeypatch):
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    plain = builtins.__import__

    def without(name, *how):
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return plain(name, *how)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DeviceError, match=r"CuPy does not import \(No module named 'cupy'\): pip install cupy-cuda13x"):
        device.set_device("cuda")


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({"count": 0}, r"shows no GPU \(cudaErrorNoDevice.*CUDA_VISIBLE_DEVICES"),
        ({"driver": 12040}, r"the driver is for CUDA 12.4, CuPy for 13.2: update.*pip install cupy-cuda12x"),
        ({"driver": 0}, r"shows no GPU \(cudaErrorInsufficientDriver"),
        ({"capability": (7, 5)}, r"of compute capability 7.5, and the kernels need 8.0"),
    ],
)
def test_what_is_wrong_with_a_gpu_is_named(monkeypatch, gpu, said):
    install(monkeypatch, **gpu)
    with pytest.raises(DeviceError, match=said):
        backends.select("cuda", "reference")
    assert device.current() == "cpu"


def test_auto_takes_the_gpu_only_where_a_fast_backend_serves_on_it(monkeypatch):
    monkeypatch.delenv("PYCAP_DEVICE", raising=False)
    monkeypatch.delenv("PYCAP_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    load = backends._load
    kernels = {"triton": load("reference"), "cuda": load("reference")}
    monkeypatch.setattr(backends, "_load", lambda name: kernels.get(name) or load(name))
    monkeypatch.setattr(device, "missing_driver", lambda: "no driver here")
    assert backends.resolve("auto") == ("cpu", "no driver here")
    assert backends.resolve("cpu") == backends.resolve() == ("cpu", "")
    install(monkeypatch)
    assert backends.resolve("auto") == backends.resolve("auto", "triton") == ("cuda", "")
    assert backends.resolve("auto", "cuda") == ("cuda", "")
    assert backends.resolve("auto", "cpp") == ("cpu", "backend cpp was asked for")
    assert backends.resolve("auto", "reference") == ("cpu", "backend reference was asked for")
    monkeypatch.setenv("PYCAP_DEVICE", "cpu")
    assert backends.resolve("auto") == ("cpu", "") and backends.resolve("cuda") == ("cuda", "")
    monkeypatch.delenv("PYCAP_DEVICE")

    def broken(name):
        if name in ("cuda", "triton"):
            raise ImportError("no kernels here")
        return load(name)

    monkeypatch.setattr(backends, "_load", broken)
    assert backends.resolve("auto") == ("cpu", "no kernels here")


def test_a_selection_puts_arrays_and_kernels_on_one_device_and_use_puts_them_back(monkeypatch, capsys):
    xp = install(monkeypatch)
    with backends.use("reference"):
        with backends.use("reference", "cuda"):
            assert device.current() == "cuda" and device.module() is xp
            assert isinstance(memory.empty((2, 3)), cupy_standin.ndarray)
            assert {choice.backend for choice in backends.explain()} == {"reference"}
        assert "device cuda" in capsys.readouterr().out
        assert device.current() == "cpu" and isinstance(memory.empty((2, 3)), np.ndarray)


def test_the_device_alone_is_set_for_a_while(gpu):
    with device.use("cpu"):
        assert isinstance(memory.empty((3,)), np.ndarray)
        with pytest.raises(KeyError), device.use("cuda"):
            assert isinstance(memory.empty((3,)), cupy_standin.ndarray)
            raise KeyError
        assert device.current() == "cpu"
    assert device.current() == "cuda"


def test_a_refused_backend_leaves_the_device_as_it_was(monkeypatch):
    install(monkeypatch)
    with backends.use("reference"):
        with pytest.raises(
            backends.BackendError, match=r"'cpp' is unknown on device 'cuda'; choose from auto, cuda, triton"
        ):
            backends.select("cuda", "cpp")
        assert device.current() == "cpu"


def test_triton_on_the_cpu_is_interpreted_or_refused_and_never_chosen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backends.available("triton") == backends.available("triton", "cpu") != ""
    with pytest.raises(backends.BackendError, match=r"triton.*interpreted.*TRITON_INTERPRET=1"):
        backends.select("cpu", "triton")
    install(monkeypatch)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in backends.available("triton", "cuda")
    load = backends._load
    monkeypatch.setattr(backends, "_load", lambda name: load("reference") if name == "triton" else load(name))
    with backends.use("auto"):
        assert "triton" not in {choice.backend for choice in backends.choose("cpu")}
    with backends.use("triton"):
        assert {choice.backend for choice in backends.choose("cpu", "triton")} == {"triton"}


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """Within a test, the stand-in's arrays and the reference on them."""
    module = install(monkeypatch)
    with backends.use("reference", "cuda"):
        yield module


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int32, bfloat16()], ids=str)
def test_memory_comes_from_the_device_and_is_poisoned(gpu, dtype):
    with memory.poisoned():
        for shape in ((3, 5), (), (0, 2), (5000,)):
            array = memory.empty(shape, dtype)
            assert isinstance(array, cupy_standin.ndarray) and array.shape == shape and array.dtype == dtype
            host = array.get()
            assert (np.isnan(host) if host.dtype.kind in "fV" else host == np.iinfo(dtype).max).all()
    assert not memory.zeros((3, 5), dtype).get().any()
    assert (memory.filled_like(memory.zeros((3,), dtype), 1).get() == 1).all()


def test_the_workspace_is_the_devices_own(gpu):
    scratch = memory.workspace(1000)
    assert isinstance(scratch, cupy_standin.ndarray) and scratch.nbytes >= 1000 and scratch.data.ptr % 64 == 0
    with memory.poisoned():
        assert (memory.workspace(10).get() == 255).all()
    with backends.use("reference"):
        assert isinstance(memory.workspace(1000), np.ndarray)
    assert memory.workspace(10) is scratch


def test_trim_empties_cupys_pool_too(gpu, monkeypatch):
    freed = []
    monkeypatch.setattr(gpu.get_default_memory_pool(), "free_all_blocks", lambda: freed.append(True))
    assert memory.trim() >= 4096 and freed
    with backends.use("reference"):
        memory.trim()
    assert len(freed) == 1


def test_the_cpu_needs_no_pinned_memory():
    array = device.pinned_empty((2, 3, 5))
    assert array.shape == (2, 3, 5) and array.dtype == np.uint8 and array.flags.writeable


def test_pinned_memory_comes_from_cupy_and_lives_as_long_as_an_array_views_it(gpu, monkeypatch):
    class Block(np.ndarray):
        pass

    alive: list[weakref.ref] = []

    def allocate(nbytes: int) -> memoryview:
        block = np.zeros(512, np.uint8).view(Block)  # CuPy rounds up
        alive.append(weakref.ref(block))
        assert nbytes == 30
        return memoryview(block)

    monkeypatch.setattr(gpu.cuda, "alloc_pinned_memory", allocate, raising=False)
    array = device.pinned_empty((2, 3, 5))
    assert array.shape == (2, 3, 5) and array.dtype == np.uint8
    array[...] = 7
    assert alive[0]().tolist() == [7] * 30 + [0] * 482
    part = array[1:, 0]
    del array
    assert alive[0]() is not None
    del part
    assert alive[0]() is None


@pytest.mark.parametrize("values", [np.arange(6.0).reshape(2, 3), np.full((), 3.0), np.ones((2, 2), bfloat16())])
def test_arrays_cross_unchanged(gpu, values):
    there = device.to_device(values)
    assert isinstance(there, cupy_standin.ndarray) and device.to_device(there) is there
    back = device.to_host(there)
    assert back.shape == values.shape and back.dtype == values.dtype and back.tobytes() == values.tobytes()
    assert device.to_host(values) is values
    with backends.use("reference"):
        assert device.to_device(values) is values
        assert device.to_device(there).tobytes() == values.tobytes()


def test_what_crosses_is_made_contiguous(gpu):
    whole = np.arange(12, dtype=np.int32).reshape(3, 4)
    for values in (whole[:, ::2], whole.T):
        there = device.to_device(values)
        assert there.flags.c_contiguous and there.tolist() == values.tolist()


def test_assign_writes_in_place_from_either_side(gpu):
    host, there = np.zeros((2, 2), np.float32), memory.zeros((2, 2))
    device.assign(there, np.arange(4.0).reshape(2, 2).T)
    device.assign(host, there)
    assert host.tolist() == there.tolist() == [[0, 2], [1, 3]]
    device.assign(there, memory.zeros((2, 2)))
    assert there.tolist() == [[0, 0], [0, 0]]


def test_prepared_weights_are_known_by_their_address(gpu):
    cache, array, made = WeightCache(), memory.zeros((2, 2)), []
    for weight in (array, array, memory.zeros((2, 2))):
        cache.get(weight, "form", lambda: made.append(True) or memory.zeros((3,)))
    assert len(made) == 2


def test_tensors_are_made_on_the_device(gpu):
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    ops.sum(ops.mul(x, x)).backward()
    assert isinstance(x.data, cupy_standin.ndarray) and isinstance(x.grad, cupy_standin.ndarray)
    assert x.grad.tolist() == [[2, 4], [6, 8]]


def test_indices_are_checked_on_the_host_without_a_wait_for_the_device(gpu):
    table = Tensor(memory.zeros((5, 3)), True)
    ids = np.array([[1, 4, 1]], np.int32)
    before = cupy_standin.ndarray.reads
    y = ops.embedding(table, ids)
    y.backward(memory.filled_like(y.data, 1))
    assert cupy_standin.ndarray.reads == before
    assert table.grad.get()[:, 0].tolist() == [0, 2, 0, 0, 1] and table.rows.tolist() == [1, 4]
    with pytest.raises(IndexError, match="id 5 is outside"):
        ops.embedding(table, ids + 1)
    ids[...] = 3
    table.fresh = False
    y = ops.embedding(table, ids)  # the rows of the step before are cleared
    y.backward(memory.filled_like(y.data, 1))
    assert table.grad.get()[:, 0].tolist() == [0, 0, 0, 3, 0]


def test_synchronize_waits_for_the_current_stream(gpu, monkeypatch):
    waits = []
    stream = type("Stream", (), {"synchronize": lambda self: waits.append(True)})()
    monkeypatch.setattr(gpu.cuda, "get_current_stream", lambda: stream)
    device.synchronize()
    with backends.use("reference"):
        device.synchronize()
    assert len(waits) == 1


# CPUs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "cpus"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("6400000 100000", 8),
        (None, 8),
    ],
)
def test_a_containers_share_of_time_limits_the_threads(monkeypatch, tmp_path, told, cpus):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(device, "_CPU_MAX", str(tmp_path / "cpu.max"))
    if told:
        (tmp_path / "cpu.max").write_text(f"{told}\n")
    assert device.cpu_count() == cpus
