"""Training and captioning with --precision bf16: beside float32, resumed, loaded in either, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint, config, device
from pycap.cli import main
from pycap.config import TrainConfig
from tests.train.runs import tiny


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    if backends.available(request.param):
        pytest.skip(f"backend {request.param}: {backends.available(request.param)}")
    return str(request.param)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_both_places_name_the_same_precisions() -> None:
    assert config.PRECISIONS == device.PRECISIONS
    assert TrainConfig().precision == "fp32"


def test_training_follows_float32(backend: str, data: Path, tmp_path: Path) -> None:
    """The same weights, batches and dropout, 3 steps on words and 15 on captions: losses within 2 %, and sinking."""
    made = {}
    for precision in ("fp32", "bf16"):
        options = tiny(
            data, tmp_path / precision, backend=backend, precision=precision, pretrain_words=1, epochs=5, optimizer="sgd",
            learning_rate=0.5, pretrain_learning_rate=0.01,
        )  # fmt: skip
        made[precision] = pycap.train(options)
    exact, rounded = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert len(exact) == len(rounded) == 18
    assert np.allclose(rounded, exact, rtol=0.02) and rounded != exact
    assert exact[-1] < 0.9 * exact[3] and rounded[-1] < 0.9 * rounded[3]  # from the first step on captions on
    assert made["bf16"].scores["val_loss"] == pytest.approx(made["fp32"].scores["val_loss"], rel=0.02)


def test_a_run_in_bf16_is_resumed_bit_for_bit_and_saved_in_float32(backend: str, data: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    pycap.train(tiny(data, whole, backend=backend, precision="bf16", epochs=1))
    pycap.train(tiny(data, parted, backend=backend, precision="bf16", epochs=1, max_steps=2))
    resumed = config.resumed(parted, max_steps=0)
    assert resumed.precision == "bf16"
    pycap.train(resumed)
    assert losses(parted) == losses(whole)
    saved = checkpoint.load(parted, prefer="last")
    assert {array.dtype for array in saved.model.values()} == {np.dtype(np.float32)}


def test_a_run_may_go_on_in_the_other_precision(backend: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pycap.train(tiny(data, folder, backend=backend, precision="fp32", epochs=1))
    pycap.train(config.resumed(folder, precision="bf16", epochs=2))
    assert config.load(folder / "config.yaml").precision == "bf16"
    assert len(losses(folder)) == 6 and np.isfinite(losses(folder)).all()


def test_captions_use_the_checkpoints_precision_unless_told(
    backend: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    pycap.train(tiny(data, folder, backend=backend, precision="bf16", epochs=1))
    image = sorted((data / "val2017").iterdir())[0]

    def logprob(*options: str) -> float:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(["caption", str(folder), str(image), "--backend", backend, *options])
        printed = capsys.readouterr()
        assert exit.value.code == 0, printed.err
        return float(json.loads(printed.out.strip().splitlines()[-1])["logprob"])

    own = logprob()
    assert own == logprob("--precision", "bf16")
    assert own != logprob("--precision", "fp32") == pytest.approx(own, rel=0.02)
    assert pycap.load(folder).precision == "bf16" and pycap.load(folder, "fp32").precision == "fp32"
    with pytest.raises(ValueError, match="'fp8' is unknown"):
        pycap.load(folder, "fp8")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(folder), "--data", str(data), "--precision", "fp8"])


def test_the_run_says_its_precision_and_that_it_is_slow_without_amx(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(unit: str, precision: str) -> str:
        monkeypatch.setattr(backends, "bfloat16_unit", lambda: unit)
        pycap.train(tiny(data, tmp_path / "run", backend="reference", precision=precision, epochs=1, max_steps=1))
        return capsys.readouterr().out

    slow = said("float32", "bf16")
    assert "nic on vgg_micro in bf16" in slow and "bf16 without AMX" in slow
    quick = said("amx", "bf16")
    assert "nic on vgg_micro in bf16" in quick and "without AMX" not in quick
    assert "nic on vgg_micro in fp32" in (plain := said("float32", "fp32")) and "without AMX" not in plain


def test_what_multiplies_bfloat16() -> None:
    with backends.use("reference"):
        assert backends.bfloat16_unit() == "float32"
    if not backends.available("cpp"):
        with backends.use("cpp"):
            assert backends.bfloat16_unit() in ("amx", "float32")
