"""Runs of several processes are those of one: losses, scores and files, over every kind of training; and they end as one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import pycap
from pycap import checkpoint
from pycap.config import TrainConfig
from pycap.data import demo
from tests.conftest import MPIRUN, ROOT
from tests.train.runs import lines, rows, tiny
from tests.train.test_pretrain import tree  # noqa: F401 - a fixture

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 images, so that the last of four batches of 8 has one; two of them, and one held out, cannot be read. One of the two
    is that of the first epoch's last batch, where there is no step then."""
    folder = demo.generate(tmp_path_factory.mktemp("hurt") / "set", train=25, val=11, size=64)
    train, val = (sorted((folder / name).iterdir()) for name in ("train2017", "val2017"))
    for victim in (train[4], train[5], val[2]):
        victim.write_bytes(victim.read_bytes()[:200])
    return folder


def run(config: TrainConfig, last: dict[str, Any] | None = None, fault: str = "", ends: bool = False) -> dict[str, Any]:
    """A run of a job (`parallel_job`). last: other options of the last rank; fault: that befalls it; ends: with an error."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    return {"options": options, "last": last or {}, "fault": fault, "ends": ends}


def job(size: int, folder: Path, *runs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The runs, one after another, by `size` processes, which stand in the folder."""
    (folder / "job.json").write_text(json.dumps(runs))
    command = [MPIRUN, "-n", str(size), sys.executable, "-m", "tests.train.parallel_job", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def together(size: int, folder: Path, *runs: dict[str, Any]) -> None:
    done = job(size, folder, *runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout, "what is told is told by rank 0, into its own file"


def assert_same(one: Path, several: Path) -> None:
    """The log of a run of several processes is that of one but for rounding, and so are its folder and the screen."""
    for row, expected in zip(lines(several / "log.jsonl"), lines(one / "log.jsonl"), strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if name == "norms":
                assert row[name] == pytest.approx(value, rel=1e-5)
            elif isinstance(value, float) and name not in ("images_per_s", "waited"):
                assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-9), (name, row["step"])
            elif not isinstance(value, float):
                assert row[name] == value, (name, row["step"])
    files = {path.relative_to(one).as_posix() for path in one.rglob("*")}
    assert {path.relative_to(several).as_posix() for path in several.rglob("*")} == files
    for name in ("skipped.jsonl", "vocab.json"):
        if name in files:
            assert (several / name).read_bytes() == (one / name).read_bytes()
    for name, key in (("captions.jsonl", "caption"), ("predictions.jsonl", "class")):
        if name in files:
            assert [row[key] for row in lines(several / name)] == [row[key] for row in lines(one / name)]
    shown, expected_shown = (re.findall('alt="(.*?)"', (each / "samples.html").read_text()) for each in (several, one))
    assert shown == expected_shown
    said = screen(several, 0).replace(several.name, one.name)
    told, expected_told = ([x for x in text.splitlines() if "% of the time" not in x] for text in (said, screen(one)))
    assert told == expected_told


def screen(folder: Path, rank: int | None = None) -> str:
    return folder.with_name(folder.name + (".screen" if rank is None else f".screen.{rank}")).read_text()


def error(folder: Path, rank: int) -> str:
    return folder.with_name(f"{folder.name}.error.{rank}").read_text()


# Adam and RMSprop divide a gradient by its own size. Where it is zero but for rounding, their steps are as large as ever, and
# rounding decides their sign. The larger epsilon keeps such steps small: of six epochs of "joint", no norm then differs by more
# than 4e-7 on a CPU with AVX2 (else by 1e-4, and in bfloat16 by 1e-3 in the third step).
EPSILON = 1e-3
KINDS: dict[str, dict[str, Any]] = {
    "joint": {"epochs": 6, "save_checkpoint_every": 7, "lr_schedule": "plateau", "plateau_patience": 0},
    "passes": {"micro_batch": 3, "grad_clip": 0.5, "grad_clip_mode": "norm", "cnn_optimizer": "sgd", "epochs": 1},
    "words": {"pretrain_words": 1, "finetune_cnn_after": 1, "optimizer": "rmsprop"},
    "merge": {"model": "merge", "epochs": 1, "max_steps": 3},
    "features": {"freeze_cnn": True, "features": "auto", "epochs": 1},
    "bf16": {"precision": "bf16", "epochs": 1},
    "store": {"store": "images.h5", "epochs": 1},
    "scst": {"stage": "scst", "datasets": "coco", "init_from": Path("joint"), "epochs": 1, "drop_prob_lm": 0.0,
             "drop_prob_cnn": 0.0, "optimizer": "sgd", "learning_rate": 1e-2},
    "pretrain": {"stage": "pretrain", "epochs": 2, "save_best_on": "top-1"},
    "demo": {"demo_train": 9, "demo_val": 4, "max_steps": 1},
}  # fmt: skip


#: What is run by so many processes.
SIZES = {2: tuple(KINDS), 3: ("joint", "passes", "scst")}


@pytest.fixture(scope="module")
def runs(hurt: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Folders of runs: KIND, of one process, and KIND.N of N; with what was told on the screen beside each."""
    root = tmp_path_factory.mktemp("runs")

    def config(kind: str, out: str) -> TrainConfig:
        made = tiny(tree if kind == "pretrain" else hurt, Path(out), epsilon=EPSILON, **KINDS[kind])
        return replace(made, data=None) if kind == "demo" else made

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for kind in KINDS:
            with redirect_stdout(StringIO()) as said:
                pycap.train(config(kind, kind))
            Path(f"{kind}.screen").write_text(said.getvalue())
    (root / "data" / "demo").rename(root / "drawn")
    for size, kinds in SIZES.items():
        together(size, root, *(run(config(kind, f"{kind}.{size}")) for kind in kinds))
    return root


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for size, kinds in SIZES.items() for kind in kinds])
def test_several_processes_do_what_one_does(runs: Path, kind: str, size: int) -> None:
    assert_same(runs / kind, runs / f"{kind}.{size}")
    assert all(screen(runs / f"{kind}.{size}", rank) == "" for rank in range(1, size))


@pytest.fixture(scope="module")
def failed(hurt: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes that end before their time; each is named by what befalls it."""
    root = tmp_path_factory.mktemp("failed")

    def ended(name: str, last: dict[str, Any] | None = None, fault: str = "", **options: Any) -> dict[str, Any]:
        return run(tiny(hurt, root / name, **options), last, fault, ends=True)

    together(
        2,
        root,
        ended("signal", fault="signal"),
        ended("nan", fault="nan"),
        ended("bit", fault="bit"),
        ended("few", batch_size=1),
        ended("device", fault="device"),
        ended("data", {"data": str(data)}),
        ended("store", store=str(root / "none.h5")),
        ended("features", freeze_cnn=True, features=str(root / "job.json")),
    )
    return root


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("signal", "Stopped: stopped at step 2; continue with --resume .*signal"),
        (
            "nan",
            r"Diverged: step 3 \(epoch 1, batch 3\): the loss is nan; images of this batch: (\S+\.jpg,? ?){6,8}; the last "
            r"good checkpoint is \S+nan/last\n  where: rank 1 of 2: projection\.bias was not finite before the step",
        ),
        ("bit", r"DistributedError: rank 1 of 2: its weights at step 3 are not those of rank 0.*--resume .*bit"),
        ("few", "ConfigError: batch_size: 1 images per step are too few for 2 ranks; give 2 or more"),
        ("device", "ConfigError: device: rank 1 computes on cuda, and rank 0 on cpu; .*--device cpu"),
        ("data", r"DataError: rank 1 reads other data than rank 0 \(24 \+ 10 images.*, not 25 \+ 11"),
        ("store", "DataError: .*none.h5: there is no such image store, and 2 ranks can only read one"),
        ("features", "DataError: .*job.json: not an HDF5 file"),
    ],
)
def test_all_processes_end_alike(failed: Path, name: str, told: str) -> None:
    assert re.match(told, error(failed / name, 0)), error(failed / name, 0)
    assert error(failed / name, 1) == error(failed / name, 0)


def test_a_signal_to_one_process_saves_where_all_stop(failed: Path) -> None:
    assert checkpoint.load(failed / "signal", prefer="last").state["trainer"]["step"] == 2
    assert [row["step"] for row in rows(failed / "signal", "train")] == [1, 2]


@pytest.mark.parametrize("name", ["few", "data", "features"])
def test_what_is_refused_leaves_no_folder(failed: Path, name: str) -> None:
    assert not (failed / name).exists()


def test_weights_that_differ_are_not_saved(failed: Path) -> None:
    assert checkpoint.load(failed / "bit" / "last").state["trainer"]["step"] == 0  # of before the first step
    assert not (failed / "bit" / "best").exists()


def test_a_run_goes_on_with_any_number_of_processes(hurt: Path, tmp_path: Path) -> None:
    """Two, one, and three processes in turn make the steps of one that was never stopped."""
    how = {"epochs": 3, "val_images_use": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pycap.train(tiny(hurt, whole, **how))
    together(2, tmp_path, run(tiny(hurt, parts, **how), fault="signal", ends=True))
    pycap.train(tiny(hurt, parts, **how, resume=parts, max_steps=7))
    together(3, tmp_path, run(tiny(hurt, parts, **how, resume=parts)))
    steps, expected = ([(row["step"], row["loss"]) for row in rows(folder, "train")] for folder in (parts, whole))
    assert [step for step, _ in steps] == [step for step, _ in expected]
    assert [loss for _, loss in steps] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def test_a_killed_process_ends_the_run_which_one_alone_continues(hurt: Path, tmp_path: Path) -> None:
    how = {"epochs": 1, "val_images_use": 4, "save_checkpoint_every": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pycap.train(tiny(hurt, whole, **how))
    died = job(2, tmp_path, run(tiny(hurt, parts, **how), fault="kill"))
    assert died.returncode != 0
    assert re.search(rf"pycap: rank 1 of 2 \(.*\) died.* Go on with --resume {parts}\.", died.stderr), died.stderr
    pycap.train(tiny(hurt, parts, **how, resume=parts))
    steps, expected = ([(row["step"], row["loss"]) for row in rows(folder, "train")] for folder in (parts, whole))
    assert len(steps) == len(expected) == 3
    assert [loss for _, loss in steps] == pytest.approx([loss for _, loss in expected], rel=1e-5)
