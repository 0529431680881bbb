"""Taking turns: who works when, for how long, and what the samples come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Budget:
    """How long a case may take: at least `rounds` rounds, then more until `seconds` have gone, at most `most_rounds`.

    long_s: where two rounds take longer than this, they are enough. turn_s: a turn is as many calls as fit into it, at least
    one.
    """

    rounds: int = 7
    most_rounds: int = 25
    seconds: float = 10.0
    turn_s: float = 0.2
    long_s: float = float("inf")


FULL = Budget()
SHORT = Budget(rounds=3, most_rounds=9, seconds=1.5, turn_s=0.1, long_s=8.0)


@dataclass
class Samples:
    """Seconds of each timed call of one side."""

    seconds: list[float] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.seconds, q))

    @property
    def median(self) -> float:
        return self.quantile(0.5)


def calls_in_a_turn(call_s: float, budget: Budget) -> int:
    """How many calls of `call_s` seconds make a turn."""
    return max(1, min(200, int(budget.turn_s / max(call_s, 1e-9))))


def alternate(
    turns: Mapping[str, Callable[[int], Sequence[float]]],
    first: Mapping[str, float],
    budget: Budget,
    progress: Callable[[int, Mapping[str, Samples]], None] = lambda round_, samples: None,
) -> dict[str, Samples]:
    """Let the sides work in turns; each round in the opposite order of the one before.

    turns: by side, a function that makes n calls and returns their seconds. first: seconds of one call, to size the turns.
    """
    samples = {name: Samples() for name in turns}
    calls = {name: calls_in_a_turn(first[name], budget) for name in turns}
    begin = time.perf_counter()
    for round_ in range(budget.most_rounds):
        gone = time.perf_counter() - begin
        if (round_ >= budget.rounds and gone > budget.seconds) or (round_ >= 2 and gone > budget.long_s):
            break
        for name in list(turns) if round_ % 2 == 0 else list(turns)[::-1]:
            samples[name].seconds += turns[name](calls[name])
        progress(round_, samples)
    return samples
