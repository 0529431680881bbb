"""Disks that fail at each of their calls: checkpoints, then whole runs, which are continued and compared.

    python -m tests.faults.writes

Every call of a save fails in every way; of a run, every kind of call on every kind of file. The result goes into
benchmarks/results/faults.json, beside that of `tests.faults.kills`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycap.checkpoint import CheckpointError
from tests.faults import runs, shim
from tests.faults.kills import Killer, keep
from tests.faults.server import Server
from tests.faults.shim import Fault
from tests.train.test_checkpoint import save, whole

EIO, ENOSPC = "5", "28+"  # one call fails; the disk is full and stays so
ERRORS = (EIO, ENOSPC)
WRITES = ("short", "short 28", "short 5")
KILLS = ("before", "after")


@dataclass
class Tally:
    """faults: how many were met, by act. lost: checkpoints that were not whole afterwards. problems: what was wrong."""

    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    problems: list[str] = field(default_factory=list)


def each_call_of_a_save(server: Server, work: Path, every: int = 1) -> Tally:
    """A save over a whole checkpoint, met by each act at each call; afterwards one is whole, and the next save leaves nothing
    beside it. every: of the faults only each so-manieth, a prime, so that all calls and acts have their turn."""
    tally = Tally()
    plain = _saved(server, work / "plain", None, tally)
    writing = (*ERRORS, *KILLS, *WRITES, "middle")
    faults = [
        Fault(call.number, act) for call in plain for act in (writing if call.name == "write" else (*ERRORS, *KILLS))
    ]
    for number, fault in enumerate(faults[::every]):
        _saved(server, work / str(number), fault, tally)
    return tally


def _saved(server: Server, run: Path, fault: Fault | None, tally: Tally) -> list[shim.Call]:
    folder = run / "last"
    save(folder, 1)
    done = server.run([str(folder), "2"], run, run, fault, target="tests.faults.saving:over")
    met = [call for call in done.calls if call.act]
    where = f"{fault.act} at {met[0] if met else fault.at}" if fault else "no fault"
    if fault:
        tally.faults[fault.act] += bool(met)
        if not met:
            tally.problems.append(f"{where}: was not met")
    fails = fault is not None and (fault.act in ERRORS or fault.act in WRITES[1:])
    if fails and fault and fault.act == EIO and (met[0].name, met[0].place) == ("mkdir", "folder"):
        fails = False  # of the run's folder, which is there
    try:
        number = whole(folder)
    except CheckpointError as error:
        tally.lost += 1
        tally.problems.append(f"{where}: {error}")
        return done.calls
    expected = shim.KILLED if fault and fault.act in (*KILLS, "middle") else int(fails)
    if done.code != expected:
        tally.problems.append(f"{where}: exit status {done.code}: {done.said[-300:]}")
    if fails and not (
        "error: " in done.said and str(folder) in done.said and "earlier checkpoints are whole" in done.said
    ):
        tally.problems.append(f"{where}: said {done.said[-300:]!r}")
    if not fails and done.code == 0 and number != 2:
        tally.problems.append(f"{where}: nothing was saved, and nothing said")
    save(folder, 3)
    if whole(folder) != 3 or [path.name for path in run.iterdir()] != ["last"]:
        tally.problems.append(f"{where}: the next save left {sorted(path.name for path in run.iterdir())}")
    shutil.rmtree(run)
    return done.calls


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


def each_kind_of_call_of_a_run(killer: Killer, name: str, chosen: list[Fault], tally: Tally) -> None:
    """Runs met by one fault each: they end with a message that names a file and what to do, or are none the worse; then they
    are continued, and nothing differs from the run that met none."""
    reference = killer.reference(name)
    for number, fault in enumerate(chosen):
        cwd = killer.work / name / f"fault{number}"
        cwd.mkdir()
        run, arguments = cwd / "run", killer.options(name)
        done = killer.server.run(arguments, cwd, run, fault)
        where = f"{name}: {fault.act} at {reference.calls[fault.at - 1]}"
        tally.faults[fault.act] += any(call.act for call in done.calls)
        if done.code:
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
                arguments = ["--resume", "run"]
            done = killer.server.run(arguments, cwd, run)
        if done.code:
            tally.problems.append(f"{where}: cannot be continued: {done.said.strip()[-300:]}")
        else:
            tally.problems += [f"{where}: {text}" for text in runs.differences(run, reference.folder)]
        shutil.rmtree(cwd)


def _has_remedy(told: str) -> bool:
    return any(text in told for text in ("--resume run", "free space", "see to ", "start again"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="stopped,features", help="kinds of runs")
    parser.add_argument("--every", type=int, default=1, help="of a run's faults only each so-manieth, a prime")
    asked = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "scratch") as server:
        saves = each_call_of_a_save(server, Path(folder) / "saves")
        print(f"saves: {saves}", flush=True)
        of_runs = Tally()
        killer = Killer(server, Path(folder), 0)
        for name in asked.runs.split(","):
            chosen = list(faults_of_a_run(killer.reference(name).calls))[:: asked.every]
            each_kind_of_call_of_a_run(killer, name, chosen, of_runs)
            print(f"{name}: {of_runs}", flush=True)
    result = {"seconds": round(time.monotonic() - begun), "saves": told(saves), "runs": told(of_runs)}
    keep("writes", result)
    print(json.dumps(result, indent=1))
    sys.exit(bool(saves.problems or of_runs.problems))


def told(tally: Tally) -> dict[str, Any]:
    """For the file of results."""
    return {
        "faults": tally.faults.total(), "by_act": dict(sorted(tally.faults.items())), "checkpoints_lost": tally.lost,
        "problems": tally.problems,
    }  # fmt: skip


if __name__ == "__main__":
    main()
