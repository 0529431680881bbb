"""Runs that are fed features: the merge captioner, and NIC with a frozen CNN; and runs that see nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint, config, device
from pycap.captioner import Captioner, build_model, cnn_origin
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError, load_split
from pycap.data.features import FeatureStore
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.models.vgg import VGG
from pycap.training import features, plan
from pycap.training.run import Stopped
from pycap.training.trainer import Trainer
from tests.train.runs import rows, tiny
from tests.train.test_commands import run as command
from tests.train.test_step import batch, standin

FED: dict[str, Any] = {"freeze_cnn": True, "features": "auto"}


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder, "train")]


@pytest.fixture(scope="module")
def merged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "run"
    return pycap.train(tiny(data, folder, model="merge", epochs=8, learning_rate=1e-2, drop_prob_lm=0.0, **FED)).folder


def test_a_run_learns_and_its_best_checkpoint_captions_an_image_file(merged: Path, data: Path, tmp_path: Path) -> None:
    told = losses(merged)
    assert np.mean(told[-3:]) < 0.8 * np.mean(told[:3])
    best = (merged / "best").rename(tmp_path / "alone")
    try:
        image = sorted((data / "val2017").iterdir())[0]
        (caption,) = pycap.load(best).caption(image)
    finally:
        best.rename(merged / "best")
    assert caption.text and caption.logprob < 0
    captioned = [json.loads(line) for line in (merged / "captions.jsonl").read_text().splitlines()]
    (same,) = [row for row in captioned if row["file_name"] == image.name]
    assert (same["caption"], same["logprob"]) == (caption.text, pytest.approx(caption.logprob, rel=1e-4))


def test_the_page_of_samples_shows_the_images_that_were_not_decoded_to_train(merged: Path) -> None:
    page = (merged / "samples.html").read_text()
    assert page.count("data:image/jpeg") == 10


def test_features_are_made_once_of_all_images_by_the_frozen_cnn(merged: Path, data: Path) -> None:
    captioner = Captioner.load(merged)
    with FeatureStore(merged / "features.h5", cnn_origin(captioner.model.cnn, captioner.spec)) as store:
        examples = load_split("coco", data, "train")[0] + load_split("coco", data, "val")[0]
        assert len(store) == 34 and store.missing(examples) == []


@pytest.mark.parametrize("model", ["merge", "nic"])
def test_a_run_resumed_is_the_run_that_never_stopped(model: str, data: Path, tmp_path: Path) -> None:
    whole = pycap.train(tiny(data, tmp_path / "whole", model=model, **FED)).folder
    pycap.train(tiny(data, tmp_path / "run", model=model, max_steps=4, **FED))
    before = (tmp_path / "run" / "features.h5").read_bytes()
    again = pycap.train(replace(config.resumed(tmp_path / "run"), max_steps=0)).folder
    assert losses(again) == losses(whole) and len(losses(whole)) == 6
    assert (again / "features.h5").read_bytes() == before
    for name in ("last", "best"):
        arrays = checkpoint.load(again / name).model
        for key, array in checkpoint.load(whole / name).model.items():
            assert array.tobytes() == arrays[key].tobytes(), key


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_nic_fed_features_is_nic_fed_the_pixels_they_are_of(
    backend: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit where the CNN sees the same batches; it is asked for one image at a time here, by either."""
    if backends.available(backend):
        pytest.skip(f"backend {backend}: {backends.available(backend)}")
    look = VGG.__call__

    def one_by_one(self: VGG, images: Any) -> Any:
        parts = [
            replace(images, images=images.images[i : i + 1], crops=images.crops[i : i + 1])
            for i in range(len(images.images))
        ]
        seen = [look(self, part) for part in parts]
        return type(seen[0])(np.concatenate([each.data for each in seen]))

    monkeypatch.setattr(VGG, "__call__", one_by_one)
    how: dict[str, Any] = {"freeze_cnn": True, "backend": backend, "resize": 72, "epochs": 1, "workers": 0}
    fed = pycap.train(tiny(data, tmp_path / "fed", features="auto", **how)).folder
    centre = PreprocessSpec(resize=72, crop=64).centre()
    plan_of = pycap.training.run.sources.Loader._plan

    def uncropped(self: Any, epoch: int) -> Any:
        made = plan_of(self, epoch)
        return replace(made, crops=np.tile(np.array(centre, np.int32), (len(made.crops), 1)))

    monkeypatch.setattr(pycap.training.run.sources.Loader, "_plan", uncropped)
    seeing = pycap.train(tiny(data, tmp_path / "seeing", **how)).folder
    assert losses(fed) == losses(seeing) and len(losses(fed)) == 3
    validated = [rows(run, "val") for run in (fed, seeing)]
    assert all(row.pop("dead_relus") for row in validated[1]) and not any("dead_relus" in row for row in validated[0])
    assert validated[0] == validated[1]
    assert (fed / "captions.jsonl").read_text() == (seeing / "captions.jsonl").read_text()


