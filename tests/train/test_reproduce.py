"""pycap reproduce: a run made again is the same bit for bit, and what is otherwise is named with the step where it begins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap.cli import main
from pycap.data.loader import Batch
from pycap.reproduce.original import read
from pycap.training import provenance
from pycap.training.provenance import NAME
from pycap.training.run import Stopped
from pycap.training.run import run as train
from pycap.training.trainer import Trainer
from pycap.training.watch import Watch
from tests.conftest import MPIRUN, ROOT
from tests.train.runs import lines, tiny
from tests.train.test_parallel import run as job
from tests.train.test_parallel import together
from tests.train.test_pretrain import tree  # noqa: F401 - a fixture


def reproduce(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[Any, str]:
    """Exit status and all that was printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["reproduce", *map(str, argv)])
    printed = capsys.readouterr()
    code = exit.value.code
    return code, printed.out + printed.err + (code if isinstance(code, str) else "")


def as_json(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[Any, dict[str, Any]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["reproduce", *map(str, argv), "--json"])
    return exit.value.code, json.loads(capsys.readouterr().out)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files: when they were written, and what they hold."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each record of a run."""
    records = lines(run / NAME)
    for record in records:
        change(record)
    (run / NAME).write_text("".join(json.dumps(record) + "\n" for record in records))


def patched(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Trainer], None]) -> None:
    """Act right after that step."""
    plain = Trainer.launch

    def launched(self: Trainer, *batch: object) -> object:
        pending = plain(self, *batch)  # type: ignore[arg-type]
        if self.step_number == step:
            act(self)
        return pending

    monkeypatch.setattr(Trainer, "launch", launched)


