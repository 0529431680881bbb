"""Lets `compare` check a GPU backend: each call's NumPy arrays go to the device, and come back when it is done."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from pycap import memory

Array = Any


class OnDevice:
    """A backend for CuPy arrays as one for NumPy arrays, while the device is "cuda".

    module: the backend. offset: elements by which every array is shifted from the alignment that the device's allocator
    gives, so that kernels for unaligned arrays get their turn.
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
                back = device.get()
                if back.tobytes() != host.tobytes():  # what was only read is left alone: it may not be writable
                    host[...] = back
            return returned

        return call

    def _send(self, argument: Any, pairs: list[tuple[np.ndarray, Array]]) -> Any:
        if isinstance(argument, list):
            return [self._send(a, pairs) for a in argument]
        if not isinstance(argument, np.ndarray):
            return argument
        buffer = memory.empty((argument.size + self._offset,), argument.dtype)
        device = buffer[self._offset :].reshape(argument.shape)
        device.set(np.ascontiguousarray(argument))
        pairs.append((argument, device))
        return device
