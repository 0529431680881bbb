"""Schedules of learning rates: what an initial rate is multiplied by at each step, and what must be saved to go on exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class ScheduleStateError(ValueError):
    """Saved state of a schedule that is of another kind."""


@dataclass
class Schedule:
    """A constant rate after a linear warm-up. `step` counts the steps made so far, from 0."""

    warmup_steps: int = 0
    min_lr: float = 0.0

    def factor(self, step: int) -> float:
        """What the initial rate is multiplied by, warm-up apart."""
        return 1.0

    def lr(self, initial: float, step: int) -> float:
        """The rate for a group whose initial rate is `initial`; never raised to `min_lr` where it started lower."""
        if step < self.warmup_steps:
            return initial * (step + 1) / self.warmup_steps
        return max(initial * self.factor(step), min(self.min_lr, initial))

    def observe(self, score: float) -> bool:
        """Tell a validation's result, lower being better; True where that lowered the rate."""
        return False

    def state(self) -> dict[str, Any]:
        """What must be saved to go on exactly; plain JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        if state:
            raise ScheduleStateError(
                f"schedule state {dict(state)} is of another lr_schedule; resume with the same one"
            )


@dataclass
class StepDecay(Schedule):
    """From step `start` on, multiplied by `rate` each `every` steps."""

    start: float = 0.0
    every: float = 1.0
    rate: float = 0.5

    def factor(self, step: int) -> float:
        return self.rate ** math.floor(max(step - self.start, 0) / self.every)


@dataclass
class Cosine(Schedule):
    """Half a cosine from the end of the warm-up down to 0 at `total_steps` (Loshchilov & Hutter 2017, no restarts)."""

    total_steps: int = 1

    def factor(self, step: int) -> float:
        length = max(self.total_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(max(step - self.warmup_steps, 0) / length, 1)))


@dataclass
class Plateau(Schedule):
    """Multiplied by `rate` when more than `patience` validations in a row brought no new best."""

    rate: float = 0.5
    patience: int = 2
    scale: float = field(default=1.0, init=False)
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)

    def factor(self, step: int) -> float:
        return self.scale

    def observe(self, score: float) -> bool:
        if self.best is None or score < self.best:
            self.best, self.waited = score, 0
            return False
        self.waited += 1
        if self.waited <= self.patience:
            return False
        self.scale, self.waited = self.scale * self.rate, 0
        return True

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"scale", "best", "waited"}:
            raise ScheduleStateError(
                f"schedule state {dict(state)} is not of lr_schedule plateau; resume with the same one"
            )
        self.scale, self.best, self.waited = state["scale"], state["best"], state["waited"]


def make_schedule(
    kind: str,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
    decay_start: float = 0.0,
    decay_every: float = 1.0,
    decay_rate: float = 0.5,
    patience: int = 2,
) -> Schedule:
    """The schedule called `kind` (constant, step, cosine, plateau); all lengths in steps, patience in validations."""
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: Schedule(warmup_steps, min_lr),
        "step": lambda: StepDecay(warmup_steps, min_lr, decay_start, decay_every, decay_rate),
        "cosine": lambda: Cosine(warmup_steps, min_lr, total_steps),
        "plateau": lambda: Plateau(warmup_steps, min_lr, decay_rate, patience),
    }
    if kind not in makers:
        raise ValueError(f"lr_schedule {kind!r} is unknown; use {', '.join(makers)}")
    return makers[kind]()
