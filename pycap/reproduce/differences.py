"""Rows of logs and arrays compared bit for bit; how much they differ, and whether rounding can explain it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pycap.device import to_host
from pycap.training.provenance import flat

#: Of a row of log.jsonl: how long things took.
TIMES = ("images_per_s", "waited")

#: Unit roundoff of what is multiplied, by `--precision`: of float32, TensorFloat-32, bfloat16.
UNITS = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}
#: What rounding does to a loss or a norm in one step, in units of roundoff, at most; the factor by which the next step may
#: magnify that at most, and each further step between two rows. docs/reliability.md says what was measured.
FIRST, GROWTH, FURTHER = 64.0, 32.0, 2.0
#: Where rounding has grown to this it has made another run, from which nothing can be told any more.
LARGEST = 1e-2

#: How a row differs: not at all, or by no more than rounding; by rounding that has grown past `LARGEST`; by more.
Kind = Literal["within", "grown", "beyond"]


@dataclass(frozen=True)
class Difference:
    """quantity: by dotted name, as `norms.cnn`; then, now: None for what is not there. relative: of two numbers, their distance
    over the larger one; None of other things."""

    step: int
    epoch: int | None
    quantity: str
    then: Any
    now: Any
    relative: float | None


def compare_rows(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """In what two rows of a log differ, times left out."""
    before, after = flat(then), flat(now)
    step = int(after.get("step", before.get("step", 0)))
    return [
        Difference(
            step,
            after.get("epoch"),
            name,
            before.get(name),
            after.get(name),
            relative(before.get(name), after.get(name)),
        )
        for name, pair in {name: (before.get(name), after.get(name)) for name in (*before, *after)}.items()
        if name not in TIMES and not same(*pair)
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are written alike: NaN is NaN, -0.0 is not 0.0."""
    return json.dumps(one) == json.dumps(other)


def relative(one: Any, other: Any) -> float | None:
    """How far two numbers are apart, over the larger; infinity where one of them is not finite; None where they are none."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)):
        return None
    if not (math.isfinite(one) and math.isfinite(other)):
        return 0.0 if same(one, other) else math.inf
    largest = max(abs(one), abs(other))
    return abs(one - other) / largest if largest else 0.0


class Rounding:
    """Whether rounding explains how two runs part, row after row of their logs.

    Sums that are made in another order differ by some units of roundoff after a step, and each step may magnify what the one
    before left: by so much at most may a row's loss and norms differ. What is not summed (tokens, learning rate) must be the
    same. Scores of captions are not judged by themselves: a caption changes as a whole or not at all.
    """

    def __init__(self, precision: str) -> None:
        self._first = FIRST * UNITS[precision]
        self._step = 0
        self.largest = 0.0

    def judge(self, row: Mapping[str, Any], found: list[Difference]) -> Kind:
        """Of each row in turn, with what is found to differ in it."""
        steps = max(int(row["step"]) - self._step, 1)
        self._step = int(row["step"])
        judged = [difference for difference in found if not self._score(difference.quantity)]
        if any(difference.relative is None or difference.quantity in _EXACT for difference in judged):
            return "beyond"
        limit = max(self._first, self.largest) * GROWTH * FURTHER ** min(steps - 1, 100)
        largest = max((difference.relative or 0.0 for difference in judged), default=0.0)
        if largest > limit:
            return "beyond"
        self.largest = max(self.largest, largest)
        return "within" if self.largest <= LARGEST else "grown"

    @staticmethod
    def _score(quantity: str) -> bool:
        return quantity.startswith(("BLEU-", "ROUGE-L", "CIDEr", "METEOR", "top-", "distinct"))


_EXACT = ("step", "epoch", "tokens", "lr", "kind", "objective")


@dataclass(frozen=True)
class ArrayDifference:
    """values: how many of the array's differ, of how many. largest: their distance; relative: that over the array's largest
    value."""

    name: str
    values: int
    of: int
    largest: float
    relative: float


def compare_arrays(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[ArrayDifference]:
    """Which arrays differ in a bit, those that differ most first. One that is missing, or of another shape or type, differs
    infinitely."""
    found = []
    for name in dict.fromkeys((*then, *now)):
        if name not in then or name not in now:
            found.append(ArrayDifference(name, 0, 0, math.inf, math.inf))
            continue
        one, other = np.asarray(then[name]), to_host(now[name])
        if one.shape != other.shape or one.dtype != other.dtype:
            found.append(ArrayDifference(name, one.size, one.size, math.inf, math.inf))
        elif one.tobytes() != np.ascontiguousarray(other).tobytes():
            found.append(_apart(name, one, other))
    return sorted(found, key=lambda difference: -difference.relative)


def _apart(name: str, one: np.ndarray, other: np.ndarray) -> ArrayDifference:
    bits = f"u{one.dtype.itemsize}"
    differ = np.ascontiguousarray(one).view(bits) != np.ascontiguousarray(other).view(bits)
    a, b = one[differ].astype(np.float64), other[differ].astype(np.float64)
    apart = np.abs(a - b)
    largest = float(apart.max()) if np.isfinite(apart).all() else math.inf
    scale = float(np.abs(one.astype(np.float64)).max(initial=0.0, where=np.isfinite(one)))
    return ArrayDifference(name, int(differ.sum()), one.size, largest, largest / scale if scale else math.inf)
