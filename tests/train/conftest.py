"""What the tests of runs share: a tiny demo set, and one run on it; a stand-in for a GPU; a process that no run has changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import pycap
from pycap import backends, device
from pycap.data import demo
from pycap.training.trainer import Trainer
from tests import cupy_standin
from tests.train.runs import tiny


@pytest.fixture(autouse=True)
def _selection() -> Iterator[None]:
    """A run selects its backend and its threads for good; other tests want those that they would have had."""
    with backends.use("auto"):
        yield
    backends.set_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def gpu_standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CuPy's stand-in for runs with `device="cuda"`; what runs on the CPU makes the same steps."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr("pycap.training.run.Trainer", partial(Trainer, resident=True))
    with backends.use("reference"):
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.generate(tmp_path_factory.mktemp("demo") / "set", train=24, val=10, size=64)


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pycap.train(tiny(data, tmp_path_factory.mktemp("trained") / "run", epochs=1)).folder
