"""Whole runs on device "cuda", the stand-in for CuPy under the reference: bit for bit what the CPU gives, never mixed.

On the CPU they take the steps that stay on a device too, which round differently than its own: `tests/train/test_step.py`."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint, config, device
from pycap.captioner import Captioner
from pycap.cli import main
from pycap.distributed import ALONE
from pycap.models import captions
from pycap.training import plan
from pycap.training.run import _Run
from pycap.training.trainer import Trainer
from tests import cupy_standin
from tests.row_by_row import row_by_row
from tests.train.runs import tiny

pytestmark = pytest.mark.usefixtures("gpu_standin")


def losses(folder: Path) -> list[tuple[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(row["kind"], row.get("loss", row.get("val_loss"))) for row in rows]


def same_checkpoints(one: Path, other: Path) -> bool:
    a, b = (checkpoint.load(folder, prefer="last") for folder in (one, other))
    pairs = [(a.model, b.model), (a.optimizer or {}, b.optimizer or {})]
    return all(x.keys() == y.keys() and all(x[n].tobytes() == y[n].tobytes() for n in x) for x, y in pairs)


@pytest.fixture
def rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row_by_row(monkeypatch)


JOINT = {"optimizer": "rmsprop", "pretrain_words": 1, "micro_batch": 5, "grad_clip": 0.5, "grad_clip_mode": "norm"}
APART = {"cnn_optimizer": "sgd", "finetune_cnn_after": 1, "precision": "bf16", "beam_size": 2}


FED = {"model": "merge", "freeze_cnn": True, "features": "auto", "micro_batch": 5}
BLIND = {"blind": True}
CRITICAL = {
    "stage": "scst",
    "datasets": "coco",
    "drop_prob_lm": 0.0,
    "drop_prob_cnn": 0.0,
    "micro_batch": 5,
    "epochs": 1,
}
RUNS = {"joint": JOINT, "apart": APART, "merge on features": FED, "blind": BLIND, "self-critical": CRITICAL}


@pytest.mark.usefixtures("rows_alone")
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_training_saving_and_captioning_are_the_cpus_bit_for_bit(
    data: Path, trained: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = {}
    start = trained if options is CRITICAL else None
    for name in ("cpu", "cuda"):
        how = {"device": name, "backend": "reference", "init_from": start}
        made[name] = pycap.train(tiny(data, tmp_path / name, **how, **options))
        assert device.current() == name
    assert losses(tmp_path / "cuda") == losses(tmp_path / "cpu") and len(losses(tmp_path / "cpu")) >= 5
    assert made["cuda"].scores == made["cpu"].scores
    assert same_checkpoints(tmp_path / "cuda", tmp_path / "cpu")
    for file in ("captions.jsonl", "samples.html"):
        assert (tmp_path / "cuda" / file).read_text() == (tmp_path / "cpu" / file).read_text()


@pytest.mark.parametrize(("first", "then"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_either_device_bit_for_bit(data: Path, tmp_path: Path, first: str, then: str) -> None:
    how = {"backend": "reference", "epochs": 1}
    pycap.train(tiny(data, tmp_path / "whole", device="cpu", **how))
    pycap.train(tiny(data, tmp_path / "parts", device=first, max_steps=2, **how))
    pycap.train(config.resumed(tmp_path / "parts", device=then, max_steps=0))
    rows = [row for row in losses(tmp_path / "parts") if row[0] == "train"]
    assert rows == [row for row in losses(tmp_path / "whole") if row[0] == "train"] and len(rows) == 3
    assert same_checkpoints(tmp_path / "parts", tmp_path / "whole")


def test_every_parameter_gradient_and_moment_lies_on_the_device(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Trainer] = []
    plain = Trainer.launch

    def launched(self: Trainer, *batch: Any) -> Any:
        trainers.append(self)
        before = cupy_standin.ndarray.reads
        pending = plain(self, *batch)
        reads.append(cupy_standin.ndarray.reads - before)
        return pending

    reads: list[int] = []
    monkeypatch.setattr(Trainer, "launch", launched)
    pycap.train(tiny(data, tmp_path / "run", device="cuda", backend="reference", epochs=1))
    trainer = trainers[-1]
    arrays = trainer.model.state_arrays()
    arrays |= {f"{n}.grad": t.grad for n, t in trainer.model.named_parameters().items()}
    arrays |= {n: a for n, a in trainer.optimizer.state_arrays().items() if not n.endswith(".step")}
    assert len(arrays) == 4 * len(trainer.model.named_parameters())
    assert {type(array) for array in arrays.values()} == {cupy_standin.ndarray}
    assert reads == [0] * 3  # a step waits for nothing


@pytest.mark.usefixtures("rows_alone")
def test_captions_and_scores_are_the_cpus(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}
    for name in ("cpu", "cuda"):
        how = ["--device", name, "--backend", "reference", "--batch-size", "4"]
        for command in (
            ["caption", str(trained), str(data / "val2017"), "--output", str(tmp_path / f"{name}.jsonl"), *how],
            ["evaluate", str(trained), "--data", str(data), "--output", str(tmp_path / f"{name}.json"), *how],
        ):
            with pytest.raises(SystemExit) as exit:
                main(command)
            assert exit.value.code == 0
            assert device.current() == name
        told[name] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BLEU")]
    assert told["cuda"] == told["cpu"] and len(told["cpu"]) == 4
    for suffix in ("jsonl", "json"):
        assert (tmp_path / f"cuda.{suffix}").read_bytes() == (tmp_path / f"cpu.{suffix}").read_bytes()


def test_a_loaded_model_lies_on_the_device_that_was_asked_for(trained: Path) -> None:
    captioner = pycap.load(trained, device="cuda")
    assert {type(a) for a in captioner.model.state_arrays().values()} == {cupy_standin.ndarray}
    captioner = pycap.load(trained, device="cpu")
    assert {type(a) for a in captioner.model.state_arrays().values()} == {np.ndarray}
    assert device.current() == "cpu"


def test_a_captioner_says_so_when_the_process_has_turned_to_another_device(trained: Path, data: Path) -> None:
    captioner = pycap.load(trained, device="cuda")
    image = sorted((data / "val2017").iterdir())[0]
    assert [caption.error for caption in captioner.caption(image)] == [""]
    backends.select("cpu", "reference")
    with pytest.raises(device.DeviceError, match=r"lies on cuda.*current device is cpu.*backends.select\('cuda'\)"):
        list(captioner.caption(image))


def test_an_array_that_stayed_on_the_host_is_caught(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the runs above would prove nothing: here the beam's order does not cross."""
    monkeypatch.setattr(captions, "to_device", lambda array: array)
    with pytest.raises(TypeError, match="Unsupported type"):
        pycap.train(tiny(data, tmp_path / "run", device="cuda", backend="reference", epochs=1))


