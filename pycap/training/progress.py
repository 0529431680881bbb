"""What the person at the terminal sees: a progress bar with loss, images a second and time left, or plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pycap.training.feed import TOLERATED

Item = TypeVar("Item")

_PLAIN_EVERY_S = 15.0


class Display:
    """A bar over `total` steps on a terminal; in a pipe or a log file, a line every 15 seconds."""

    def __init__(self, total: int, done: int) -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.total, self.first = total, done
        self.started = self.printed = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal:
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
            self.task = self.bar.add_task("training", total=total, completed=done, note="")

    def __enter__(self) -> Display:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

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
        if self.bar:
            self.bar.update(self.task, completed=step, description=f"epoch {epoch}", note=note)
        elif time.monotonic() - self.printed >= _PLAIN_EVERY_S:
            self.printed = now = time.monotonic()
            left = (now - self.started) / max(step - self.first, 1) * (self.total - step)
            self.say(f"epoch {epoch}  step {step}/{self.total}  {note}  {left / 60:.1f} min left")

    def watch(self, what: str, items: Iterable[Item], total: int) -> Iterator[Item]:
        """The items, with a bar of their own (or lines) while they last. what: said beside it."""
        task = self.bar.add_task(what, total=total, note="") if self.bar else None
        try:
            for number, item in enumerate(items, 1):
                yield item
                if self.bar and task is not None:
                    self.bar.update(task, completed=number)
                elif time.monotonic() - self.printed >= _PLAIN_EVERY_S:
                    self.printed = time.monotonic()
                    self.say(f"{what}: {number}/{total}")
        finally:
            if self.bar and task is not None:
                self.bar.remove_task(task)

    def say(self, text: str) -> None:
        """A line (or paragraph) of plain text; above the bar where there is one."""
        self.console.print(text, markup=False)