def test_a_file_of_features_serves_other_runs_and_is_refused_for_another_cnn(data: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"freeze_cnn": True, "features": str(tmp_path / "f.h5"), "epochs": 1}
    pycap.train(tiny(data, tmp_path / "one", **how))
    before = (tmp_path / "f.h5").read_bytes()
    pycap.train(tiny(data, tmp_path / "two", model="merge", **how))
    assert (tmp_path / "f.h5").read_bytes() == before
    with h5py.File(tmp_path / "f.h5") as file:
        weights = file.attrs["weights"]
    with pytest.raises(DataError, match=rf"f\.h5: holds features of vgg_micro with weights {weights[:16]}.*wanted"):
        pycap.train(tiny(data, tmp_path / "three", seed=5, **how))


def test_an_image_that_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    from pycap.data import demo

    data = demo.generate(tmp_path / "set", train=9, val=3, size=64)
    broken = sorted((data / "train2017").iterdir())[2]
    broken.write_bytes(b"no image")
    folder = pycap.train(tiny(data, tmp_path / "run", model="merge", epochs=1, **FED)).folder
    (skipped,) = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert skipped["file_name"] == broken.name and "not an image" in skipped["reason"]


def test_a_signal_while_features_are_made_stops_the_run_which_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract, made = features.extract, 0

    def interrupted(*given: Any, **named: Any) -> Generator[Any, None, None]:
        nonlocal made
        for each in extract(*given, **named):
            made += 1
            if made == 1:  # a second one would end the tests
                os.kill(os.getpid(), signal.SIGTERM)
            yield each

    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", interrupted)
        with pytest.raises(Stopped, match="--resume"):
            pycap.train(tiny(data, tmp_path / "run", model="merge", **FED))
    assert made == 1
    folder = pycap.train(config.resumed(tmp_path / "run")).folder
    assert len(losses(folder)) == 6 and len(rows(folder, "val")) == 2


def test_features_of_a_cnn_that_learns_are_refused() -> None:
    with pytest.raises(ConfigError, match="features: auto are of a frozen CNN.*--freeze-cnn"):
        TrainConfig(features="auto").validate()


def test_a_run_that_a_wrong_file_of_features_ends_leaves_folders_as_they_were(
    merged: Path, data: Path, tmp_path: Path
) -> None:
    picks = tmp_path / "picks.jsonl"
    picks.write_text("{}")
    for out in (tmp_path / "new", merged):
        with pytest.raises(DataError, match="picks.jsonl: not an HDF5 file, so no feature file"):
            pycap.train(tiny(data, out, freeze_cnn=True, features=str(picks)))
    assert [path.name for path in tmp_path.iterdir()] == ["picks.jsonl"]
    with pytest.raises(ConfigError, match="out_dir: .* holds .*features.h5, which this run reads"):
        pycap.train(tiny(data, merged, freeze_cnn=True, features=str(merged / "features.h5")))
    assert (merged / "best").is_dir() and not merged.with_name("run.1").exists()


