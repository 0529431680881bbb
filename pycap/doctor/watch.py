"""What the person at the terminal sees while a data folder is looked at, and how it is stopped."""

from __future__ import annotations

from types import TracebackType

from pycap.doctor.folder import Watch
from pycap.progress import Display
from pycap.signals import Stopping


class Shown(Watch):
    """A bar over the images of a folder (lines in a pipe, every 15 seconds); the first Ctrl-C ends the look."""

    def __init__(self, signals: Stopping, quiet: bool) -> None:
        self._signals, self._quiet = signals, quiet
        self._display: Display | None = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def step(self, what: str) -> bool:
        self._end()
        return not self._signals.number

    def images(self, done: int, of: int) -> bool:
        if self._display is None:
            self._display = Display(of, 0, "images", "image", self._quiet)
            self._display.__enter__()
        rate = done / max(self._display.elapsed, 1e-9)
        self._display.advance(done, "images", f"{rate:.0f}/s")
        if done >= of:
            self._end()
        return not self._signals.number

    def _end(self) -> None:
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None