class Batches(Watch):
    """Keeps the files of each step's batch."""

    def __init__(self) -> None:
        self.files: dict[int, tuple[str, ...]] = {}

    def launched(self, step: int, batch: Batch) -> None:
        self.files[step] = batch.file_names


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps, which tests leave as it is."""
    return pycap.train(tiny(data, tmp_path_factory.mktemp("whole") / "run")).folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_run_is_the_same_in_another_process(whole: Path) -> None:
    """And leaves nothing behind, nor touches the run."""
    before = snapshot(whole)
    command = [sys.executable, "-c", "from pycap.cli import main; main()", "reproduce", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all that bits may depend on is as it was" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last == "bit for bit the same: 6 steps, 8 rows of the log, last/ at step 6, best/ at step 6"
    assert snapshot(whole) == before
    assert [path.name for path in whole.parent.iterdir()] == ["run"]


def test_it_is_kept_where_it_was_asked_for(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = as_json(capsys, whole, "--out-dir", tmp_path / "again", "--until-step", 4)
    assert (code, told["verdict"], told["steps"]) == (0, "same", 4)
    assert told["reproduced"] == str(tmp_path / "again")
    losses = [row["loss"] for row in lines(whole / "log.jsonl") if row["kind"] == "train"]
    again = [row["loss"] for row in lines(tmp_path / "again" / "log.jsonl") if row["kind"] == "train"]
    assert again == losses[:4]
    for folder in (whole, whole / "inside", whole.parent):
        code, text = reproduce(capsys, whole, "--out-dir", folder)
        assert code != 0 and "the run stays as it is; give another one" in text


def test_another_seed_differs_from_the_first_step_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda record: record.update(seed=5, config={**record["config"], "seed": 5}))
    code, text = reproduce(capsys, run)
    assert code == 1
    assert f"{run / 'config.yaml'} says seed: 123, and the run was made with 5, which counts" in text
    assert "differs from step 1 on, more than rounding explains; what is otherwise: initial weights" in text
    assert (run.with_name("run-reproduced") / "log.jsonl").is_file()  # to be looked at


def test_a_record_that_contradicts_itself_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda record: record.update(seed=5))
    code, text = reproduce(capsys, run)
    assert "seed 5 is not that of its config, 123: the record was edited" in text and code != 0


def test_another_learning_rate_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda record: record["config"].update(learning_rate=0.00100001))
    code, told = as_json(capsys, run)
    assert code == 1 and told["verdict"] == "differs"
    first = told["beyond_rounding"]
    assert {"quantity": "lr", "then": 0.001, "now": 0.00100001}.items() <= first["found"][0].items()
    assert first["found"][0]["step"] == 1 and told["rows"] == 1


def test_a_caption_that_was_changed_is_found_by_the_step_of_its_image(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, batches = Path(shutil.copytree(data, tmp_path / "data")), Batches()
    folder = train(tiny(own, tmp_path / "run", epochs=1, flip=False), batches).folder
    names = batches.files[2]
    annotations = own / "annotations" / "captions_train2017.json"
    held = json.loads(annotations.read_text())
    image = next(image["id"] for image in held["images"] if image["file_name"] == names[0])
    for annotation in held["annotations"]:
        if annotation["image_id"] == image:
            annotation["caption"] = " ".join(reversed(annotation["caption"].split()))  # the same words
    annotations.write_text(json.dumps(held))
    code, told = as_json(capsys, folder)
    assert code == 1 and told["verdict"] == "differs"
    assert {change["what"] for change in told["changes"] if change["matters"] == "yes"} == {"data"}
    assert told["first"]["found"][0]["step"] == 2 and told["first"]["after"] == 1
    assert told["first"]["files"] == {"2": list(names)}


@pytest.mark.parametrize("every", [1, 3])
def test_one_bit_of_one_weight_is_found_by_its_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    folder = pycap.train(tiny(data, tmp_path / "run", log_every=every)).folder

    def flip(trainer: Trainer) -> None:
        weight = trainer.model.state_arrays()["projection.weight"].reshape(-1)
        largest = int(np.abs(weight).argmax())
        weight[largest] = np.nextafter(weight[largest], np.float32(0))

    patched(monkeypatch, 4, flip)
    code, told = as_json(capsys, folder, "--keep-going")
    assert code == 1 and told["verdict"] == "differs" and told["beyond_rounding"] is None
    assert told["first"]["found"][0]["step"] == (5 if every == 1 else 6)
    assert told["first"]["after"] == (4 if every == 1 else 3)
    assert [tensors["what"] for tensors in told["tensors"]] == ["last/model", "last/optimizer", "best/model"]
    assert {"last/model", "last/optimizer", "best/model"} <= {text.split(":")[0] for text in told["ending"]}


def test_one_bit_that_no_row_shows_is_found_in_the_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flip(trainer: Trainer) -> None:
        weight = trainer.model.state_arrays()["cnn.fc6.weight"]
        weight[1, 2] = np.nextafter(weight[1, 2], np.float32(1))

    patched(monkeypatch, 6, flip)
    code, told = as_json(capsys, whole, "--out-dir", tmp_path / "again")
    assert code == 1 and told["verdict"] == "differs"
    (last, best) = told["tensors"]
    assert last["step"] == 6 and last["what"] == "last/model" and best["what"] == "best/model"
    (array,) = last["found"]
    assert array["name"] == "cnn.fc6.weight" and array["values"] == 1 and 0 < array["largest"] < 1e-6


def test_other_threads_round_otherwise(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = as_json(capsys, whole, "--threads", 2, "--out-dir", tmp_path / "again")
    assert [(c["what"], c["then"], c["now"], c["matters"]) for c in told["changes"]] == [("threads", 1, 2, "rounding")]
    assert told["verdict"] in ("same", "rounding") and told["steps"] == 6
    assert told["largest_relative_difference"] < 1e-3
    assert code == (0 if told["verdict"] == "same" else 1)
    if told["verdict"] == "rounding":
        assert "as other threads explain" in told["told"]


def test_a_run_that_was_stopped_is_made_again_to_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patched(patch, 4, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        pycap.train(tiny(data, tmp_path / "run"))
    run = tmp_path / "run"
    code, told = as_json(capsys, run)
    assert (code, told["verdict"], told["steps"]) == (0, "same", 4)
    assert told["checkpoints"]["last"] == 4
    log = run / "log.jsonl"
    log.write_text(log.read_text().rstrip("\n")[:-7])  # killed as it wrote
    code, told = as_json(capsys, run)
    assert (code, told["verdict"], told["rows"]) == (0, "same", 4)


def test_a_run_that_went_on_with_other_options_is_made_again_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pycap.train(tiny(data, tmp_path / "run", max_steps=2)).folder
    pycap.train(tiny(data, run, max_steps=5, learning_rate=0.01, resume=run))
    pycap.train(tiny(data, run, epochs=2, learning_rate=0.01, resume=run))
    code, told = as_json(capsys, run)
    assert (code, told["verdict"], told["steps"]) == (0, "same", 6), told
    edit(run, lambda record: record["config"].update(learning_rate=0.01))
    code, told = as_json(capsys, run, "--out-dir", tmp_path / "again")
    assert code == 1 and told["first"]["found"][0]["step"] == 1


def test_a_start_that_another_one_replaced_has_left_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run that was killed before its first checkpoint, and resumed again."""
    run = pycap.train(tiny(data, tmp_path / "run", max_steps=2)).folder
    pycap.train(tiny(data, run, max_steps=4, resume=run))
    first, second = lines(run / NAME)
    killed = {**second, "config": {**second["config"], "learning_rate": 0.5}}
    (run / NAME).write_text("".join(json.dumps(record) + "\n" for record in (first, killed, second)))
    code, told = as_json(capsys, run)
    assert (code, told["verdict"], told["steps"]) == (0, "same", 4), told


