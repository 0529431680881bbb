"""tests.faults.flips: what it counts of a trained checkpoint, and that it would tell of damage that goes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycap.checkpoint import integrity
from tests.faults import flips
from tests.train.checkpoints import save

pytestmark = pytest.mark.faults


def test_all_damage_to_a_trained_checkpoint_is_detected_and_named(trained: Path) -> None:
    found = flips.measure(trained, 100, 1)
    assert found["flips"]["missed"] == [] and found["damage"]["missed"] == []
    counts = found["flips"]["all"]
    assert counts["flips"] == counts["detected"] == counts["file_named"] == 100
    assert counts["tensor_named"] == counts["in_a_tensor"] > 30
    assert all(files["flips"] > 3 for files in found["flips"]["files"].values()) and len(found["flips"]["files"]) == 6
    kinds = found["damage"]["kinds"]
    assert kinds["cut off"]["made"] == 120 and kinds["of another save"] == {"made": 6, "detected": 6, "file_named": 6}
    assert kinds["tensors exchanged"]["made"] > 10


def test_what_goes_unnoticed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("last", "foreign"):
        save(tmp_path / name, 1)
    monkeypatch.setattr(integrity, "check", lambda *_: None)
    found = flips.flips(tmp_path / "last", 60, 0)
    assert found["missed"] and found["all"]["detected"] < 60
    assert flips.damage(tmp_path / "last", tmp_path / "foreign", 0)["missed"]


def test_what_stands_in_the_results_has_nothing_missed() -> None:
    record = json.loads(flips.OUT.read_text())
    assert record["command"] == "python -m tests.faults.flips --flips 1000 --seed 0"
    assert record["flips"]["all"]["flips"] == record["flips"]["all"]["detected"] == 1000
    assert record["flips"]["missed"] == record["damage"]["missed"] == []
