"""The GPU's kernels asked for and not run: what they would need of memory shows, on a machine with a GPU or without one.

The backends' Python runs unchanged, on arrays of the host, and launches nothing. Results are whatever the memory held.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from pycap import backends
from pycap import device as devices

#: What is planned for where there is no GPU to ask: an H100 or H200.
ARCH, MULTIPROCESSORS = "sm_90", 132


@contextmanager
def dry_run(arch: str | None = None, multiprocessors: int = MULTIPROCESSORS) -> Iterator[None]:
    """Within this, the primitives are those that serve on the GPU, and do nothing but ask for memory; new arrays lie on the
    host, where `arch` is None and a GPU was selected as on any other device.

    arch: the architecture that is planned for ("sm_90"), with so many multiprocessors and Triton's kernels; None: the GPU
    and the backends that were selected, or `ARCH` where none was. CuPy and Triton need not be installed.
    """
    launching = importlib.import_module("pycap.backends.triton.launching")
    held = dict(backends.kernels.__dict__)
    machine = None
    if arch is not None or not _selected():
        machine = launching.Machine(arch or ARCH, multiprocessors)
        triton = importlib.import_module("pycap.backends.triton")
        backends.kernels.__dict__.update({name: getattr(triton, name) for name in backends.PRIMITIVES})
    try:
        with devices.use("cpu"), launching.dry(machine):
            yield
    finally:
        backends.kernels.__dict__.clear()
        backends.kernels.__dict__.update(held)


def _selected() -> bool:
    """Whether a GPU's own kernels were selected, not the reference."""
    return devices.current() == "cuda" and not backends.kernels.conv2d_forward.__module__.endswith("reference")
