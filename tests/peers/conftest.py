"""The backend that a comparison with PyTorch runs on: each in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test that asks for it runs on each backend that is there."""
    from pycap import backends

    reason = backends.available(request.param)
    if reason:
        pytest.skip(f"backend {request.param}: {reason}; run make dev")
    with backends.use(request.param):
        yield request.param
