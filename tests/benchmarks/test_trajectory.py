"""Losses beside the CPU's: bf16 stays within the bound, a loss that is off does not, and the file of expected ones counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import trajectory
from benchmarks.results import read

SHORT = ["--device", "cpu", "--steps", "3", "--batch-size", "2"]


def test_bf16_follows_float32_and_a_wrong_loss_is_found(tmp_path: Path, capsys) -> None:
    losses, rows = tmp_path / "losses.json", tmp_path / "rows.jsonl"
    command = [*SHORT, "--expected", str(losses), "--json", str(rows)]
    assert trajectory.main(command) == 0
    [row] = read(rows)
    assert row["op"] == "trajectory" and row["dtype"] == "bfloat16" and 0 < row["err"] < 0.01
    assert len(row["note"].split()) == 3
    stored = json.loads(losses.read_text())
    stored["losses"][1] *= 1.02
    losses.write_text(json.dumps(stored))
    assert trajectory.main(command) == 1, "the file is read, and 2 % are too much"
    assert "allowed 0.01" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="remove it"):
        trajectory.main([*command, "--seed", "7"])
    with pytest.raises(SystemExit, match="holds 3 losses"):
        trajectory.main([*command, "--steps", "4"])


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(trajectory.device, "obstacle", lambda: "no NVIDIA driver")
    assert trajectory.main(["--steps", "3"]) == 1
    assert "no NVIDIA driver; --device cpu rehearses" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_no_agreement() -> None:
    assert not trajectory.distance([1.0, float("nan")], [1.0, 1.0]) <= trajectory.BOUND
    assert trajectory.distance([1.0, 2.02], [1.0, 2.0]) == pytest.approx(0.01)
