"""Runs of several processes are those of one: losses, scores and files, over every kind of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import pycap
from pycap.config import TrainConfig
from pycap.data import demo
from tests.train.runs import lines, tiny

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = Path(sys.executable).with_name("mpirun")

pytestmark = pytest.mark.skipif(
    not MPIRUN.exists(), reason='no MPI: pip install "pycap-captioning[distributed]", or mpi4py and mpich'
)


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 images, so that the last of four batches of 8 has one; two of them, and one held out, cannot be read."""
    folder = demo.generate(tmp_path_factory.mktemp("hurt") / "set", train=25, val=11, size=64)
    train, val = (sorted((folder / name).iterdir()) for name in ("train2017", "val2017"))
    for victim in (train[4], train[5], val[2]):
        victim.write_bytes(victim.read_bytes()[:200])
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def together(size: int, configs: list[TrainConfig], folder: Path) -> None:
    """The runs, by `size` processes."""
    job = folder / "job.json"
    runs = [{name: str(v) if isinstance(v, Path) else v for name, v in asdict(c).items()} for c in configs]
    job.write_text(json.dumps({"folder": str(folder), "runs": runs}))
    command = [MPIRUN, "-n", str(size), sys.executable, "-m", "tests.train.parallel_job", str(job)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_same(one: Path, several: Path, screen: str) -> None:
    """The log of a run of several processes is that of one but for rounding, and so is the folder."""
    for row, expected in zip(lines(several / "log.jsonl"), lines(one / "log.jsonl"), strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if name == "norms":
                assert row[name] == pytest.approx(value, rel=1e-4)
            elif isinstance(value, float) and name not in ("images_per_s", "waited"):
                assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-9), (name, row["step"])
            elif not isinstance(value, float):
                assert row[name] == value, (name, row["step"])
    files = {p.relative_to(one).as_posix() for p in one.rglob("*")}
    assert {p.relative_to(several).as_posix() for p in several.rglob("*")} == files
    for name in ("skipped.jsonl", "vocab.json"):
        if name in files:
            assert (several / name).read_bytes() == (one / name).read_bytes()
    for name, key in (("captions.jsonl", "caption"), ("predictions.jsonl", "class")):
        if name in files:
            assert [row[key] for row in lines(several / name)] == [row[key] for row in lines(one / name)]
    said = (several.parent / f"{several.name}.screen.0").read_text().replace(str(several), str(one))
    told, expected_told = ([x for x in text.splitlines() if "% of the time" not in x] for text in (said, screen))
    assert told == expected_told


# Adam and RMSprop divide a gradient by its own size. Where it is zero but for rounding, their first steps are as large as ever,
# and rounding decides their sign; the larger epsilon keeps such steps small.
KINDS: dict[str, dict[str, Any]] = {
    "joint": {"epochs": 6, "save_checkpoint_every": 7, "lr_schedule": "plateau", "plateau_patience": 0},
    "passes": {"micro_batch": 3, "grad_clip": 0.5, "grad_clip_mode": "norm", "cnn_optimizer": "sgd", "epochs": 1},
    "words": {"pretrain_words": 1, "finetune_cnn_after": 1, "optimizer": "rmsprop", "epsilon": 1e-3},
    "merge": {"model": "merge", "epochs": 1, "max_steps": 3, "epsilon": 1e-3},
    "features": {"freeze_cnn": True, "features": "auto", "epochs": 1},
    "bf16": {"precision": "bf16", "epochs": 1},
}


@pytest.fixture(scope="module")
def runs(hurt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: KIND, of one process, and KIND.N of N; with what was told on the screen beside each."""
    root = tmp_path_factory.mktemp("runs")
    kinds = KINDS | {"store": {"epochs": 1, "store": str(root / "images.h5")}}
    for kind, options in kinds.items():
        with redirect_stdout(StringIO()) as said:
            pycap.train(tiny(hurt, root / kind, **options))
        (root / f"{kind}.screen").write_text(said.getvalue())
    for size in (2, 3):
        together(size, [tiny(hurt, root / f"{kind}.{size}", **options) for kind, options in kinds.items()], root)
    return root


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", [*KINDS, "store"])
def test_several_processes_do_what_one_does(runs: Path, kind: str, size: int) -> None:
    assert_same(runs / kind, runs / f"{kind}.{size}", (runs / f"{kind}.screen").read_text())