def test_a_log_that_goes_on_where_the_run_made_again_ends_differs(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "val", "step": 6, "epoch": 3, "val_loss": 4.0}\n')
    code, told = as_json(capsys, run)
    assert code == 1 and told["verdict"] == "differs"
    assert next((each["quantity"], each["then"], each["now"]) for each in told["first"]["found"]) == (
        "kind",
        "val",
        None,
    )


def test_places_are_those_of_the_folder_in_which_it_was_started(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    pycap.train(tiny(Path("set"), Path("run"), epochs=1))
    monkeypatch.chdir("/")
    assert reproduce(capsys, tmp_path / "run")[0] == 0
    assert Path.cwd() == Path("/")


def test_a_demo_set_that_is_gone_is_drawn_again_and_no_recipe_changes_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(None, tmp_path / "run", epochs=1, demo_train=16, demo_val=4, drop_prob_lm=0.5)  # type: ignore[arg-type]
    config.given = frozenset(vars(config))  # also what is the default: the recipe has no dropout
    pycap.train(config)
    shutil.rmtree(tmp_path / "data")
    code, told = as_json(capsys, tmp_path / "run")
    assert (code, told["verdict"]) == (0, "same"), told


def test_threads_are_as_many_as_then(run: Path) -> None:
    def all_of_three(record: dict[str, Any]) -> None:
        record["config"]["threads"], record["kernels"]["threads"] = 0, 3

    edit(run, all_of_three)
    assert read(run).segments[0].config.threads == 3


def test_a_signal_stops_it_and_leaves_the_run(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(whole)
    patched(monkeypatch, 2, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
    code, text = reproduce(capsys, whole)
    assert code == 130
    assert "stopped by signal 2; so far bit for bit the same: 2 steps, 2 rows of the log" in text
    assert snapshot(whole) == before and not whole.with_name("run-reproduced").exists()


def test_weights_that_are_gone_or_others_are_named(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(trained, tmp_path / "base"))
    run = pycap.train(tiny(data, tmp_path / "run", init_from=base, epochs=1)).folder
    assert reproduce(capsys, run)[0] == 0
    other = pycap.train(tiny(data, tmp_path / "other", seed=9, max_steps=1)).folder
    shutil.rmtree(base / "best")
    code, text = reproduce(capsys, run)
    assert f"init_from: {base / 'best'}, from which {run} began, is gone; put it back" in text and code != 0
    shutil.copytree(other / "best", base / "best")
    code, text = reproduce(capsys, run)
    assert f"init_from: {base / 'best'} is not what {run} began from (SHA-256 " in text and code != 0
    assert not run.with_name("run-reproduced").exists()


def test_data_that_is_gone_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(shutil.copytree(data, tmp_path / "data"))
    run = pycap.train(tiny(own, tmp_path / "run", max_steps=1)).folder
    own.rename(tmp_path / "elsewhere")
    _, text = reproduce(capsys, run)
    assert f"data: {own}, on which {run} was trained, is gone; put it back, or give where it is with --data" in text
    assert reproduce(capsys, run, "--data", tmp_path / "elsewhere")[0] == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is no JSON"),
        (
            '{"format": "pycap-provenance", "version": 2, "pycap": {"version": "9.1"}}',
            "use the pycap that wrote it (9.1)",
        ),
    ],
)
def test_a_record_that_cannot_be_read_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    with open(run / NAME, "a") as file:
        file.write(line + "\n")
    code, text = reproduce(capsys, run)
    assert code != 0 and f"{run / NAME}: line 2" in text and says in text


def test_options_of_another_pycap_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda record: record["config"].update(warp_drive=3))
    assert "the run has an option warp_drive that this pycap does not know" in reproduce(capsys, run)[1]


