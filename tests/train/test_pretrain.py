"""`--stage pretrain`: a classifier that learns, is validated by hand's numbers, resumes exactly, and hands its CNN on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pycap
from pycap import backends, checkpoint, cli, weights
from pycap.captioner import Captioner, build_classifier, load_weights
from pycap.config import ConfigError, TrainConfig, recipe, resumed
from pycap.data import DataError
from pycap.data.images import PreprocessSpec
from pycap.training import plan
from pycap.training.classification import rank
from pycap.training.trainer import Trainer
from tests.train import test_step
from tests.train.runs import rows, tiny
from tests.train.test_commands import run

COLOURS = {"n01": (220, 40, 40), "n02": (40, 220, 40), "n03": (40, 40, 220)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around one colour a class: 8 images each to train on, 3 held out."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 60, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    (root / "classes.tsv").write_text("n01\tred ball\nn02\tgreen ball\n")
    return root


def config(tree: Path, out: Path, **options: Any) -> TrainConfig:
    own: dict[str, Any] = {"stage": "pretrain", "image_size": 32, "resize": 36, "batch_size": 8, "drop_prob_cnn": 0.0}
    return tiny(tree, out, **(own | options))


@pytest.fixture(scope="module")
def trained(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pycap.train(config(tree, tmp_path_factory.mktemp("pretrained") / "run", epochs=12)).folder


def test_a_run_learns_and_shows_what_it_takes_images_for(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = pycap.train(config(tree, tmp_path / "run", epochs=12, save_best_on="top-1", lr_schedule="cosine"))
    told = capsys.readouterr().out
    assert (
        "3 classes\nclassifier on vgg_micro in fp32" in told and "from epoch 1 on, the CNN learns to classify" in told
    )
    last = rows(done.folder, "val")[-1]
    assert last.keys() == {"kind", "step", "epoch", "val_loss", "top-1", "top-5", "dead_relus"} and last["epoch"] == 12
    assert done.scores == {name: last[name] for name in ("val_loss", "top-1", "top-5")}
    assert last["top-1"] == last["top-5"] == 1 and last["val_loss"] < 0.5
    made = [json.loads(line) for line in (done.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in made[:4]] == ["n01/0.png", "n02/0.png", "n03/0.png", "n01/1.png"]
    assert f"top-1 100.00 %, top-5 100.00 % of 9 images: {done.folder / 'predictions.jsonl'}" in told
    assert f"--vgg-weights {done.folder} --cnn vgg_micro --cnn-width 0.25 --fc-size 24 --image-size 32" in told
    page = (done.folder / "samples.html").read_text()
    assert page.count("<figure ") == 9 and '<p class="caption">red ball</p>' in page and "<li>it is: n03</li>" in page
    assert rows(done.folder, "train")[0]["objective"] == "classes" and rows(done.folder, "train")[0]["tokens"] == 8
    rates = [row["lr"] for row in rows(done.folder, "train")]
    assert rates[0] == 1e-3 and rates == sorted(rates, reverse=True) and rates[-1] < 1e-5


def test_scores_are_those_of_the_best_checkpoint_by_hand(tree: Path, trained: Path) -> None:
    saved = checkpoint.load(trained)
    model = build_classifier(saved.config, 7, draw=False)
    load_weights(model, saved)
    model.train(False)
    z, truth = [], []
    for file in sorted((tree / "val").glob("*/*.png")):
        with Image.open(file) as image:
            small = np.asarray(image.resize((36, 36), Image.Resampling.BILINEAR), np.float32)[2:34, 2:34]
        spec = PreprocessSpec()
        x = (small - np.float32(spec.mean)) / np.float32(spec.std)
        z.append(model.logits(pycap.Tensor(x[None])).data[0, 4:].astype(np.float64))
        truth.append(sorted(COLOURS).index(file.parent.name))
    logp = np.array(z) - np.log(np.exp(z).sum(1, keepdims=True))
    own = logp[np.arange(9), truth]
    best = min(rows(trained, "val"), key=lambda row: row["val_loss"])
    assert best["val_loss"] == pytest.approx(-own.mean(), rel=1e-4)
    assert best["top-1"] == np.mean(logp.argmax(1) == truth)
    said = {row["file_name"]: row for row in map(json.loads, (trained / "predictions.jsonl").read_text().splitlines())}
    for (i, file), probabilities in zip(enumerate(sorted((tree / "val").glob("*/*.png"))), np.exp(logp), strict=True):
        row = said[f"{file.parent.name}/{file.name}"]
        assert row["class"] == file.parent.name and len(row["guesses"]) == 3
        assert row["guesses"][0]["class"] == sorted(COLOURS)[int(np.argmax(z[i]))]
        assert row["guesses"][0]["probability"] == pytest.approx(probabilities.max(), rel=1e-4)


def test_top_5_by_hand() -> None:
    logits = np.array(
        [[9, 8, 7, 6, 5, 4.0], [9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 5, 0, 0, 0, 0]]
    )
    assert rank(logits, np.array([0, 5, 0, 5, 1], np.int32)).tolist() == [0, 5, 0, 5, 0]
    assert rank(logits[:, :2], np.array([1, 0, 1, 0, 0], np.int32)).tolist() == [1, 0, 1, 0, 1]


def test_resuming_is_exact(tree: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "drop_prob_cnn": 0.5, "micro_batch": 3, "lr_schedule": "step"}
    whole = pycap.train(config(tree, tmp_path / "whole", **options))
    pycap.train(config(tree, tmp_path / "parts", **options, max_steps=2))
    parts = pycap.train(resumed(tmp_path / "parts", max_steps=0))
    a, b = (checkpoint.load(done.folder, prefer="last") for done in (whole, parts))
    assert a.model.keys() == b.model.keys() and all(np.array_equal(a.model[n], b.model[n]) for n in a.model)
    assert whole.steps == parts.steps == 6 and whole.scores == parts.scores
    assert [row["loss"] for row in rows(whole.folder, "train")] == [row["loss"] for row in rows(parts.folder, "train")]


def test_a_captioner_starts_from_its_cnn_with_the_same_features_bit_for_bit(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    begin = tiny(data, tmp_path / "run", image_size=32, resize=36, epochs=1, freeze_cnn=True, vgg_weights=trained)
    saved = checkpoint.load(pycap.train(begin).folder)
    before = checkpoint.load(trained)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.float32)
    classifier = build_classifier(before.config, len(before.vocab), draw=False)
    load_weights(classifier, before)
    classifier.train(False)
    captioner = Captioner.load(saved.folder).model
    np.testing.assert_array_equal(captioner.cnn(pycap.Tensor(images)).data, classifier.cnn(pycap.Tensor(images)).data)
    assert saved.preprocess["mean"] == before.preprocess["mean"] and saved.preprocess["std"] == before.preprocess["std"]


def test_its_cnn_can_be_exported(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["import-vgg", str(trained / "best"), "--output", str(tmp_path / "vgg.safetensors")])
    assert done.value.code == 0
    found, saved = weights.load(tmp_path / "vgg.safetensors"), checkpoint.load(trained)
    assert (found.cnn, found.source, found.image_size) == ("vgg_micro", "pycap-pretrain", 32)
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, saved.model[f"cnn.{name}"], err_msg=name)


def test_its_features_of_a_data_set_need_the_data_sets_kind(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["features", "--vgg-weights", trained, "--data", data, "--split", "val", "--output", tmp_path / "f.h5"]
    code, text = run(capsys, *argv)
    assert code and f"of which kind is {data}? give --stage" in text
    code, text = run(capsys, *argv, "--stage", "coco")
    assert code == 0 and "10 made" in text


def test_a_captioner_and_a_classifier_are_told_apart(
    trained: Path, tree: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="a classifier of 3 classes.*captions nothing.*--vgg-weights"):
        pycap.load(trained)
    with pytest.raises(ConfigError, match="best holds a classifier, and stage coco trains a captioner.*--vgg-weights"):
        pycap.train(tiny(data, tmp_path / "run", image_size=32, resize=36, init_from=trained))
    with pytest.raises(ConfigError, match="out_dir: .* holds .*, which this run reads; give another --out-dir"):
        pycap.train(tiny(data, trained, image_size=32, resize=36, vgg_weights=trained / "best"))
    with pytest.raises(DataError, match=r"2 classes \(first: n04, n05\) are not among the 3 of the checkpoint"):
        pycap.train(config(renamed(tree, tmp_path / "tree"), tmp_path / "other", init_from=trained))
    again = pycap.train(config(tree, tmp_path / "again", init_from=trained, epochs=1, learning_rate=0.0))
    assert again.scores["val_loss"] == pytest.approx(min(row["val_loss"] for row in rows(trained, "val")), rel=1e-6)


def renamed(tree: Path, target: Path) -> Path:
    """The tree with two other classes."""
    for split in ("train", "val"):
        (target / split).mkdir(parents=True)
        for name, other in (("n01", "n01"), ("n02", "n04"), ("n03", "n05")):
            (target / split / other).symlink_to(tree / split / name)
    return target


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"save_best_on": "CIDEr"}, "save_best_on: CIDEr is no score of stage pretrain; one of val_loss, top-1, top-5"),
        (
            {"stage": "coco", "save_best_on": "top-5"},
            "save_best_on: top-5 is no score of stage coco; one of val_loss, BLEU-1",
        ),
        ({"pretrain_words": 2}, "pretrain_words: 2 is a captioner's, and stage pretrain trains a classifier"),
        ({"model": "merge"}, "model: merge is a captioner's"),
        ({"blind": True}, "blind: True is a captioner's"),
    ],
)
def test_options_of_the_other_task_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TrainConfig(**({"stage": "pretrain"} | options)).validate()


def test_data_that_is_not_there_or_cannot_be_read(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"data/pretrain: no such folder; give --data .*train/CLASS/\*.JPEG and val/CLASS"
    ):
        pycap.train(TrainConfig(stage="pretrain"))
    broken = renamed(tree, tmp_path / "tree")
    (broken / "train" / "n09").mkdir()
    (broken / "train" / "n09" / "cut.JPEG").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    done = pycap.train(config(broken, tmp_path / "run", epochs=1, learning_rate=0.0))
    skipped = [json.loads(line) for line in (done.folder / "skipped.jsonl").read_text().splitlines()]
    reason = "no image to validate on; the class is trained all the same"
    assert skipped[0] == {"kind": "class-without-validation", "file": "val/n09", "reason": reason}
    assert skipped[1]["file_name"] == "n09/cut.JPEG" and "corrupt" in skipped[1]["reason"]


@pytest.mark.parametrize("name", ["pretrain", "pretrain_small"])
def test_recipes_are_sound(name: str) -> None:
    options = recipe(name)
    made = TrainConfig(**options).validate()
    assert made.classifies and made.seq_per_img == made.max_length == 1


# Steps that stay on the device ----------------------------------------------------------------------------------------


def trainer(resident: bool, said: list[str], **options: Any) -> Trainer:
    base: dict[str, Any] = {
        "stage": "pretrain", "cnn": "vgg_micro", "cnn_width": 0.5, "fc_size": 16, "image_size": 32, "resize": test_step.SIDE,
        "batch_size": 4, "seq_per_img": 1, "max_length": 1, "epochs": 9, "learning_rate": 3e-3, "lr_schedule": "cosine",
    }  # fmt: skip
    made = TrainConfig(**(base | options)).validate()
    model = build_classifier(made, test_step.VOCABULARY)
    spec = PreprocessSpec(resize=test_step.SIDE, crop=32)
    ready = Trainer(model, made, spec, 5, resident=resident, log=said.append)
    ready.begin_epoch(0)
    return ready


def batch(seed: int) -> Any:
    """`test_step.batch` with a class an image."""
    full = test_step.batch(seed)
    classes = np.random.default_rng(seed).integers(4, test_step.VOCABULARY, len(full.images))
    tokens = np.stack([np.full_like(classes, 1), classes, np.full_like(classes, 2)]).astype(np.int32)
    return type(full)(**{name: getattr(full, name) for name in full.__slots__} | {"tokens": tokens})


OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd in passes": {"optimizer": "sgd", "learning_rate": 1e-2, "weight_decay": 5e-4, "micro_batch": 3},
    "the head alone": {"freeze_cnn": True},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_steps_on_a_device_are_the_hosts_and_recorded_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    said: list[str] = []

    def losses(made: Trainer) -> list[float]:
        return [made.step(batch(seed % 4)).loss for seed in range(12)]

    with backends.use("reference"):
        expected = losses(trainer(False, said, **options))
        resident = trainer(True, said, **options)
        got = losses(resident)
        assert got == pytest.approx(expected, rel=2e-5) and len(set(expected)) == len(expected)
        planned = plan.plan(resident.config, test_step.VOCABULARY)
        assert test_step.device_step(resident).arena_bytes == planned.activations
    with test_step.standin(monkeypatch):
        recorded = trainer(True, said, **options)
        assert losses(recorded) == got and len(test_step.device_step(recorded).graphs) == 1
    assert said == []


@pytest.mark.usefixtures("gpu_standin")
def test_a_run_on_the_stand_in_for_a_gpu_is_the_cpus(tree: Path, tmp_path: Path) -> None:
    made = [
        pycap.train(config(tree, tmp_path / name, device=name, backend="reference", epochs=1))
        for name in ("cpu", "cuda")
    ]
    assert made[0].scores == made[1].scores
    a, b = (checkpoint.load(done.folder, prefer="last").model for done in made)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
