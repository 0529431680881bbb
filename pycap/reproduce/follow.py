"""Told of the run as it is made again: compares it with the original, and ends it where that ended or where they part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pycap import checkpoint
from pycap.data.loader import Batch
from pycap.distributed import Ranks
from pycap.reproduce.changes import Change, changes, table
from pycap.reproduce.differences import ArrayDifference, Difference, Kind, Rounding, compare_arrays, compare_rows
from pycap.reproduce.original import Original, ReproduceError, Segment
from pycap.training.shares import led
from pycap.training.watch import Watch


class Ended(Exception):
    """There is nothing more to compare, or the runs have parted."""


@dataclass(frozen=True)
class Row:
    """A row in which the runs differ. after: the step of the row before, which is the same. files: of the batches of the steps
    between. kind: whether rounding explains it."""

    after: int
    found: list[Difference]
    files: dict[int, tuple[str, ...]]
    kind: Kind


@dataclass(frozen=True)
class Tensors:
    """What of a checkpoint of the original differs after its step. what: `last/model` and the like."""

    step: int
    what: str
    found: list[ArrayDifference]


@dataclass
class Findings:
    """steps: how many were made again; rows: how many were compared; compared: checkpoints, and of which step.

    first: the first row that differs; beyond: the first that rounding does not explain; grown: the first in which rounding has
    grown so far that the rows after it tell nothing. largest: relative difference that rounding explains.
    """

    changes: list[Change] = field(default_factory=list)
    steps: int = 0
    rows: int = 0
    compared: dict[str, int] = field(default_factory=dict)
    first: Row | None = None
    beyond: Row | None = None
    grown: Row | None = None
    tensors: list[Tensors] = field(default_factory=list)
    ending: list[str] = field(default_factory=list)
    largest: float = 0.0

    @property
    def same(self) -> bool:
        """Whether all that was compared is the same, bit for bit."""
        return not (self.first or self.tensors or self.ending)

    @property
    def expected(self) -> bool:
        """Whether something is otherwise than it was, by which results may differ."""
        return any(change.matters != "no" for change in self.changes)


class Follow(Watch):
    """Of one original; `until`: the last step to compare. say: told what a person should know; keep_going: whether the run goes
    on where it differs by more than what is otherwise now explains."""

    def __init__(
        self,
        original: Original,
        folder: Path,
        until: int,
        ranks: Ranks,
        say: Callable[[str], None],
        *,
        keep_going: bool,
    ) -> None:
        self.original, self.found = original, Findings()
        self._folder, self._until, self._ranks, self._say, self._keep_going = folder, until, ranks, say, keep_going
        self._rows = [row for row in original.rows if row["step"] <= until]
        self._whole = original.finished and until >= original.step
        self._next, self._same_until = 0, 0
        self._rounding = Rounding(original.segments[-1].config.precision)
        self._batches: dict[int, tuple[str, ...]] = {}
        self._segment: Segment = original.segments[0]
        self.begun = self.left = self._parted = False

    def enter(self, segment: Segment) -> None:
        """The run goes on with the options of this part. `left`: whether it has come to the part's end."""
        self._segment, self.left = segment, False

    def finish(self) -> bool:
        """The run has come to its end. Returns whether the original has, too, so that what they left can be compared."""
        if self._next < len(self._rows):  # the original goes on
            missing = self._rows[self._next]
            self._note(Row(self._same_until, compare_rows(missing, {}), {}, "beyond"))
        return self._whole

    # the run --------------------------------------------------------------------------------------------------------

    def begins(self, record: Mapping[str, Any]) -> None:
        self.begun = True
        then = self._segment.record
        if then is None or record["step"]:
            return
        now = json.loads(json.dumps(record))
        self.found.changes = changes(then, now)
        for name, told in then["files"].items():
            _require_same(name, told, now["files"].get(name), self.original.folder)
        if self.found.changes:
            self._say("what is otherwise than it was:")
            for line in table(self.found.changes):
                self._say(f"  {line}")
        else:
            self._say("all that bits may depend on is as it was")

    def launched(self, step: int, batch: Batch) -> None:
        self._batches[step] = batch.file_names

    def row(self, row: Mapping[str, Any]) -> None:
        now = _without(json.loads(json.dumps(row)), self._folder)
        if now["step"] > self._until:
            raise Ended
        then: Mapping[str, Any] = {}
        if self._next < len(self._rows):
            then = _without(self._rows[self._next], self.original.folder)
        elif not self._whole:
            raise Ended
        self._next += 1
        self.found.rows += 1
        self.found.steps = now["step"]
        found = compare_rows(then, now)
        kind = self._rounding.judge(now, found)
        self.found.largest = self._rounding.largest
        if found:
            self._differs(Row(self._same_until, found, self._files(now["step"]), kind))
        elif self.found.first is None:
            self._same_until = now["step"]
            self._batches = {step: files for step, files in self._batches.items() if step > now["step"]}
        if now["kind"] != "train" or not self.wants(now["step"]):  # else `stands` comes next
            self._end_if_done()

    def wants(self, step: int) -> bool:
        return step == self._until or any(saved.step == step for saved in self.original.saved.values())

    def stands(self, step: int, model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
        self.found.steps = max(self.found.steps, step)
        for name, saved in self.original.saved.items():
            if saved.step == step:
                self.found.compared[name] = step
                found = led(self._ranks, partial(_tensors, saved.folder, name, step, model, optimizer))
                self.found.tensors += found
                self._parted |= (
                    bool(found) and self.found.first is None and not self._keep_going and not self.found.expected
                )
        self._end_if_done()

    def ends(self, position: Mapping[str, int]) -> bool:
        until = self._segment.until
        self.left = until is not None and all(position[name] == number for name, number in until.items())
        return self.left and not self._segment.limited

    # what comes of it -------------------------------------------------------------------------------------------------

    def _differs(self, row: Row) -> None:
        """Note a row that differs. Those by no more than rounding are followed where something explains that."""
        self._note(row)
        self._parted |= not self._keep_going and not (row.kind == "within" and self.found.expected)

    def _note(self, row: Row) -> None:
        if self.found.first is None:
            self.found.first = row
        if row.kind == "beyond" and self.found.beyond is None and self.found.grown is None:
            self.found.beyond = row
        if row.kind == "grown" and self.found.beyond is None and self.found.grown is None:
            self.found.grown = row

    def _end_if_done(self) -> None:
        done = not self._whole and self._next >= len(self._rows) and self.found.steps >= self._until
        if done or self._parted:
            raise Ended

    def _files(self, step: int) -> dict[int, tuple[str, ...]]:
        """Of the batches since the last row that is the same; of several ranks all of theirs."""
        own = {number: files for number, files in self._batches.items() if self._same_until < number <= step}
        everyone = self._ranks.each(own)
        return {number: tuple(name for rank in everyone for name in rank.get(number, ())) for number in own}


def _tensors(
    folder: Path, name: str, step: int, model: Mapping[str, Any], optimizer: Mapping[str, Any]
) -> list[Tensors]:
    saved = checkpoint.load(folder)
    pairs = [("model", saved.model, model)]
    if saved.optimizer is not None:
        pairs.append(("optimizer", saved.optimizer, optimizer))
    found = [Tensors(step, f"{name}/{what}", compare_arrays(then, now)) for what, then, now in pairs]
    return [tensors for tensors in found if tensors.found]


def _without(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row whose text does not tell the run's folder."""
    if "text" in row:
        row = {**row, "text": str(row["text"]).replace(str(folder), "RUN")}
    return row


def _require_same(name: str, then: Mapping[str, Any], now: Mapping[str, Any] | None, run: Path) -> None:
    """ReproduceError where weights that the run began from are others now."""
    for key in ("weights", "sha256"):
        if now is not None and key in then and then[key] != now.get(key):
            raise ReproduceError(
                f"{name}: {then['path']} is not what {run} began from (SHA-256 {then[key][:16]}... then, "
                f"{str(now.get(key))[:16]}... now): put back what it was"
            )