@pytest.mark.parametrize("model", ["merge", "nic"])
def test_a_blind_run_says_the_same_of_every_image(
    model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pycap.train(tiny(data, tmp_path / "run", model=model, blind=True, epochs=1)).folder
    assert "from epoch 1 on, the LSTM learns, and sees no image\n" in capsys.readouterr().out
    before, after = (build_model(checkpoint.load(folder).config, 9).cnn.state_arrays(), checkpoint.load(folder).model)
    assert all(array.tobytes() == after[f"cnn.{name}"].tobytes() for name, array in before.items())
    code, text = command(capsys, "caption", folder, data / "val2017")
    captions = {json.loads(line)["caption"] for line in text.splitlines() if line.startswith("{")}
    assert code == 0 and len(captions) == 1


def test_both_bleus_are_told_at_the_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pycap.train(tiny(data, tmp_path / "run", model="merge", epochs=1, **FED))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "bleu_keras-1" in line]
    words = line.replace(";", "").split()
    scores = {
        name: float(words[words.index(name) + 1]) for name in ("BLEU-1", "bleu_keras-1", "BLEU-4", "bleu_keras-4")
    }
    assert scores["bleu_keras-1"] > scores["BLEU-1"] and scores["bleu_keras-4"] >= scores["BLEU-4"]


# Steps on the device ------------------------------------------------------------------------------------------------------

VOCABULARY, F = 37, 16


def fed(seed: int, images: int = 4, longest: int = 9) -> Batch:
    made = batch(seed, images, longest)
    features = np.random.default_rng(seed).standard_normal((images, F)).astype(np.float32)
    return replace(made, images=np.maximum(features, 0))


def trainer(resident: bool, log: Callable[[str], None] = print, **options: Any) -> Trainer:
    base: dict[str, Any] = {
        "cnn": "vgg_micro", "cnn_width": 0.5, "fc_size": F, "image_size": 32, "resize": 40, "rnn_size": 16,
        "input_encoding_size": 12, "batch_size": 4, "seq_per_img": 3, "max_length": 10, "epochs": 9, "learning_rate": 3e-3,
        "grad_clip": 0.5, "grad_clip_mode": "norm", "model": "merge",
    }  # fmt: skip
    settings = TrainConfig(**(base | FED | options)).validate()
    spec = PreprocessSpec(resize=40, crop=32)
    made = Trainer(build_model(settings, VOCABULARY), settings, spec, 5, resident=resident, log=log)
    made.begin_epoch(0)
    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "merge": {},
    "merge in passes": {"micro_batch": 3},
    "merge on pixels": {"features": "none", "freeze_cnn": False},
    "blind merge": {"blind": True},
    "blind nic on pixels": {"blind": True, "model": "nic", "features": "none"},
    "nic": {"model": "nic"},
    "merge in bfloat16": {"precision": "bf16"},
}


def test_the_plan_counts_features_in_place_of_pixels() -> None:
    with backends.use("reference"):
        fed, seeing = (plan.plan(trainer(True, features=how).config, VOCABULARY) for how in ("auto", "none"))
    assert seeing.inputs - fed.inputs == 3 * 4 * (40 * 40 * 3 - F * 4)
    assert fed.validation < seeing.validation and fed.weights == seeing.weights


def batches(options: dict[str, Any]) -> list[Batch]:
    make = batch if options.get("features") == "none" else fed
    return [make(number) for number in range(4)] + [make(9, 3, 7)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_steps_on_the_device_have_the_hosts_losses_and_recorded_ones_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    said: list[str] = []
    given = batches(options)
    with backends.use("reference"):
        plain, resident = trainer(False, **options), trainer(True, said.append, **options)
        expected = [plain.step(each).loss for each in given]
        launched = [resident.step(each).loss for _ in range(3) for each in given]
        planned = plan.plan(resident.config, VOCABULARY)
    rel = 2e-6 if options.get("precision") != "bf16" else 2e-3
    assert launched[: len(given)] == pytest.approx(expected, rel=rel) and len(set(expected)) == len(expected)
    assert resident._device_step is not None and resident._device_step.arena_bytes <= planned.activations
    with standin(monkeypatch):
        recorded = trainer(True, said.append, **options)
        assert [recorded.step(each).loss for _ in range(3) for each in given] == launched
        step = recorded._device_step
        assert step is not None and len(step.graphs) == len(step._inputs) > 1
        arrays = {name: device.to_host(a).tobytes() for name, a in recorded.model.state_arrays().items()}
    assert arrays == {name: a.tobytes() for name, a in resident.model.state_arrays().items()} and said == []
