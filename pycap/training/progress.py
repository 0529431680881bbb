"""What the person at the terminal sees of a run: loss, images a second and time left."""

from __future__ import annotations

from pycap import progress
from pycap.training.feed import TOLERATED


class Display(progress.Display):
    """A bar over the steps of a run, or lines."""

    def step(
        self, epoch: int, step: int, loss: float, rate: float, waited: float = 0.0, reward: float | None = None
    ) -> None:
        """After each step. epoch: from 1. rate: images a second. waited: the part of the time in which images were waited
        for (`Stall.share`), shown where it is more than is tolerated. reward: shown in place of the loss, where there is one.
        """
        note = f"loss {loss:.4f}" if reward is None else f"reward {reward:.4f}"
        note += f"  {rate:.0f} images/s"
        if waited > TOLERATED:
            note += f"  {100 * waited:.0f} % waiting for images"
        self.advance(step, f"epoch {epoch}", note)
