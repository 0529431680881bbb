"""The loaders of a run: how many threads decode, and how far they go ahead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pycap import device
from pycap.config import TrainConfig
from pycap.training import sources
from tests import cupy_standin
from tests.cupy_memory import is_pinned
from tests.train.runs import tiny


@pytest.mark.parametrize(
    ("asked", "where", "cpus", "threads", "prefetch"),
    [
        (None, "cpu", 64, 2, 4),  # the kernels want the rest
        (None, "cuda", 64, 16, 24),
        (None, "cuda", 3, 3, 4),
        (5, "cpu", 2, 5, 7),
        (40, "cuda", 64, 40, 60),
        (0, "cuda", 64, 0, 4),
    ],
)
def test_threads_that_decode(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    where: str,
    cpus: int,
    threads: int,
    prefetch: int,
) -> None:
    monkeypatch.setattr(device, "current", lambda: where)
    monkeypatch.setattr(sources, "cpu_count", lambda: cpus)
    config = tiny(data, tmp_path, workers=asked)
    source, config = sources.find(config, print)
    made = sources.loaders(
        source, sources.vocabulary(source, config), sources.preprocess_spec(config), config, tmp_path
    )
    for loader in (made.train, made.val):
        assert (loader.workers, loader.prefetch) == (threads, prefetch)


def test_a_gpus_batches_lie_in_pinned_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    config = tiny(data, tmp_path)
    source, config = sources.find(config, print)
    for name in ("cpu", "cuda"):
        with device.use(name):
            vocab, spec = sources.vocabulary(source, config), sources.preprocess_spec(config)
            made = sources.loaders(source, vocab, spec, config, tmp_path)
            for loader in (made.train, made.val):
                assert all(is_pinned(batch.images) == (name == "cuda") for batch in loader.epoch(0))


def test_the_device_decides_unless_the_config_says_how_many() -> None:
    assert TrainConfig().workers is None
    assert sources.workers(TrainConfig()) == 2 and device.current() == "cpu"
    assert sources.workers(TrainConfig(workers=0)) == 0
