"""--early-stop: when a run ends, that a better score gives it patience again, and that resuming remembers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pycap
from pycap import checkpoint
from pycap.config import TrainConfig
from pycap.training.captioning import Captioning, Validation
from tests.train import runs
from tests.train.runs import rows

SERIES = [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 1.25, 0.5]  # 2.5 is worse once; 1.0, 1.5 and 1.25 are no better than 1.0


def tiny(data: Path, out: Path, **options: object) -> TrainConfig:
    """An epoch is one step, and one image is captioned in the end."""
    return runs.tiny(data, out, batch_size=24, val_images_use=1, **options)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float], name: str = "val_loss") -> None:
    series: Iterator[float] = iter(scores)

    def validate(self: Captioning, held_out: object) -> Validation:
        return Validation({"val_loss": 1.0, name: next(series)}, [])

    monkeypatch.setattr(Captioning, "validate", validate)


def test_it_ends_after_validations_without_a_better_score(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, SERIES)
    run = pycap.train(tiny(data, tmp_path / "run", epochs=8, early_stop=3)).folder
    assert [r["val_loss"] for r in rows(run, "val")] == SERIES[:7]
    assert checkpoint.load(run).state["position"]["epoch"] == 3  # the fourth was the best
    said = "early stop: 3 validations without a better val_loss than 1.0000; the best checkpoint is "
    assert said in " ".join(capsys.readouterr().out.split())
    (remark,) = rows(run, "remark")
    assert str(remark["text"]).startswith(said) and remark["step"] == 7


def test_more_is_better_for_other_scores(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.25, 0.5, 0.5, 0.375, 0.75], "CIDEr")
    run = pycap.train(tiny(data, tmp_path / "run", epochs=5, early_stop=2, save_best_on="CIDEr")).folder
    assert len(rows(run, "val")) == 4
    assert "CIDEr than 0.5000" in str(rows(run, "remark")[0]["text"])


@pytest.mark.parametrize("early_stop", [0, 2])
def test_it_does_not_end_a_run_that_gets_better_in_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early_stop: int
) -> None:
    scores = [3.0, 3.5, 2.0, 2.5] if early_stop else [1.0, 2.0, 3.0, 4.0]
    scripted(monkeypatch, scores)
    run = pycap.train(tiny(data, tmp_path / "run", epochs=4, early_stop=early_stop)).folder
    assert len(rows(run, "val")) == 4
    assert rows(run, "remark") == []


@pytest.mark.parametrize(
    "epochs", [2, 3, 6]
)  # before a better score, between the worse ones, as the last of them comes
def test_resuming_remembers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    scripted(monkeypatch, SERIES)
    out = tmp_path / "run"
    pycap.train(tiny(data, out, epochs=8, early_stop=3, max_steps=epochs))
    assert len(rows(out, "val")) == epochs
    pycap.train(pycap.config.resumed(out, max_steps=0))
    assert [r["val_loss"] for r in rows(out, "val")] == SERIES[:7]
    state = checkpoint.load(out, prefer="last").state["position"]
    assert (state["epoch"], state["stale"], state["best"]) == (7, 3, 1.0)


def test_a_stopped_run_that_is_resumed_stays_stopped_unless_it_is_given_patience(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [1.0, 2.0, 0.5])
    run = pycap.train(tiny(data, tmp_path / "run", epochs=3, early_stop=1)).folder
    pycap.train(pycap.config.resumed(run))
    assert len(rows(run, "val")) == 2
    pycap.train(pycap.config.resumed(run, early_stop=2))
    assert [r["val_loss"] for r in rows(run, "val")] == [1.0, 2.0, 0.5]
