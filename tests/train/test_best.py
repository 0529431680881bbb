"""What makes a checkpoint the best: any score, more being better, or the loss on held-out images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import pycap
from pycap import checkpoint, metrics
from pycap.config import SCORES, ConfigError
from tests.train.runs import tiny


@pytest.mark.parametrize("name", ["CIDEr", "METEOR"])
def test_the_best_checkpoint_is_that_of_the_highest_score(data: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    values = iter([0.2, 0.9, 0.5])
    asked: list[Any] = []

    def score(results: dict[Any, str], references: dict[Any, list[str]], also: list[str]) -> dict[str, float]:
        asked.append(also)
        return {**dict.fromkeys(SCORES, 0.0), name: next(values)}

    monkeypatch.setattr(metrics, "score", score)
    monkeypatch.setattr(metrics, "meteor_missing", lambda: "")
    plateau = {"lr_schedule": "plateau", "plateau_patience": 0, "lr_decay_rate": 0.5}
    folder = pycap.train(tiny(data, tmp_path / "run", epochs=3, save_best_on=name, **plateau)).folder
    assert checkpoint.load(folder, prefer="best").state["scores"][name] == 0.9
    assert checkpoint.load(folder, prefer="last").state["scores"][name] == 0.5
    schedule = checkpoint.load(folder, prefer="last").state["trainer"]["schedule"]
    assert schedule == {"scale": 0.5, "best": -0.9, "waited": 0}, "the rate falls where that score gets no better"
    page = (folder / "samples.html").read_text("utf-8")
    told = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert (told["checkpoint"], told["step"], told[name]) == ("best/", "6", "0.9000"), "whose captions the page shows"
    assert asked == [["METEOR"] if name == "METEOR" else []] * 3, "a Java program is started only where it decides"


def test_a_run_that_could_not_be_scored_by_meteor_does_not_begin(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="save_best_on: METEOR cannot be computed here: no java on PATH: install"):
        pycap.train(tiny(data, tmp_path / "run", save_best_on="METEOR"))
    assert not (tmp_path / "run").exists()
