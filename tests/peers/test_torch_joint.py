"""The benchmark beside PyTorch runs from its command line on the demo set, and its two sides train the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")

from benchmarks.peers import torch_joint

pytestmark = pytest.mark.peers

SMALL = {
    "demo-train": 14,
    "demo-val": 5,
    "cnn-width": 0.25,
    "fc-size": 16,
    "rnn-size": 16,
    "input-encoding-size": 16,
    "batch-size": 4,
    "word-count-threshold": 1,
    "drop-prob-lm": 0,
    "drop-prob-cnn": 0,
    "threads": 1,
    "warmup": 1,
    "memory-format": "channels_last",
    "peer-optimizer": "fused",
    "peer-loss": "compact",
    "steps": 3,
    "segments": 2,
    "json": "rows/result.jsonl",
}


def test_both_sides_train_alike_and_the_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert torch_joint.main(["--dev-loss", *(f"--{name}={value}" for name, value in SMALL.items())]) == 0
    shown = capsys.readouterr().out
    assert "trains on the demo set" in shown
    [line] = Path("rows/result.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["steps"] == 6  # two turns of three; the epoch of four batches ends inside the second
    assert len(row["dev_loss"]) == len(row["peer_dev_loss"]) == 2
    assert row["dev_loss"] == pytest.approx(row["peer_dev_loss"], rel=1e-3)
    assert row["dev_loss"][1] < row["dev_loss"][0]
    assert row["ratio"] == pytest.approx(row["peer_median_s"] / row["median_s"])
    assert row["q20_s"] <= row["median_s"] <= row["q80_s"]
    assert row["peak_mib"] > 10 and row["peer_peak_mib"] > 10
    assert f"ratio torch / pycap: {row['ratio']:.3f}" in shown
    assert not list(tmp_path.glob("runs/*")), "a benchmark leaves no run behind"


def test_missing_data_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert torch_joint.main(["--stage", "flickr8k", "--data", str(tmp_path / "nowhere"), "--steps", "1"]) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error and len(error.strip().splitlines()) == 1


def test_epochs_and_steps_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        torch_joint.main(["--epochs", "2", "--steps", "3"])
    assert "give one" in capsys.readouterr().err
