"""What is printed while a run goes on, where there is no terminal."""

from __future__ import annotations

from typing import Any

import pytest

from pycap import progress
from pycap.training.feed import TOLERATED
from pycap.training.progress import Display


@pytest.mark.parametrize(
    ("waited", "told"),
    [(None, ""), (0.0, ""), (TOLERATED, ""), (0.021, "  2 % waiting for images"), (0.5, "  50 % waiting for images")],
)
def test_waiting_for_images_is_shown_where_it_is_too_much(
    waited: float | None, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    more: dict[str, Any] = {} if waited is None else {"waited": waited}
    with Display(100, 0) as display:
        display.step(1, 1, 2.5, 30.0, **more)  # nothing yet: a line every 15 seconds
        now[0] = 60.0
        display.step(1, 2, 2.25, 30.0, **more)
    assert capsys.readouterr().out == f"epoch 1  step 2/100  loss 2.2500  30 images/s{told}  49.0 min left\n"


def test_a_reward_is_shown_in_place_of_a_loss_that_means_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Display(100, 0) as display:
        now[0] = 60.0
        display.step(1, 2, -7.5, 30.0, reward=0.71588)
    assert capsys.readouterr().out == "epoch 1  step 2/100  reward 0.7159  30 images/s  49.0 min left\n"