def test_ranks_are_as_many_as_then(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda record: record["ranks"].update(size=2))
    text = reproduce(capsys, run)[1]
    assert (
        f"was made by 2 ranks, and this is 1, whose sums would be others: start mpirun -n 2 pycap reproduce {run}"
        in text
    )


def test_a_run_without_a_record_is_made_again_by_its_options(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / NAME).unlink()
    code, text = reproduce(capsys, run)
    assert code == 0 and f"the run holds no {NAME}" in text and "bit for bit the same: 6 steps" in text


@pytest.mark.parametrize("name", ["", "best"])
def test_what_is_no_run_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = trained / name if name else tmp_path / "none"
    assert "give a run's folder (runs/NAME)" in reproduce(capsys, folder)[1]


def test_captions_that_differ_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = run / "captions.jsonl"
    captions.write_text(captions.read_text().replace('"caption": "', '"caption": "no ', 1))
    code, told = as_json(capsys, run)
    assert code == 1 and told["ending"] == ["captions.jsonl: 1 of 10 lines differ, first line 1"]
    assert told["told"] == "differs at its end"


@pytest.mark.parametrize(
    "options",
    [
        {"model": "merge", "freeze_cnn": True, "features": "auto"},
        {
            "stage": "scst",
            "datasets": "coco",
            "init_from": "trained",
            "drop_prob_lm": 0.0,
            "drop_prob_cnn": 0.0,
            "learning_rate": 1e-4,
        },
        {"pretrain_words": 1, "epochs": 1, "micro_batch": 3, "optimizer": "rmsprop", "precision": "bf16"},
    ],
)
def test_runs_of_other_kinds(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    if "init_from" in options:
        options = {**options, "init_from": trained}
    run = pycap.train(tiny(data, tmp_path / "run", **{"epochs": 1, **options})).folder
    assert provenance.read(run)[0]["step"] == 0
    code, told = as_json(capsys, run)
    assert (code, told["verdict"]) == (0, "same"), told


def test_what_a_classifier_takes_images_for_is_compared(
    tree: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = pycap.train(tiny(tree, tmp_path / "run", stage="pretrain", epochs=1)).folder
    code, told = as_json(capsys, run)
    assert (code, told["verdict"], told["ending"]) == (0, "same", []), told
    predictions = run / "predictions.jsonl"
    predictions.write_text(predictions.read_text().replace('"class": "', '"class": "another ', 1))
    code, told = as_json(capsys, run)
    assert (code, told["ending"]) == (1, ["predictions.jsonl: 1 of 9 lines differ, first line 1"])


@pytest.mark.mpi
def test_a_run_of_two_ranks_is_made_again_by_two(data: Path, tmp_path: Path) -> None:
    """Gradients summed over two processes are the same bits again, and another seed is found by both."""
    run = tmp_path / "run"
    together(2, tmp_path, job(tiny(data, run)))
    command = [MPIRUN, "-n", "2", sys.executable, "-m", "pycap", "reproduce", run]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for change, status, told in (
        (lambda record: None, 0, "bit for bit the same: 6 steps"),
        (lambda record: record.update(seed=5, config={**record["config"], "seed": 5}), 1, "differs from step 1 on"),
    ):
        edit(run, change)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == status and done.stdout.count(told) == 1, done.stdout + done.stderr
        assert (tmp_path / "run-reproduced").exists() == bool(status)
