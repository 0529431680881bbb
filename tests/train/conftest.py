"""What the tests of runs share: a tiny demo set, and one run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

import pycap
from pycap.data import demo
from tests.train.runs import tiny


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.generate(tmp_path_factory.mktemp("demo") / "set", train=24, val=10, size=64)


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pycap.train(tiny(data, tmp_path_factory.mktemp("trained") / "run", epochs=1)).folder
