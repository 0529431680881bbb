"""What the management library says of energy and memory, and what it means that it does not."""

from __future__ import annotations

import ctypes

import pytest

from benchmarks.nvml import Meter


class Library:
    """NVML with two GPUs; status: what its queries return."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.asked = status, ""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        self.asked = f"index {index}"
        return 0 if index < 2 else 6

    def nvmlDeviceGetHandleByUUID(self, name, handle) -> int:
        self.asked = name.decode()
        return 0

    def nvmlDeviceGetName(self, handle, text, length) -> int:
        text.value = b"Test GPU"
        return self.status

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, place) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_ulonglong))[0] = 12_345
        return self.status

    def nvmlDeviceGetMemoryInfo(self, handle, place) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_ulonglong))[2] = 3 << 20
        return self.status


def test_joules_and_mib(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meter = Meter(Library())
    assert (meter.joules(), meter.used_mib(), meter.name()) == (12.345, 3.0, "Test GPU")


def test_what_the_driver_refuses_is_none() -> None:
    meter = Meter(Library(status=3))
    assert (meter.joules(), meter.used_mib(), meter.name()) == (None, None, "unknown GPU")


@pytest.mark.parametrize(
    ("visible", "asked"), [("1,0", "index 1"), ("GPU-abc", "GPU-abc"), ("", "index 0"), ("MIG-7", "MIG-7")]
)
def test_the_gpu_is_the_first_visible_one(monkeypatch, visible: str, asked: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    library = Library()
    assert not Meter(library).reason and library.asked == asked


def test_a_gpu_that_is_not_there_and_a_missing_library_are_reasons(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert Meter(Library()).joules() is None

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    meter = Meter()
    assert "libnvidia-ml.so.1" in meter.reason and meter.used_mib() is None
