"""Disks that fail at each of their calls: checkpoints, then whole runs, which are continued and compared.

    python -m tests.faults.writes

Every call of a save fails in every way; of a run, a sample (`--faults 0`: all) of every kind of call on every kind of file.
The result goes into benchmarks/results/faults.json after each fault.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycap.checkpoint import CheckpointError
from tests.faults import runs, shim
from tests.faults.kills import Killer
from tests.faults.results import Part
from tests.faults.server import Outcome, Server
from tests.faults.shim import Fault
from tests.train.checkpoints import save, whole

EIO, ENOSPC = "5", "28+"  # one call fails; the disk is full and stays so
ERRORS = (EIO, ENOSPC)
WRITES = ("short", "short 28", "short 5")
KILLS = ("before", "after")


@dataclass
class Tally:
    """faults: how many were met, by act and call. ended: processes that said so and ended; resumed: runs that then went on from
    a checkpoint. lost: checkpoints that were not whole afterwards. problems: what was wrong."""

    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    ended: int = 0
    resumed: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)


def faults_of_a_save(server: Server, run: Path) -> list[Fault]:
    """Every call of a save over a checkpoint, met in every way."""
    save(run / "last", 1)
    plain = server.run([str(run / "last"), "2"], run, run, target="tests.faults.saving:over")
    assert plain.code == 0 and whole(run / "last") == 2, plain.said
    shutil.rmtree(run)
    writing = (*ERRORS, *KILLS, *WRITES, "middle")
    return [
        Fault(call.number, act)
        for call in plain.calls
        for act in (writing if call.name == "write" else (*ERRORS, *KILLS))
    ]


def faults_in_a_save(server: Server, work: Path, chosen: list[Fault], tally: Tally) -> Iterator[None]:
    """Saves over a whole checkpoint, met by one fault each; afterwards one is whole, and the next save leaves nothing beside
    it."""
    for number, fault in enumerate(chosen):
        run = work / str(number)
        folder = run / "last"
        save(folder, 1)
        done = server.run([str(folder), "2"], run, run, fault, target="tests.faults.saving:over")
        met = next((call for call in done.calls if call.act), None)
        where = f"{fault.act} at {met or fault.at}"
        if met is None:
            tally.problems.append(f"{where}: was not met")
        else:
            tally.faults[fault.act, met.name] += 1
        tally.ended += done.code == 1
        try:
            number_after = whole(folder)
        except CheckpointError as error:
            tally.lost += 1
            tally.problems.append(f"{where}: {error}")
        else:
            tally.problems += [f"{where}: {text}" for text in _wrong(folder, fault, met, done, number_after)]
            save(folder, 3)
            if whole(folder) != 3 or [path.name for path in run.iterdir()] != ["last"]:
                tally.problems.append(f"{where}: the next save left {sorted(path.name for path in run.iterdir())}")
        shutil.rmtree(run)
        yield


def _wrong(folder: Path, fault: Fault, met: shim.Call | None, done: Outcome, number: float) -> Iterator[str]:
    """What is not right of a save that met a fault, and left the checkpoint of this number."""
    kills = fault.act in (*KILLS, "middle")
    fails = fault.act in (*ERRORS, *WRITES[1:])
    if fault.act == EIO and met and (met.name, met.place) == ("mkdir", "folder"):
        fails = False  # of the run's folder, which is there
    if done.code != (shim.KILLED if kills else int(fails)):
        yield f"exit status {done.code}: {done.said[-300:]}"
    if fails and not (
        "error: " in done.said and str(folder) in done.said and "earlier checkpoints are whole" in done.said
    ):
        yield f"said {done.said[-300:]!r}"
    if not fails and done.code == 0 and number != 2:
        yield "nothing was saved, and nothing said"


def faults_of_a_run(made: list[shim.Call]) -> Iterator[Fault]:
    """Every kind of call on every kind of file, at the first of them and at the last: errors, and short writes."""
    first: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], int] = {}
    for call in made:
        first.setdefault((call.name, call.place), call.number)
        last[call.name, call.place] = call.number
    for (name, _), number in first.items():
        for act in ERRORS + (WRITES if name == "write" else ()):
            yield Fault(number, act)
    for key, number in last.items():
        if number != first[key]:
            yield Fault(number, EIO if number % 2 else ENOSPC)


def sample(faults: list[Fault], count: int) -> list[Fault]:
    """`count` of them, the same ones each time; all where it is 0."""
    if not 0 < count < len(faults):
        return faults
    return [faults[i] for i in sorted(random.Random(count).sample(range(len(faults)), count))]


def faults_in_a_run(killer: Killer, name: str, chosen: list[Fault], tally: Tally) -> Iterator[None]:
    """Runs met by one fault each: they end with a message that names a file and what to do, or are none the worse; then they
    are continued, and nothing differs from the run that met none."""
    reference = killer.reference(name)
    for number, fault in enumerate(chosen):
        cwd = killer.work / name / f"fault{number}"
        cwd.mkdir()
        run, arguments = cwd / "run", killer.options(name)
        done = killer.server.run(arguments, cwd, run, fault)
        met = next((call for call in done.calls if call.act), None)
        where = f"{name}: {fault.act} at {met or fault.at}"
        if met is None:
            tally.problems.append(f"{where}: was not met")
        else:
            tally.faults[fault.act, met.name] += 1
        if done.code:
            tally.ended += 1
            told = done.said.strip().splitlines()[-1]
            if (
                not told.startswith("train.py: error: ")
                or "run" not in told
                or not _has_remedy(told)
                or len(told) > 400
            ):
                tally.problems.append(f"{where}: said {done.said.strip()[-300:]!r}")
            if (run / "last").exists() and not runs.is_resumable(run):
                tally.lost += 1
                tally.problems.append(f"{where}: no checkpoint is whole")
            if runs.is_resumable(run):
                tally.resumed += 1
                arguments = ["--resume", "run"]
            done = killer.server.run(arguments, cwd, run)
        if done.code:
            tally.problems.append(f"{where}: cannot be continued: {done.said.strip()[-300:]}")
        else:
            tally.problems += [f"{where}: {text}" for text in runs.differences(run, reference.folder)]
        shutil.rmtree(cwd)
        yield


def _has_remedy(told: str) -> bool:
    return any(text in told for text in ("--resume run", "free space", "see to ", "start again"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="save,stopped,features", help="a save, and kinds of runs")
    parser.add_argument("--faults", type=int, default=30, help="of each kind of run so many, or 0: all")
    asked = parser.parse_args()
    tallies = {}
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "scratch") as server:
        parts = {name: Part(f"writes/{name}", "tests.faults.writes") for name in asked.parts.split(",")}
        killer = Killer(server, Path(folder), 0)
        for name, part in parts.items():
            tally = tallies[name] = Tally()
            if name == "save":
                possible = faults_of_a_save(server, Path(folder) / "plain")
                chosen, turns = possible, faults_in_a_save(server, Path(folder) / "saves", possible, tally)
            else:
                possible = list(faults_of_a_run(killer.reference(name).calls))
                chosen = sample(possible, asked.faults)
                turns = faults_in_a_run(killer, name, chosen, tally)
            part.begin()
            for number, _ in enumerate(turns, 1):
                part.keep({"possible": len(possible), **told(tally)}, complete=number == len(chosen))
            print(f"{name}: {json.dumps(told(tally))}", flush=True)
    sys.exit(any(tally.problems for tally in tallies.values()))


def told(tally: Tally) -> dict[str, Any]:
    """For the file of results."""
    by_act: dict[str, dict[str, int]] = {}
    for (act, name), count in sorted(tally.faults.items()):
        by_act.setdefault(act, {})[name] = count
    return {
        "faults": tally.faults.total(), "by_act": by_act, "ended_with_status_1": tally.ended, "resumed": tally.resumed,
        "checkpoints_lost": tally.lost, "problems": tally.problems,
    }  # fmt: skip


if __name__ == "__main__":
    main()
