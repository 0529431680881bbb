"""What the tests of faults share: the layer, compiled, and a process that forks runs under it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import shim
from tests.faults.kills import Killer
from tests.faults.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shim.compiler() is None:
        pytest.skip("there is no C compiler (cc, gcc, clang) for tests/faults/disk.c")
    with Server(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(scope="session")
def killer(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Killer:
    """Its runs left alone are made once."""
    return Killer(server, tmp_path_factory.mktemp("runs"), seed=7)
