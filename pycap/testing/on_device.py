"""Lets `compare` check a GPU's backend: each call's NumPy arrays go to the device, and come back when it is done."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from pycap import memory
from pycap.device import address, assign, to_host

Array = Any
_ALIGN = 256


class OnDevice:
    """A backend for arrays of the current device as one for NumPy arrays. Emulated kernels take NumPy arrays themselves; they
    then get copies, aligned as a GPU's allocator aligns.

    module: the backend. offset: elements by which every array is shifted from a multiple of 256 bytes, so that kernels for
    unaligned arrays get their turn.
    """

    def __init__(self, module: ModuleType, offset: int = 0) -> None:
        self._module, self._offset = module, offset

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            pairs: list[tuple[np.ndarray, Array]] = []
            sent = {keyword: self._send(argument, pairs) for keyword, argument in named.items()}
            returned = function(*(self._send(argument, pairs) for argument in arguments), **sent)
            for host, device in pairs:
                back = to_host(device)
                if back.tobytes() != host.tobytes():  # what was only read is left alone: it may not be writable
                    host[...] = back
            return returned

        return call

    def _send(self, argument: Any, pairs: list[tuple[np.ndarray, Array]]) -> Any:
        if isinstance(argument, list):
            return [self._send(a, pairs) for a in argument]
        if not isinstance(argument, np.ndarray):
            return argument
        raw = memory.empty((argument.nbytes + self._offset * argument.itemsize + _ALIGN,), np.uint8)
        start = -address(raw) % _ALIGN + self._offset * argument.itemsize
        device = raw[start : start + argument.nbytes].view(argument.dtype).reshape(argument.shape)
        assign(device, np.ascontiguousarray(argument))
        pairs.append((argument, device))
        return device
