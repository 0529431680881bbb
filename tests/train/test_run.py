"""Whole runs on a tiny demo set: resuming, freezing, signals, divergence, what lies in the folder, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pycap
from pycap import checkpoint
from pycap import config as configuration
from pycap.captioner import Captioner
from pycap.checkpoint import CheckpointError
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError, demo
from pycap.train import main
from pycap.training import start as starting
from pycap.training.run import Stopped
from pycap.training.trainer import Diverged, Trainer
from tests.train.checkpoints import vouch
from tests.train.runs import tiny


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"]


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    return {n: a.copy() for n, a in Captioner.load(checkpoint).model.state_arrays().items()}


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send the signal to ourselves right after that step."""
    plain = Trainer.launch

    def launched(self: Trainer, *batch: object) -> object:
        pending = plain(self, *batch)  # type: ignore[arg-type]
        if self.step_number == step:
            os.kill(os.getpid(), number)
        return pending

    monkeypatch.setattr(Trainer, "launch", launched)


def test_a_run_leaves_what_the_design_promises(data: Path, tmp_path: Path) -> None:
    result = pycap.train(tiny(data, tmp_path / "run"))
    run = result.folder
    for name in ("config.yaml", "vocab.json", "log.jsonl", "samples.html", "captions.jsonl", "last", "best"):
        assert (run / name).exists(), name
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    validation = [r for r in rows if r["kind"] == "val"]
    assert len(validation) == 2
    assert {"val_loss", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"} <= validation[0].keys()
    captions = [json.loads(line) for line in (run / "captions.jsonl").read_text().splitlines()]
    assert len(captions) == 10
    assert result.true_ratio == sum(c["true"] for c in captions) / 10
    assert (run / "samples.html").read_text().count("<figure ") == 10


@pytest.mark.parametrize("step", [2, 3, 5])  # inside the first epoch, at its end, inside the second
@pytest.mark.parametrize("options", [{"optimizer": "rmsprop", "threads": 2}, {"pretrain_words": 1}])
def test_resuming_after_a_signal_continues_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, options: dict[str, object]
) -> None:
    how = {"lr_schedule": "cosine", "epochs": 3, **options}
    whole = pycap.train(tiny(data, tmp_path / "whole", **how)).folder
    with monkeypatch.context() as patch:
        stop_after(patch, step, signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            pycap.train(tiny(data, tmp_path / "parts", **how))
    assert stopped.value.signal_number == signal.SIGTERM
    parts = tmp_path / "parts"
    assert len(losses(parts)) == step
    pycap.train(tiny(data, parts, **how, resume=parts))
    assert losses(parts) == losses(whole)
    expected = weights(whole / "last")
    for name, array in weights(parts / "last").items():
        assert np.array_equal(array, expected[name]), name


def test_resuming_drops_log_rows_that_will_be_written_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed outright: its log is ahead of its checkpoint, and its last line is cut."""
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGINT)
        with pytest.raises(Stopped):
            pycap.train(tiny(data, tmp_path / "run"))
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + '{"kind": "train", "step": 5, "loss": 9.0}\n{"kind": "tra')
    pycap.train(tiny(data, tmp_path / "run", resume=tmp_path / "run"))
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "run")[4][1] != 9.0


def test_a_frozen_cnn_stays_identical_and_a_joint_one_moves_everywhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, np.ndarray]] = []
    build = starting.build_model

    def remembered(*args: object) -> object:
        model = build(*args)  # type: ignore[arg-type]
        starts.append({n: a.copy() for n, a in model.state_arrays().items()})
        return model

    monkeypatch.setattr(starting, "build_model", remembered)
    pycap.train(tiny(data, tmp_path / "frozen", freeze_cnn=True))
    pycap.train(tiny(data, tmp_path / "joint"))
    pycap.train(tiny(data, tmp_path / "later", finetune_cnn_after=1, epochs=1))
    pycap.train(tiny(data, tmp_path / "late", finetune_cnn_after=1, epochs=2))
    for name, (start, learns) in {
        run: (starts[i], joint)
        for i, (run, joint) in enumerate([("frozen", False), ("joint", True), ("later", False), ("late", True)])
    }.items():
        end = weights(tmp_path / name / "last")
        for parameter, array in start.items():
            moved = not np.array_equal(array, end[parameter])
            assert moved == (learns or not parameter.startswith("cnn.")), (name, parameter)


@pytest.mark.parametrize("micro", [3, 8])
def test_micro_batches_change_no_step(data: Path, tmp_path: Path, micro: int) -> None:
    whole = pycap.train(tiny(data, tmp_path / "whole", epochs=1)).folder
    parts = pycap.train(tiny(data, tmp_path / "parts", epochs=1, micro_batch=micro)).folder
    assert [loss for _, loss in losses(parts)] == pytest.approx([loss for _, loss in losses(whole)], rel=1e-5)


def test_eight_captions_are_learnt_by_heart(data: Path, tmp_path: Path) -> None:
    """One caption for each of eight images, joint training: the loss goes below 0.05, as it must where gradients are right."""
    few = demo.generate(tmp_path / "few", train=8, val=2, size=64)
    path = few / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][::5]
    path.write_text(json.dumps(content))
    config = tiny(
        few, tmp_path / "run", seq_per_img=1, drop_prob_lm=0.0, drop_prob_cnn=0.0, rnn_size=64, input_encoding_size=32,
        fc_size=48, epochs=150, val_every=150, learning_rate=3e-3, cnn_learning_rate=1e-3,
    )  # fmt: skip
    run = pycap.train(config).folder
    assert losses(run)[-1][1] < 0.05


def test_a_loss_that_is_no_number_stops_and_tells(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Trainer.launch

    def poisoned(self: Trainer, *batch: object) -> object:
        if self.step_number == 4:
            self.model.projection.bias.data[5] = np.nan
        return plain(self, *batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "launch", poisoned)
    with pytest.raises(
        Diverged, match=r"step 5 .*the loss is nan.*images of this batch: 0.*\.jpg.*last good checkpoint is .*last"
    ):
        pycap.train(tiny(data, tmp_path / "run"))
    saved = weights(tmp_path / "run" / "last")
    assert all(np.isfinite(a).all() for a in saved.values())


def test_an_earlier_run_is_moved_aside_not_overwritten(data: Path, tmp_path: Path) -> None:
    first = weights(pycap.train(tiny(data, tmp_path / "run", epochs=1)).folder / "last")
    pycap.train(tiny(data, tmp_path / "run", epochs=1, seed=9))
    kept = weights(tmp_path / "run.1" / "last")
    assert all(np.array_equal(first[n], kept[n]) for n in first)
    with pytest.raises(ConfigError, match="which this run reads"):
        pycap.train(tiny(data, tmp_path / "run", init_from=tmp_path / "run" / "last"))


def test_a_folder_that_is_no_run_is_left_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ConfigError, match="photos holds other things than an earlier run"):
        pycap.train(tiny(data, tmp_path / "photos"))
    with pytest.raises(ConfigError, match=r"cat.jpg cannot be written \(Not a directory\).*another --out-dir"):
        pycap.train(tiny(data, tmp_path / "photos" / "cat.jpg"))
    run = pycap.train(tiny(data, tmp_path / "run", epochs=1)).folder
    monkeypatch.chdir(run)
    with pytest.raises(ConfigError, match="give another --out-dir"):
        pycap.train(tiny(data, Path(".")))
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat" and (run / "last").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "run"]


def test_a_resumed_run_says_that_its_data_has_changed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    run = pycap.train(tiny(data, tmp_path / "run", max_steps=1)).folder
    capsys.readouterr()
    pycap.train(configuration.resumed(run, max_steps=2, data=moved))
    assert "the data is not what" not in capsys.readouterr().out
    min((moved / "train2017").iterdir()).unlink()
    pycap.train(configuration.resumed(run, max_steps=3, data=moved))
    said = capsys.readouterr().out
    assert "saved with (24 + 10 images, " in said and "; now 23 + 10 images, " in said


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"stage": "coco_all"}, "stage: coco_all contradicts resume.*began with coco,.*--init-from"),
        ({"blind": True}, "blind: True contradicts resume"),
        ({"extend_vocab": True}, "extend_vocab: True contradicts resume"),
        ({"vgg_weights": Path("vgg.h5")}, "vgg_weights: vgg.h5 contradicts resume"),
    ],
)
def test_a_resumed_run_is_not_made_another(data: Path, trained: Path, changed: dict[str, object], named: str) -> None:
    before = (trained / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=named):
        pycap.train(configuration.resumed(trained, epochs=9, **changed))
    assert (trained / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(("gone", "told"), [("trainer", "KeyError: 'trainer'"), ("position", "KeyError: 'position'")])
def test_a_whole_checkpoint_of_something_else_than_a_run_is_refused(
    data: Path, tmp_path: Path, gone: str, told: str
) -> None:
    run = pycap.train(tiny(data, tmp_path / "run", max_steps=1)).folder
    saved = checkpoint.load(run / "last", optimizer=True)
    state = {name: value for name, value in saved.state.items() if name != gone}
    parts = {name: getattr(saved, name) for name in ("model", "optimizer", "vocab", "config", "preprocess")}
    checkpoint.save(run / "last", state=state, **parts)
    with pytest.raises(CheckpointError, match=rf"last: its state is not a run's \({told}\); .*--init-from"):
        pycap.train(configuration.resumed(run, max_steps=2))


def test_resuming_into_another_folder_is_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume continues in its own folder"):
        pycap.train(tiny(data, tmp_path / "other", resume=trained))
    assert not (tmp_path / "other").exists()


def test_init_from_takes_weights_and_vocabulary_and_starts_at_step_0(data: Path, tmp_path: Path) -> None:
    first = pycap.train(tiny(data, tmp_path / "one", epochs=1)).folder
    second = pycap.train(tiny(data, tmp_path / "two", epochs=1, init_from=first, learning_rate=0.0)).folder
    expected = weights(first / "last")
    assert all(np.array_equal(array, expected[n]) for n, array in weights(second / "last").items())
    assert losses(second)[0][0] == 1


def test_weights_with_and_without_a_word_classifier_serve_each_other(data: Path, tmp_path: Path) -> None:
    words = pycap.train(tiny(data, tmp_path / "words", epochs=1, pretrain_words=1)).folder
    plain = pycap.train(tiny(data, tmp_path / "plain", epochs=1, init_from=words, learning_rate=0.0)).folder
    again = pycap.train(
        tiny(data, tmp_path / "again", epochs=1, pretrain_words=1, init_from=plain, learning_rate=0.0,
             pretrain_learning_rate=0.0)
    ).folder  # fmt: skip
    first, without, back = (weights(run / "last") for run in (words, plain, again))
    assert first.keys() - without.keys() == {"word_head.weight", "word_head.bias"} == back.keys() - without.keys()
    for name, array in without.items():
        assert np.array_equal(array, first[name]) and np.array_equal(array, back[name]), name


def test_the_schedule_starts_with_the_captions_not_with_the_words(data: Path, tmp_path: Path) -> None:
    how = {"pretrain_words": 1, "pretrain_learning_rate": 7e-4, "learning_rate": 2e-3, "lr_schedule": "cosine"}
    run = pycap.train(tiny(data, tmp_path / "run", **how)).folder
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = {kind: [r["lr"] for r in rows if r.get("objective") == kind] for kind in ("words", "captions")}
    assert rates["words"] == [7e-4] * 3
    expected = [1e-3 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert rates["captions"] == pytest.approx(expected, rel=1e-12)


def test_corrupt_images_are_listed_and_training_goes_on(data: Path, tmp_path: Path) -> None:
    folder = demo.generate(tmp_path / "hurt", train=10, val=3, size=64)
    victim = sorted((folder / "train2017").iterdir())[4]
    victim.write_bytes(victim.read_bytes()[:200])
    run = pycap.train(tiny(folder, tmp_path / "run", epochs=1)).folder
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in listed] == [victim.name]


# the command line: one clear message, a status that is not 0, and nothing lost ------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as exit:
        main(list(argv))
    code = exit.value.code
    text = capsys.readouterr().err + (code if isinstance(code, str) else "")
    assert "Traceback" not in text
    return code, text


def test_missing_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = fails(capsys, "--stage", "coco", "--data", str(tmp_path / "nowhere"), "--out-dir", str(tmp_path / "r"))
    assert code and str(tmp_path / "nowhere") in text


def test_json_that_is_not_cocos(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = demo.generate(tmp_path / "set", train=4, val=2, size=64)
    path = folder / "annotations" / "captions_train2017.json"
    path.write_text('{"pictures": []}')
    code, text = fails(capsys, "--data", str(folder), "--out-dir", str(tmp_path / "r"), "--recipe", "demo")
    assert code and "captions_train2017.json" in text and "images" in text


def damaged(trained: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_zero_byte_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = damaged(trained, tmp_path)
    (run / "last" / "model.safetensors").write_bytes(b"")
    code, text = fails(capsys, "--resume", str(run))
    assert code and "model.safetensors" in text


def test_a_damaged_optimiser_is_told_before_the_data_is_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = damaged(trained, tmp_path)
    path = run / "last" / "optimizer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr("pycap.training.sources.find", lambda *_: 1 / 0)
    code, text = fails(capsys, "--resume", str(run))
    assert code and re.search(r"optimizer\.safetensors: tensor \S+ is damaged", text)


def test_checkpoint_of_another_architecture(trained: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another architecture"):
        pycap.train(tiny(data, tmp_path / "run", init_from=trained, rnn_size=32))


def test_vocabulary_that_does_not_fit(trained: Path, tmp_path: Path) -> None:
    run = damaged(trained, tmp_path)
    path = run / "best" / "vocab.json"
    content = json.loads(path.read_text())
    content["words"] = content["words"][:-1]
    path.write_text(json.dumps(content))
    vouch(run / "best")
    with pytest.raises(CheckpointError, match=r"vocab\.json.*words, but the weights"):
        pycap.load(run)


def test_no_data_for_a_stage_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data/flickr8k: no such folder.*--data.*Flickr8k_text"):
        pycap.train(replace(TrainConfig(), stage="flickr8k"))


def test_coco_without_data_says_so_and_trains_on_the_demo_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "demo-train": 8,
        "demo-val": 4,
        "epochs": 1,
        "batch-size": 4,
        "fc-size": 16,
        "rnn-size": 16,
        "cnn-width": 0.25,
    }
    main(["--stage", "coco", "--word-count-threshold=1", *(f"--{name}={value}" for name, value in small.items())])
    out = capsys.readouterr().out
    assert "No COCO data in data/coco" in out
    assert out.splitlines()[-1].startswith("held-out captions that are true: ")
    assert out.splitlines()[-1].endswith("of 4)")
    assert (tmp_path / "runs" / "coco" / "best" / "model.safetensors").exists()
