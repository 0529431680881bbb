"""pycap's side of the whole-step comparison on the stand-in for a GPU: as on the CPU, from memory and from JPEGs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks import joint_work
from benchmarks.peers.joint_gpu_sides import PycapSide, Task
from pycap import backends, device
from pycap.config import TrainConfig
from pycap.data import demo
from tests import cupy_standin
from tests.row_by_row import row_by_row


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    row_by_row(monkeypatch)
    module = cupy_standin.make()
    free = itertools.count(1 << 30, -(1 << 20))
    module.cuda.runtime.deviceSynchronize = lambda: None
    module.cuda.runtime.memGetInfo = lambda: (next(free), 8 << 30)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with backends.use("reference"):
        yield


def task(name: str, folder: Path) -> Task:
    data = demo.generate(folder / "demo", train=10, val=1, size=48)
    options: dict[str, Any] = {
        **joint_work.COCO,
        **joint_work.TINY,
        "data": data,
        "workers": 1,
        "word_count_threshold": 1,
    }
    config = TrainConfig(**{**options, "device": name, "backend": "reference", "precision": "fp32"}).validate()
    return Task(config, joint_work.TINY_WORDS, 2, 3, (), rehearse=True)


def test_a_gpu_does_what_the_cpu_does(tmp_path: Path) -> None:
    made: dict[str, list[Any]] = {}
    for name in ("cpu", "cuda"):
        side = PycapSide(task(name, tmp_path))
        assert device.current() == name
        agreed = side.agree(3)
        side.prepare()
        losses = side.train(1, 3)
        side.synchronize()
        with closing(side.stream()) as items:
            fed = side.train_on(itertools.islice(items, 5))  # over an epoch's end, whose small batch is left out
        side.prepare_captions()
        made[name] = [agreed, losses, fed, *(side.caption(beam) for beam in (3, 1))]
        info = side.describe()
        assert info["backend"] == "reference" and info["variant"] == "1 step ahead" and info["said"] == []
        assert side.peak_mib() == 1.0 if name == "cuda" else side.peak_mib() > 10
    assert made["cuda"] == made["cpu"]
    agreed, losses, fed, beam, greedy = made["cuda"]
    assert (len(agreed), len(losses), len(fed), len(beam), len(greedy)) == (3, 3, 5, 4, 4)
    assert len(set(losses)) == 3 and all(1 < loss < 10 for loss in (*losses, *fed))
