"""What the person at the terminal sees of long work: a progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

_PLAIN_EVERY_S = 15.0


class Display:
    """A bar over `total` steps on a terminal; in a pipe or a log file, a line every 15 seconds; if `quiet`, nothing."""

    def __init__(
        self, total: int | None, done: int, what: str = "training", unit: str = "step", quiet: bool = False
    ) -> None:
        """total: None where nobody knows. done: what an earlier process did; it counts neither for the rate nor for the time
        left. what: said beside the bar. unit: of what is counted, said in lines."""
        self.console = Console(soft_wrap=True, highlight=False, quiet=quiet)
        self.total, self.first, self.unit = total, done, unit
        self.started = self.printed = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self.started

    def advance(self, done: int, what: str, note: str) -> None:
        """So much is done, of what, with what else is worth knowing."""
        if self.bar:
            self.bar.update(self.task, completed=done, description=what, note=note)
        elif self._line_is_due():
            of = "" if self.total is None else f"/{self.total}"
            text = f"{what}  {self.unit} {done}{of}  {note}"
            if self.total is not None:
                left = self.elapsed / max(done - self.first, 1) * (self.total - done)
                text += f"  {left / 60:.1f} min left"
            self.say(text)

    def watch(self, what: str, items: Iterable[Item], total: int) -> Iterator[Item]:
        """The items, with a bar of their own (or lines) while they last. what: said beside it."""
        task = self.bar.add_task(what, total=total, note="") if self.bar else None
        try:
            for number, item in enumerate(items, 1):
                yield item
                if self.bar and task is not None:
                    self.bar.update(task, completed=number)
                elif self._line_is_due():
                    self.say(f"{what}: {number}/{total}")
        finally:
            if self.bar and task is not None:
                self.bar.remove_task(task)

    def say(self, text: str) -> None:
        """A line (or paragraph) of plain text; above the bar where there is one."""
        self.console.print(text, markup=False)

    def _line_is_due(self) -> bool:
        now = time.monotonic()
        due = now - self.printed >= _PLAIN_EVERY_S
        if due:
            self.printed = now
        return due
