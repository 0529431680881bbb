"""Other forms of weights: prepared ones (transformed filters, packed panels), kept while the weights do not change, and
copies in bfloat16 that change with them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from pycap.device import address

Form = TypeVar("Form", np.ndarray, tuple[np.ndarray, ...])

_caches: weakref.WeakSet[WeightCache] = weakref.WeakSet()
_changes = 0


class WeightCache:
    """Prepared forms of weight arrays, made at first use: `constant_weights(cache)` puts it to use.

    A form belongs to the memory of an array: its address, shape, strides and dtype, so that a new view of the same
    numbers finds it. The cache keeps the array alive, so that no other one comes to lie there. limit: the bytes of forms
    it keeps; beyond it a form is made for the one use and let go. The default has room for every form of VGG16 with an
    LSTM of 2,048 (transformed filters take up to 4 times the convolutions' bytes, packed panels as many as the matrix).
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self._forms: dict[Hashable, tuple[np.ndarray, np.ndarray | tuple[np.ndarray, ...]]] = {}
        self._lock = threading.Lock()
        self._nbytes = 0
        _caches.add(self)

    def get(self, array: np.ndarray, form: Hashable, make: Callable[[], Form]) -> Form:
        """The form of `array` that is called `form`, from `make()` at its first use: an array, or a tuple of arrays.

        Two forms that differ in anything (layout, block sizes, number of threads they are cut for) need two names.
        """
        key = (address(array), array.shape, array.strides, array.dtype, form)
        found = self._forms.get(key)
        if found is not None:
            return found[1]  # type: ignore[return-value]  # what `make` of the same name returned
        changes = _changes
        made = make()
        size = sum(part.nbytes for part in made) if isinstance(made, tuple) else made.nbytes
        with self._lock:
            if key not in self._forms and self._nbytes + size <= self.limit and changes == _changes:
                self._forms[key] = array, made
                self._nbytes += size
        return made

    def forms(self) -> tuple[Any, ...]:
        """What is kept now, for who has taken its addresses (a captured graph) and may outlive a `clear`."""
        with self._lock:
            return tuple(self._forms.values())

    def clear(self) -> None:
        """Let every form go: the weights have changed, or the memory is needed."""
        with self._lock:
            self._forms.clear()
            self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the forms that are kept."""
        return self._nbytes


# Rounded copies -------------------------------------------------------------------------------------------------------

_rounded: ContextVar[Mapping[Hashable, Any]] = ContextVar("rounded_weights", default=MappingProxyType({}))


@contextmanager
def rounded_weights(pairs: Iterable[tuple[Any, Any]]) -> Iterator[None]:
    """Within this, products take the second of each pair of arrays for the first, where they would round it to that type.

    It is a promise that the second is the first, rounded: an optimiser's step keeps it so (`copies`). For the calling thread.
    """
    token = _rounded.set({(address(w), w.shape, copy.dtype): copy for w, copy in pairs})
    try:
        yield
    finally:
        _rounded.reset(token)


def rounded_weight(array: Any, dtype: Any) -> Any | None:
    """`array` in `dtype`, where `rounded_weights` around the caller has it, else None."""
    kept = _rounded.get()
    return kept.get((address(array), array.shape, dtype)) if kept else None


# Prepared forms -------------------------------------------------------------------------------------------------------

_active: ContextVar[WeightCache | None] = ContextVar("weight_cache", default=None)


@contextmanager
def constant_weights(cache: WeightCache) -> Iterator[None]:
    """Within this, primitives may take and leave prepared forms of their weights in `cache`.

    It is a promise: the weights do not change inside, nor between uses of the same cache without `weights_changed()`,
    which the optimisers' steps and `Module.load_arrays` call. Who writes into a weight in another way calls it himself.
    Holds for the calling thread (or task) only.
    """
    token = _active.set(cache)
    try:
        yield
    finally:
        _active.reset(token)


def weight_cache() -> WeightCache | None:
    """The cache of the innermost `constant_weights` around the caller; None where weights may change at any time."""
    return _active.get()


def weights_version() -> int:
    """A number that every `weights_changed` raises."""
    return _changes


def weights_changed() -> None:
    """Weights were written to: every cache in this process forgets all forms."""
    global _changes
    _changes += 1
    for cache in list(_caches):
        cache.clear()
