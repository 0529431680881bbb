"""Training that is killed (SIGKILL) again and again and resumed each time, against the same run left alone.

    python -m tests.faults.kills --kills 100 --seed 0

Sources of kills: a random moment (`moment`), the same for a `python train.py` of its own (`process`) and for one of two that
mpirun started (`rank`), and a file call of a random kind, before, in the middle of or after it (`call`), as `disk.c` counts
them. The result goes into benchmarks/results/faults.json after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.conftest import MPIRUN
from tests.faults import runs, shim
from tests.faults.results import Part
from tests.faults.server import ROOT, Outcome, Server
from tests.faults.shim import Call, Fault

ACTS = ("before", "middle", "after")
#: Of 20 kills so many are of each source.
SOURCES = {"moment": 7, "process": 3, "call": 10}


@dataclass
class Tally:
    """kills: by source and where they fell. differences: what was not alike, by run."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    restarts: int = 0  # from the beginning: nothing had been saved
    problems: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.kills.total()


@dataclass
class Reference:
    """A run left alone: its folder, how long it took, and its file calls."""

    folder: Path
    seconds: float
    calls: list[Call]


class Killer:
    """Runs of several kinds, each killed and resumed until it has ended."""

    def __init__(self, server: Server, work: Path, seed: int) -> None:
        self.server, self.work, self.random, self.tally = server, work, random.Random(seed), Tally()
        self.data = runs.make_data(work / "set")
        self.classes = runs.make_classes(work / "classes")
        self._references: dict[str, Reference] = {}

    def reference(self, name: str) -> Reference:
        if name not in self._references:
            cwd = self.work / name / "whole"
            cwd.mkdir(parents=True)
            if name == runs.RANKS:
                done = self._ranks(self.options(name), cwd, 300.0)
            else:
                done = self.server.run(self.options(name), cwd, cwd / "run")
            assert done.code == 0, done.said
            self._references[name] = Reference(cwd / "run", done.seconds, done.calls)
        return self._references[name]

    def options(self, name: str) -> list[str]:
        data = self.classes if name == "pretrain" else self.data
        return runs.options(name, data, self.reference("joint").folder if name == "scst" else None)

    def kill_and_compare(self, name: str, sources: Iterator[str], enough: Callable[[], bool]) -> None:
        """One run of this kind, killed by the next `sources` until it gets through, or `enough` is true."""
        reference = self.reference(name)
        self.tally.runs[name] += 1
        cwd = self.work / name / f"killed{self.tally.runs[name]}"
        cwd.mkdir()
        run, arguments = cwd / "run", self.options(name)
        for _ in range(200):
            source = "" if enough() else next(sources)
            if name == runs.RANKS:
                source = source and "rank"
                done = self._ranks(arguments, cwd, self.random.uniform(0.0, reference.seconds) if source else 300.0)
                where = "of two"
            else:
                done, where = self._once(source, arguments, cwd, reference)
            if done.was_killed:
                self.tally.kills[source, where] += 1
                resumable = runs.is_resumable(run)
                self.tally.restarts += not resumable
                arguments = ["--resume", "run"] if resumable else self.options(name)
            elif done.code:
                self.tally.problems.append(f"{name}: exit status {done.code}: {done.said.strip()[-400:]}")
                return
            else:
                self.tally.problems += [f"{name}: {text}" for text in runs.differences(run, reference.folder)]
                return
        self.tally.problems.append(f"{name}: never ended")

    def _once(self, source: str, arguments: list[str], cwd: Path, reference: Reference) -> tuple[Outcome, str]:
        """Start or resume; returns also where the kill fell."""
        run = cwd / "run"
        if source == "moment":
            done = self.server.run(arguments, cwd, run, kill_after=self.random.uniform(0.0, 1.1 * reference.seconds))
            return done, done.phase
        if source == "process":
            done = self._process(arguments, cwd, self.random.uniform(0.0, reference.seconds))
            return done, f"after {done.calls[-1].name} {done.calls[-1].place}" if done.calls else "before any file call"
        if source == "call":
            (name, place), times = self.random.choice(sorted(shim.kinds(reference.calls).items()))
            chosen = self.random.randint(1, min(times, 4))
            number, path = _matching(reference.calls, name, place, chosen)
            act = self.random.choice(ACTS)
            done = self.server.run(arguments, cwd, run, Fault(number, act, name, path))
            return done, f"{act} {name} {place}"
        return self.server.run(arguments, cwd, run), ""

    def _process(self, arguments: list[str], cwd: Path, seconds: float) -> Outcome:
        """`python train.py` itself, killed after so many seconds."""
        # Python's start takes longer than the run: three of four kills are to fall behind it.
        waits = self.random.random() < 0.75
        with _started([sys.executable, str(ROOT / "train.py"), *arguments], cwd) as job:
            while waits and job.process.poll() is None and not job.has_begun():
                time.sleep(0.01)
            try:
                job.process.wait(seconds)
            except subprocess.TimeoutExpired:
                job.process.kill()
            return job.ended()

    def _ranks(self, arguments: list[str], cwd: Path, seconds: float) -> Outcome:
        """Two processes of mpirun, of which one is killed after so many seconds of the run; the other one ends then. The
        outcome's seconds are those of the run, without the start of Python."""
        command = [str(MPIRUN), "-n", "2", sys.executable, str(ROOT / "train.py"), *arguments]
        with _started(command, cwd) as job:
            while job.process.poll() is None and not job.has_begun():
                time.sleep(0.01)
            begun = time.monotonic()
            try:
                job.process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.kill(self.random.choice(_programs(job.process.pid)), signal.SIGKILL)
                job.process.wait(60)
                return replace(job.ended(), code=shim.KILLED)
            return replace(job.ended(), seconds=time.monotonic() - begun)