def test_a_device_that_cannot_be_used_is_told_in_one_line(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "missing_driver", lambda: "no NVIDIA driver here")
    told = []
    for command in (
        ["train", "--stage", "coco", "--data", str(data), "--out-dir", str(tmp_path / "run"), "--device", "cuda"],
        ["caption", str(trained), str(data / "val2017"), "--device", "cuda"],
        ["evaluate", str(trained), "--data", str(data), "--device", "cuda"],
    ):
        with pytest.raises(SystemExit) as exit:
            main(command)
        told.append(str(exit.value.code))
    assert all("device cuda cannot be used: no NVIDIA driver here; or choose --device cpu" in text for text in told)
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_told_with_what_takes_less(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OutOfMemoryError(MemoryError):
        """As CuPy's."""

    def full(*arguments: Any) -> None:
        raise OutOfMemoryError("Out of memory allocating 512 bytes")

    full.__module__ = "pycap.backends.reference"  # the plan made beforehand runs such primitives dry
    config.save(tiny(data, tmp_path / "run", device="cuda", backend="reference"), tmp_path / "config.yaml")
    monkeypatch.setattr(importlib.import_module("pycap.backends.reference"), "preprocess", full)
    for command, remedy in (
        (["train", "--config", str(tmp_path / "config.yaml")], "--micro-batch"),
        (["caption", str(trained), str(data / "val2017"), "--backend", "reference"], "--batch-size"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(command)
        assert "out of memory (Out of memory allocating 512 bytes)" in str(exit.value.code)
        assert remedy in str(exit.value.code)


def test_a_batch_that_does_not_fit_is_worked_off_in_passes_that_do(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses are those of the whole batch, and the config that is saved says nothing of it."""
    how = {"device": "cuda", "backend": "reference", "epochs": 1}
    pycap.train(tiny(data, tmp_path / "whole", **how))
    whole = capsys.readouterr().out
    assert re.match(r"needs 0\.0 GiB on the GPU\n", whole) and "passes" not in whole
    needed = plan.plan(tiny(data, tmp_path / "run", **how, micro_batch=3), 68).total
    free = lambda: (plan.MARGIN + needed, 8 << 30)  # noqa: E731
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "memGetInfo", free)
    pycap.train(tiny(data, tmp_path / "run", **how))
    assert "needs 0.0 GiB on the GPU; micro-batch 3, 3 passes a step\n" in capsys.readouterr().out
    pairs = zip(losses(tmp_path / "run"), losses(tmp_path / "whole"), strict=True)
    assert all(a == (kind, pytest.approx(b, rel=1e-5)) for a, (kind, b) in pairs)
    assert config.load(tmp_path / "run" / "config.yaml").micro_batch == 0
    needed = 1000
    with pytest.raises(config.ConfigError, match=r"does not fit into 0\.0 GiB: even with one image a pass it needs"):
        pycap.train(tiny(data, tmp_path / "none", **how))


def test_the_run_says_where_it_computes_and_why(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(**options: Any) -> str:
        run = _Run(tiny(data, tmp_path / "run", **options).validate(), ALONE)
        try:
            run._announce()
        finally:
            run.record.close()
        return capsys.readouterr().out

    monkeypatch.delenv("PYCAP_DEVICE")
    with backends.use("reference", "cuda"):
        assert "computing on cuda\n" in said()
    backends.select("auto", "reference")
    assert "computing on cpu (no GPU: backend reference was asked for)" in said()
    backends.select("cpu", "reference")
    assert "computing on cpu\n" in (plain := said()) and "tf32" not in plain
    assert "tf32 is a GPU's: on the CPU it computes as --precision fp32 does" in said(precision="tf32")


def test_options_name_the_devices_and_backends_that_there_are() -> None:
    named = {name for chain in (*backends.CHAINS.values(), *backends.BY_NAME.values()) for name in chain}
    assert set(config.BACKENDS) == {"auto", *named}
    assert config.DEVICES == ("auto", *device.DEVICES) and set(backends.CHAINS) == set(device.DEVICES)
    parsed = config.parse_args(["--device", "cuda", "--backend", "triton", "--precision", "tf32"])
    assert (parsed.device, parsed.backend, parsed.precision) == ("cuda", "triton", "tf32")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """How the kernel of linear layers is told to multiply, call by call."""
    told: list[str] = []
    plain = backends.kernels.linear_forward

    def linear_forward(*arguments: Any) -> None:
        told.append(backends.float32_products())
        plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(backends.kernels, "linear_forward", linear_forward)
        yield told


def test_a_captioner_multiplies_in_its_own_precision(trained: Path, data: Path, products: list[str]) -> None:
    captioners = {precision: Captioner.load(trained, precision) for precision in ("tf32", "bf16", "fp32")}
    for precision, captioner in captioners.items():
        products.clear()
        list(captioner.caption(sorted((data / "val2017").iterdir())[:1]))
        assert set(products) == {"fp32" if precision == "fp32" else "tf32"}


def test_a_trainer_multiplies_in_its_own_precision(data: Path, tmp_path: Path, products: list[str]) -> None:
    for precision, other in (("tf32", "fp32"), ("fp32", "tf32"), ("bf16", "fp32")):
        run = _Run(tiny(data, tmp_path / precision, precision=precision).validate(), ALONE)
        batch = next(run.loaders.train.epoch(0))
        run.trainer.begin_epoch(0)
        for work, given in ((run.trainer.step, batch), (run.trainer.loss, [batch])):
            backends.set_float32_products(other)
            products.clear()
            work(given)  # type: ignore[operator]
            assert set(products) == {"fp32" if precision == "fp32" else "tf32"}
        run.record.close()


def test_on_the_cpu_tf32_is_fp32(data: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "tf32"):
        pycap.train(tiny(data, tmp_path / precision, backend="reference", precision=precision, epochs=1))
    assert losses(tmp_path / "tf32") == losses(tmp_path / "fp32")
    assert backends.float32_products() == "tf32"
