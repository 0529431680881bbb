"""The real run in one command, from the packed data set to the record, on the drawn demo set."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import joint_work, pack_flickr, real_run, score_run
from pycap.config import TrainConfig, recipe
from pycap.data import demo, load_split
from pycap.training.trainer import Diverged

TINY = {
    "stage": "coco", "cnn": "vgg_micro", "image-size": 32, "resize": 40, "fc-size": 32, "rnn-size": 16,
    "input-encoding-size": 16, "batch-size": 8, "seq-per-img": 2, "word-count-threshold": 1, "device": "cpu", "threads": 1,
    "workers": 1, "pretrain-words": 1, "finetune-cnn-after": 1, "epochs": 2, "flip": "false",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.generate(tmp_path_factory.mktemp("drawn") / "demo", train=16, val=6, size=72)


@pytest.fixture
def packed(drawn: Path, tmp_path: Path) -> Path:
    out = tmp_path / "demo.zip"
    command = ["--data", str(drawn), "--size", "40", "--max-mib", "0.2", "--out", str(out)]
    assert pack_flickr.main(command) == 0
    return out


def _command(data: Path, out: Path, **changes: object) -> list[str]:
    options = {**TINY, **changes, "data": data, "out": out}
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def test_a_packed_set_is_the_same_set_with_smaller_images(drawn: Path, packed: Path, tmp_path: Path) -> None:
    folder = real_run.unpacked(packed, tmp_path / "unpacked")
    for split in ("train", "val"):
        before, after = load_split("coco", drawn, split)[0], load_split("coco", folder, split)[0]
        assert [(e.image_id, e.file_name, e.captions) for e in before] == [
            (e.image_id, e.file_name, e.captions) for e in after
        ]
        with Image.open(after[0].path) as small, Image.open(before[0].path) as large:
            assert small.size == (40, 40)
            far = np.asarray(small, float) - np.asarray(large.resize((40, 40), Image.Resampling.BILINEAR), float)
            assert np.abs(far).mean() < 6
    assert packed.stat().st_size < 0.2 * 2**20


def test_a_lower_quality_is_taken_where_there_is_less_room(drawn: Path, tmp_path: Path, capsys) -> None:
    def pack(mib: float) -> Path | None:
        out = tmp_path / f"{mib}.zip"
        command = ["--data", str(drawn), "--size", "192", "--max-mib", str(mib), "--out", str(out)]
        return None if pack_flickr.main(command) else out

    large = pack(1.0)
    assert large is not None and "quality 90" in capsys.readouterr().out
    mib = 0.8 * large.stat().st_size / 2**20
    small = pack(mib)
    assert small is not None and small.stat().st_size <= mib * 2**20
    assert "quality 90" not in capsys.readouterr().out
    assert pack(0.01) is None and "lower --size" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([large, small])


def test_the_record_tells_of_each_phase(packed: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "results" / "run.json"
    assert real_run.main(_command(packed, out)) == 0
    record = json.loads(out.read_text())
    assert [row["phase"] for row in record["epochs"]] == ["words", "frozen", "joint"]
    assert all(record["minutes"][phase] > 0 for phase in real_run.PHASES)
    words, frozen, joint = record["epochs"]
    assert "val_loss" not in words and {"BLEU-1", "BLEU-4", "distinct"} <= frozen["scores"].keys()
    assert record["best"]["val_loss"] == min(frozen["val_loss"], joint["val_loss"])
    assert "BLEU-4" in record["best"]["scores"] and len(record["best"]["captions"]) == 6 and record["best"]["beam"] == 3
    assert all("captions" not in row for row in record["epochs"]), "only the best captions are worth their room"
    assert record["images"] == {"train": 16, "val": 6, "unusable": 0} and record["ended"] == "all epochs"
    assert record["config"]["data"] == "demo.zip" and record["config"]["rnn_size"] == 16
    assert "joint     1 epochs" in capsys.readouterr().out


def test_where_scoring_is_not_possible_captions_are_kept_and_scored_elsewhere(
    packed, tmp_path, monkeypatch, capsys
) -> None:
    out, plain = tmp_path / "run.json", tmp_path / "plain.json"
    assert real_run.main(_command(packed, plain)) == 0
    with monkeypatch.context() as without:
        for name in ("nltk", "nltk.translate.bleu_score", "yaml", "jsonargparse"):
            without.setitem(sys.modules, name, None)
        assert real_run.main(_command(packed, out)) == 0
        assert score_run.main([str(out), "--data", str(packed)]) == 1
    kept = json.loads(out.read_text())
    assert len(kept["best"]["captions"]) == 6 and "scores" not in kept["best"] and "nltk" in kept["best"]["unscored"]
    assert score_run.main([str(out), "--data", str(packed)]) == 0
    record, expected = json.loads(out.read_text()), json.loads(plain.read_text())
    assert record["best"]["scores"] == expected["best"]["scores"] and "unscored" not in record["best"]
    assert [row.get("scores") for row in record["epochs"]] == [row.get("scores") for row in expected["epochs"]]
    assert len(record["best"]["captions"]) == 6 and all("captions" not in row for row in record["epochs"])
    assert record == {**expected, **{k: v for k, v in record.items() if k in ("epochs", "minutes", "best")}}
    assert "3 scored" in capsys.readouterr().out
    kept["best"]["captions"]["999"] = "a dog"
    out.write_text(json.dumps(kept))
    assert score_run.main([str(out), "--data", str(packed)]) == 1
    assert "first: 999" in capsys.readouterr().err


def test_no_epoch_begins_when_the_time_is_over(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    assert real_run.main(_command(packed, out, minutes=0, pretrain_words=0)) == 0
    record = json.loads(out.read_text())
    assert len(record["epochs"]) == 1 and record["ended"] == "the time was over after 1 of 2 epochs"
    assert record["best"]["scores"], "what was trained is scored all the same"


def test_a_run_that_diverges_keeps_what_it_has_and_fails(packed: Path, tmp_path: Path, monkeypatch) -> None:
    run_steps, out, calls = joint_work.run_steps, tmp_path / "run.json", []

    def failing(trainer, batches):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return run_steps(trainer, batches)

    monkeypatch.setattr(joint_work, "run_steps", failing)
    error: Exception = RuntimeError("the power fails")
    with pytest.raises(RuntimeError):
        real_run.main(_command(packed, out))
    assert [row["phase"] for row in json.loads(out.read_text())["epochs"]] == ["words"], "written after each epoch"
    calls.clear()
    error = Diverged("the loss is nan")
    assert real_run.main(_command(packed, out)) == 1
    record = json.loads(out.read_text())
    assert [row["phase"] for row in record["epochs"]] == ["words"] and record["ended"] == "diverged: the loss is nan"


def test_what_is_no_data_is_one_line(tmp_path: Path, capsys) -> None:
    wrong = tmp_path / "data.zip"
    wrong.write_text("no zip")
    assert real_run.main(_command(wrong, tmp_path / "run.json")) == 1
    assert "neither a folder nor a zip" in capsys.readouterr().err
    with zipfile.ZipFile(wrong, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert real_run.main(_command(wrong, tmp_path / "run.json")) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_options_are_those_of_flickr8ks_recipe() -> None:
    pytest.importorskip("yaml")
    shared = (
        "cnn",
        "fc_size",
        "rnn_size",
        "seq_per_img",
        "word_count_threshold",
        "max_length",
        "learning_rate",
        "beta1",
    )
    ours = TrainConfig(**{**joint_work.COCO, **real_run.FLICKR8K}).validate()
    wanted = recipe("flickr8k")
    assert {name: getattr(ours, name) for name in shared} == {name: wanted[name] for name in shared}
    assert (ours.cnn_learning_rate, ours.grad_clip) == (wanted["cnn_learning_rate"], wanted["grad_clip"])