@dataclass
class _Job:
    process: subprocess.Popen[bytes]
    record: Path
    said: Path
    begun: float

    def has_begun(self) -> bool:
        """Whether it has called anything below its folder."""
        return self.record.exists() and self.record.stat().st_size > 0

    def ended(self) -> Outcome:
        code, seconds = self.process.wait(), time.monotonic() - self.begun
        return Outcome(code, self.said.read_text("utf-8"), seconds, "", shim.calls(self.record))


@contextmanager
def _started(command: list[str], cwd: Path) -> Iterator[_Job]:
    """A program under `disk.c`, which ends with this."""
    record, said = cwd / "record", cwd / "said.txt"
    record.unlink(missing_ok=True)
    own = {**shim.environment(cwd / "run", record), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(said, "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, cwd=cwd, env=own, stdout=out, stderr=out)
    try:
        yield _Job(process, record, said, time.monotonic())
    finally:
        process.kill()
        process.wait()


def _programs(launcher: int) -> list[int]:
    """The ids of what a launcher has started, at the end of each chain of processes."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text("utf-8").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
    below = {launcher}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(pid for pid in below if pid not in parents.values())


def _matching(calls: list[Call], name: str, place: str, chosen: int) -> tuple[int, str]:
    """How a layer that looks for a part of a path counts to the `chosen`-th call of this name at this place."""
    path = next(call.path for call in calls if (call.name, call.place) == (name, place))
    part = "" if place == "folder" else path[path.rfind("/") :]
    if part.startswith("/.tmp"):
        part = "/.tmp"
    of_name = [call for call in calls if call.name == name and part in call.path]
    numbers = [i for i, call in enumerate(of_name, 1) if call.place == place]
    return numbers[min(chosen, len(numbers)) - 1], part


def sources(rng: random.Random) -> Iterator[str]:
    while True:
        turn = [name for name, count in SOURCES.items() for _ in range(count)]
        rng.shuffle(turn)
        yield from turn


def told(tally: Tally) -> dict[str, Any]:
    """For the file of results."""
    by_source: dict[str, dict[str, int]] = {}
    for (source, where), count in sorted(tally.kills.items()):
        by_source.setdefault(source, {})[where] = count
    return {
        "kills": tally.total, "runs": dict(tally.runs), "begun_again": tally.restarts, "where": by_source,
        "differences": tally.problems,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    kinds = [*runs.RUNS, *([runs.RANKS] if MPIRUN.exists() else [])]
    parser.add_argument("--runs", default=",".join(kinds), help="kinds of runs, in turn")
    asked = parser.parse_args()
    names = asked.runs.split(",")
    part = Part("kills", "tests.faults.kills")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "scratch") as server:
        killer = Killer(server, Path(folder), asked.seed)
        turn = sources(killer.random)
        number = 0
        while killer.tally.total < asked.kills:
            killer.kill_and_compare(names[number % len(names)], turn, lambda: killer.tally.total >= asked.kills)
            number += 1
            result = {"seed": asked.seed, **told(killer.tally)}
            part.keep(result, complete=killer.tally.total >= asked.kills)
            print(f"{number} runs, {killer.tally.total} kills, {len(killer.tally.problems)} differences", flush=True)
    print(json.dumps(result, indent=1))
    sys.exit(bool(killer.tally.problems))


if __name__ == "__main__":
    main()
