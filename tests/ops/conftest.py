"""The fixture `backend`: the name of each CPU backend in turn, skipped with its reason where it cannot serve."""

from __future__ import annotations

import pytest

from pycap import backends


@pytest.fixture(params=("reference", "cpp"))
def backend(request):
    reason = backends.available(request.param)
    if reason:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param
