"""The ladder of captioners on photographs: its record from runs' folders, and that finished runs are not repeated."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import photographs
from pycap import config as configuration
from pycap.config import TrainConfig

REFERENCES = {"a": ["a dog runs"], "b": ["two men sit"]}


def finished(folder: Path) -> Path:
    folder.mkdir()
    rows = [
        {"kind": "train", "step": 10, "loss": 9.0},
        {"kind": "val", "step": 10, "epoch": 1, "val_loss": 3.5, "CIDEr": 0.1},
        {"kind": "val", "step": 20, "epoch": 2, "val_loss": 3.25, "CIDEr": 0.1},
        {"kind": "val", "step": 30, "epoch": 3, "val_loss": 3.75, "CIDEr": 0.2},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [{"image_id": "a", "caption": "a dog runs"}, {"image_id": "b", "caption": "a dog runs"}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    (folder / "minutes.txt").write_text("12.50\n")
    configuration.save(TrainConfig(threads=3), folder / "config.yaml")
    return folder


def test_a_record_has_the_best_checkpoints_loss_the_scores_and_some_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs.metrics, "meteor_missing", lambda: "no Java")
    system = photographs.System("merge", "a model", "--vgg-weights {runs}", ("bleu_keras",))
    row = photographs.record(system, finished(tmp_path / "run"), REFERENCES)
    assert (row["val_loss"], row["minutes"], row["threads"]) == (3.25, 12.5, 3)
    configuration.save(TrainConfig(save_best_on="CIDEr"), tmp_path / "run" / "config.yaml")
    assert photographs.record(system, tmp_path / "run", REFERENCES)["val_loss"] == 3.75
    assert row["options"] == "--vgg-weights RUNS"
    assert [v["epoch"] for v in row["validations"]] == [1, 2, 3]
    assert row["scores"]["BLEU-1"] == 0.5 and row["scores"]["distinct"] == 0.5  # "b" shares no word with its reference
    assert any(name.startswith("bleu_keras") for name in row["scores"]) and "METEOR" not in row["scores"]
    assert row["captions"] == {"a": "a dog runs", "b": "a dog runs"}
    assert "| a model | 3.2500 | 0.5000 |" in photographs.table([row])


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command[2:]))

    def train(folder: Path) -> None:
        photographs.train(
            photographs.System(folder.name, "x", "--vgg-weights {runs}/pre"), folder.parent, Path("data"), 2
        )

    train(finished(tmp_path / "done"))
    assert asked == []
    stopped = tmp_path / "stopped"
    (stopped / "last").mkdir(parents=True)
    (stopped / "last" / "state.json").write_text("{}")
    train(stopped)
    assert asked == [["--resume", str(stopped), "--threads", "2"]]
    (tmp_path / "new").mkdir()
    train(tmp_path / "new")
    assert asked[1][:4] == ["--vgg-weights", f"{tmp_path}/pre", "--data", "data"]
    assert photographs.minutes(tmp_path / "new") is not None


def test_images_in_tars_are_unpacked_once(tmp_path: Path) -> None:
    packed, place = tmp_path / "packed", tmp_path / "place"
    packed.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    for split in ("train", "val"):
        with tarfile.open(packed / f"{split}.tar", "w") as archive:
            entry = tarfile.TarInfo(f"{split}/n01/x.JPEG")
            entry.size = picture.tell()
            archive.addfile(entry, io.BytesIO(picture.getvalue()))
    assert photographs.unpacked(packed, place) == place
    assert sorted(p.name for p in place.glob("*/n01/*.JPEG")) == ["x.JPEG", "x.JPEG"]
    (place / "train" / "n01" / "x.JPEG").unlink()
    assert photographs.unpacked(packed, place) == place and not (place / "train" / "n01" / "x.JPEG").exists()
    assert photographs.unpacked(place, tmp_path / "other") == place


@pytest.mark.parametrize("system", [photographs.PRETRAIN, *photographs.CAPTIONERS], ids=lambda s: s.name)
def test_every_system_is_a_command_that_training_takes(system: photographs.System) -> None:
    config = configuration.parse_args(system.options.format(runs="runs").split())
    assert config.given  # what the options said got through
    assert config.classifies == (system is photographs.PRETRAIN)
