"""The stand-in for CuPy: it mixes with NumPy as little as CuPy does, and has nothing that CuPy lacks."""

from __future__ import annotations

import importlib.util
import operator

import numpy as np
import pytest

from tests import cupy_standin, cupy_streams


@pytest.fixture(scope="module")
def xp():
    return cupy_standin.make()


MIXED = {
    "np.asarray(device)": lambda d, h: np.asarray(d),
    "host + device": lambda d, h: h + d,
    "device + host": lambda d, h: d + h,
    "host @ device": lambda d, h: h @ d,
    "host += device": lambda d, h: operator.iadd(h, d),
    "device += host": lambda d, h: operator.iadd(d, h),
    "device[...] = host": lambda d, h: operator.setitem(d, ..., h),
    "host[...] = device": lambda d, h: operator.setitem(h, ..., d),
    "device[host ids]": lambda d, h: d[np.arange(2)],
    "host[device ids]": lambda d, h: h[d],
    "np.exp(device)": lambda d, h: np.exp(d),
    "np.zeros_like(device)": lambda d, h: np.zeros_like(d),
    "xp.exp(host)": lambda d, h: cupy_standin.make().exp(h),
    "xp.concatenate of both": lambda d, h: cupy_standin.make().concatenate([d, h]),
    "an argument by name": lambda d, h: cupy_standin.make().maximum(d, 0, out=h),
}


@pytest.mark.parametrize("operation", MIXED.values(), ids=MIXED.keys())
def test_host_and_device_do_not_mix(xp, operation):
    host = np.ones((2, 2), np.float32)
    with pytest.raises((TypeError, IndexError)):
        operation(xp.asarray(host), host)
    assert (host == 1).all()


def test_arithmetic_is_numpys_and_stays_on_the_device(xp):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    device = xp.asarray(host)
    for result, expected in (
        (device * np.float32(2) + 1, host * np.float32(2) + 1),
        (np.float32(2) * device, np.float32(2) * host),
        (device @ device.T, host @ host.T),
        (device.sum(), host.sum()),
        (device[1, 2], host[1, 2]),
        (device[xp.asarray(np.array([1, 0]))], host[[1, 0]]),
        (xp.where(device > 2, device, 0), np.where(host > 2, host, 0)),
    ):
        assert isinstance(result, cupy_standin.ndarray)
        got = result.get()
        assert got.dtype == expected.dtype and got.tobytes() == np.asarray(expected).tobytes()


def test_views_are_views_and_elements_too(xp):
    array = xp.zeros((2, 3))
    array[0][...] = 1
    array[1, 2] += 5
    element = array[1, 1]
    element.fill(7)
    assert array.tolist() == [[1, 1, 1], [0, 7, 5]]
    assert array.base is None and element.base is not None


def test_the_way_onto_the_device_copies_and_empty_holds_nan(xp):
    host = np.ones(3, np.float32)
    device = xp.asarray(host)
    host.fill(2)
    assert device.tolist() == [1, 1, 1] and xp.asarray(device) is device
    device.set(host)
    assert device.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="float64"):
        device.set(np.ones(3))
    assert np.isnan(xp.empty((3,), np.float32).get()).all()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_cupy_has_every_name_of_the_standin(xp):
    """So a run on the stand-in uses nothing that CuPy lacks. `reads` and `waits` are the stand-in's own."""
    import cupy

    def lacking(real, name, ours):
        names = [n for n in vars(ours) if not n.startswith("_") and n != "waits"]
        return [f"{name}.{n}" for n in names if not hasattr(real, n)]

    ours = [n for n in vars(cupy_standin.ndarray) if not n.startswith("_") or n in cupy_standin.METHODS]
    missing = [f"ndarray.{n}" for n in (*ours, *cupy_standin.IN_PLACE) if n != "reads" and not hasattr(cupy.ndarray, n)]
    missing += lacking(cupy, "cupy", xp) + lacking(cupy.cuda, "cupy.cuda", xp.cuda)
    missing += lacking(cupy.cuda.runtime, "cupy.cuda.runtime", xp.cuda.runtime)
    missing += lacking(cupy.cuda.Device, "cupy.cuda.Device", cupy_standin.Device)
    missing += [f"MemoryPool.{n}" for n in vars(xp.get_default_memory_pool()) if not hasattr(cupy.cuda.MemoryPool, n)]
    for name in ("Stream", "Event", "Graph", "MemoryPool"):
        missing += lacking(getattr(cupy.cuda, name), name, getattr(xp.cuda, name))
    missing += lacking(cupy.cuda.PinnedMemoryPointer, "PinnedMemoryPointer", cupy_streams.PinnedMemoryPointer)
    missing += ["cupy.add.at"] if not hasattr(cupy.add, "at") else []
    assert not missing
