"""For all comparisons with PyTorch: the backend that they run on, each in turn."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

if importlib.util.find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)  # the tensors are small: handing them to a second thread costs more than it saves


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test that asks for it runs on each backend that is there."""
    from pycap import backends

    reason = backends.available(request.param)
    if reason:
        pytest.skip(f"backend {request.param}: {reason}; run make dev")
    with backends.use(request.param):
        yield request.param
