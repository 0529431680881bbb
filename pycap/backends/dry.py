"""Kernels asked for and not run: what they would need of memory shows, for a GPU that is there or one that is not.

The backends' Python runs unchanged, on arrays of the host too, and launches nothing. Results are whatever the memory held.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pycap import backends
from pycap import device as devices

#: What is planned for where there is no GPU to ask: an H100 or H200.
ARCH, MULTIPROCESSORS = "sm_90", 132


@contextmanager
def dry_run(arch: str | None = None, multiprocessors: int = MULTIPROCESSORS) -> Iterator[None]:
    """Within this, primitives do nothing but ask for memory, and new arrays lie on the host; arrays of a GPU may be among those
    that they get.

    arch None: the backends that were selected. "sm_90" and the like: Triton's kernels as they would be called on such a GPU,
    with so many multiprocessors; CuPy and Triton need not be installed. Raises BackendError where the C++ backend was
    selected, which has no such form.
    """
    launching = importlib.import_module("pycap.backends.triton.launching")
    machine = None
    serving: Any = backends.kernels
    if arch is not None:
        machine = launching.Machine(arch, multiprocessors)
        serving = importlib.import_module("pycap.backends.triton")
    dry = {name: _dry(name, getattr(serving, name)) for name in backends.PRIMITIVES}
    dry |= {name: _dry(name, getattr(serving, name, None)) for name in backends.FUSIONS}
    held = dict(backends.kernels.__dict__)
    backends.kernels.__dict__.update(dry)
    try:
        with devices.use("cpu"), launching.dry(machine):
            yield
    finally:
        backends.kernels.__dict__.clear()
        backends.kernels.__dict__.update(held)


def applies() -> bool:
    """Whether every backend that was selected can be run dry: a GPU's, or the reference."""
    found = (getattr(backends.kernels, name) for name in backends.PRIMITIVES)
    return all(_launches(primitive) or _computes(primitive) for primitive in found)


def _launches(primitive: Any) -> bool:
    """Whether it is Triton's or CUDA's, whose launches can be suppressed."""
    return primitive.__module__.startswith(("pycap.backends.triton", "pycap.backends.cuda"))


def _computes(primitive: Any) -> bool:
    """Whether it is the reference's, which asks `memory` for nothing."""
    return primitive.__module__.startswith("pycap.backends.reference")


def _dry(name: str, primitive: Any) -> Any:
    """A primitive that does nothing but ask for memory."""
    if primitive is None or _launches(primitive):
        return primitive
    if not _computes(primitive):
        raise backends.BackendError(f"{name} of {primitive.__module__} cannot be run dry: plan for a GPU, as {ARCH}")
    return _no_sum if name == "sum_squares" else _nothing


def _nothing(*arguments: Any, **how: Any) -> None:
    return None


def _no_sum(arrays: Any) -> float:
    return 0.0
