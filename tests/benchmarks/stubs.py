"""Sides without a process: they answer as a `benchmarks.worker.Remote` does."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.sides import Unavailable
from benchmarks.worker import SideError

CASE = Case(
    "conv2d", "tiny", "forward", "float32", {"N": 1}, flops=4e6, nbytes=2e6, peers=("torch",), label="tiny work"
)


class StubRemote:
    """A side whose every call takes `seconds`, and whose result is `output`.

    refuses: the reason it cannot do a case. breaks: the turn, counted from 0, at which its process dies. log: what was
    asked of all sides, in order.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        output: Any = (1.0, 2.0),
        *,
        missing: str = "",
        refuses: str = "",
        breaks: int | None = None,
        log: list[tuple[str, str]] | None = None,
    ) -> None:
        self.name, self.seconds, self.output = name, seconds, np.float32(output)
        self.missing, self.refuses, self.breaks = missing, refuses, breaks
        self.log = [] if log is None else log
        self.turns = 0
        self.closed = False

    def receive(self) -> str:
        if self.missing:
            raise Unavailable(self.missing)
        return f"{self.name} 1.0"

    def call(self, method: str, *arguments: Any) -> Any:
        self.log.append((self.name, method))
        if method == "prepare":
            if self.refuses:
                raise Unavailable(self.refuses)
            return "plain", self.seconds
        if method == "turn":
            self.turns += 1
            if self.breaks == self.turns - 1:
                raise SideError(f"{self.name}: Traceback\n  in a line\nValueError: broken")
            return [self.seconds] * arguments[0]
        return {
            "outputs": {"y": self.output},
            "peak_mib": 12.0,
            "forget_peak": None,
            "release": None,
            "ceilings": {"float32": self.seconds, "copy": 2 * self.seconds},
        }[method]

    def close(self) -> None:
        self.closed = True
