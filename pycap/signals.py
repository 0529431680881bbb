"""Ctrl-C and SIGTERM as a request, which long work heeds where it can stop without loss."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Entered with `with`: the first Ctrl-C or SIGTERM sets `number`, the second stops at once. Outside the main thread the
    program around handles signals, and `number` stays None."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Stopping:
        try:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
