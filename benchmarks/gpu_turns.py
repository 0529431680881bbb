"""Lets the sides of a GPU case work in turns on one device, and keeps what each took, made, or failed with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.sides import Unavailable, Work
from benchmarks.timing import Budget, Samples, alternate

Outputs = dict[str, np.ndarray]


def timed(run: Callable[[], Any], synchronize: Callable[[], None]) -> Callable[[int], list[float]]:
    """A turn: n calls, from an idle device to an idle device; the mean counts once."""

    def turn(calls: int) -> list[float]:
        synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize()
        return [(time.perf_counter() - begin) / calls]

    return turn


def measure_ceilings(synchronize: Callable[[], None], n: int, copied: int) -> dict[str, float]:
    """FLOP/s of an n^3 matrix product by dtype, and bytes/s of a copy, read and written, by PyTorch."""
    from benchmarks.peers import torch_gpu

    best = {}
    for what, run in torch_gpu.ceilings(n, copied).items():
        turn = timed(run, synchronize)
        turn(2)
        best[what] = (2.0 * copied if what == "copy" else 2.0 * n**3) / min(turn(5)[0] for _ in range(5))
    return best


@dataclass
class Found:
    """By side: its samples and its results on the host, or why it has none: it failed, or cannot do the case."""

    samples: dict[str, Samples] = field(default_factory=dict)
    outputs: dict[str, Outputs] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unable: dict[str, str] = field(default_factory=dict)

    def reason(self, name: str) -> str:
        """Why a side has no samples, or ""."""
        return self.failed.get(name) or self.unable.get(name, "")


def compete(sides: Mapping[str, Callable[[], Work]], where: Any, budget: Budget) -> Found:
    """Prepares the sides' works, one after the other, and times them in turns. where: a `gpu.Machine`."""
    works: dict[str, Work] = {}
    found = Found()
    for name, prepare in sides.items():
        try:
            work = prepare()
            result = work.run()
            where.synchronize()
            found.outputs[name] = {key: where.host(array) for key, array in work.outputs(result).items()}
            works[name] = work
        except Unavailable as reason:
            found.unable[name] = str(reason)
        except (
            Exception
        ) as error:  # one side's failure is a row's note, whatever its framework raises; the rest goes on
            found.failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"
    first = dict.fromkeys(works, 0.0)
    for name, work in works.items() if budget.turn_s else ():  # else a turn is one call, whatever it takes
        turn = timed(work.run, where.synchronize)
        turn(1)
        first[name] = turn(1)[0]
    found.samples = alternate({n: timed(w.run, where.synchronize) for n, w in works.items()}, first, budget)
    return found


def peer_work(case: Case, arrays: dict[str, Any], name: str) -> Work:
    """PyTorch's work, by one of its peers' names."""
    from benchmarks.peers import torch_gpu

    return torch_gpu.prepare(case, arrays, name)
