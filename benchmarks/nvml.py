"""What NVIDIA's management library tells of a GPU while others work on it: energy used, memory taken."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_MEMORY = ctypes.c_ulonglong * 3  # total, free, used


class Meter:
    """One GPU's counters; each gives None where the library, the GPU or the driver does not say.

    library: NVML as ctypes loads it; None: the driver's, where there is one. The GPU is the first of CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, library: Any = None) -> None:
        self._library, self._handle = library, ctypes.c_void_p()
        self.reason = ""
        try:
            self._library = library or ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            self.reason = str(error)
            return
        if self._library.nvmlInit_v2():
            self.reason = "NVML does not start"
        elif self._find(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()):
            self.reason = "NVML does not know the GPU of CUDA_VISIBLE_DEVICES"

    def _find(self, named: str) -> int:
        place = ctypes.byref(self._handle)
        if named.startswith(("GPU-", "MIG-")):
            return self._library.nvmlDeviceGetHandleByUUID(named.encode(), place)
        return self._library.nvmlDeviceGetHandleByIndex_v2(int(named) if named.isdigit() else 0, place)

    def name(self) -> str:
        """The GPU's, or "unknown GPU"."""
        text = ctypes.create_string_buffer(96)
        if self.reason or self._library.nvmlDeviceGetName(self._handle, text, ctypes.c_uint(len(text))):
            return "unknown GPU"
        return text.value.decode()

    def joules(self) -> float | None:
        """Energy that the whole GPU has used since its driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        if self.reason or self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules)):
            return None
        return millijoules.value / 1e3

    def used_mib(self) -> float | None:
        """Memory of the GPU that is taken, by whomever."""
        memory = _MEMORY()
        if self.reason or self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)):
            return None
        return memory[2] / 2**20
