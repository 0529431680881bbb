"""Children watched from outside: an interpreter that crashes, a reader that hangs, memory that is gone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.child import Counts, Job, counts, failures, input_of
from tests.fuzz.target import PATIENCE_S, Target

#: Of the clock: on a busy machine a reader that works for five seconds may have taken this long.
WALL_S = 60.0
_START_S = 120.0  # until a child has begun
_POLL_S = 0.05
MOST_CHILDREN = 200
_TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Found:
    """What came of a reader's inputs. faults: what is wrong, each with the file that shows it."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_ms: float = 0.0
    peak_mib: float = 0.0
    crashes: int = 0
    hangs: int = 0
    faults: list[tuple[str, Path]] = field(default_factory=list)

    def add(self, found: Counts) -> None:
        self.inputs += int(found.begun)
        self.accepted += int(found.accepted)
        self.refused += int(found.refused)
        self.slowest_ms = max(self.slowest_ms, round(found.slowest * 1e3, 1))
        self.peak_mib = max(self.peak_mib, round(found.peak_mib, 1))


def cpu_s(process: int) -> float:
    """CPU seconds of a process and of those of its children that have ended."""
    with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def fuzz(
    targets: Mapping[str, Target],
    engine: str,
    runs: int,
    seed: int,
    scratch: Path,
    keep: Path,
    module: str = "tests.fuzz.readers",
) -> dict[str, Found]:
    """What came of each reader's inputs, in children: after a crash or a hang in another one, from another seed.

    scratch: a folder for the children's files (in memory, best). keep: where what fails is put. Of hostile files there are
    as many as there are. module: where a child finds the same targets, as TARGETS.
    """
    found = {name: Found() for name in targets}
    jobs = [
        Job(name, len(t.hostile()) if engine == "hostile" else runs, seed if engine != "hostile" else 0)
        for name, t in targets.items()
    ]
    jobs = [job for job in jobs if job.runs]
    number = 0
    while jobs:
        folder = scratch / f"{engine}-{number}"
        folder.mkdir(parents=True)
        some = jobs[:1] if engine == "atheris" else jobs  # which does not return
        jobs = _after(targets, engine, module, some, folder, found, keep) + jobs[len(some) :]
        shutil.rmtree(folder)
        number += 1
        if number > MOST_CHILDREN:
            raise RuntimeError(
                f"more than {MOST_CHILDREN} children have ended: {[job.name for job in jobs]} are not done; see {keep}"
            )
    return found


def _after(
    targets: Mapping[str, Target],
    engine: str,
    module: str,
    jobs: list[Job],
    folder: Path,
    found: dict[str, Found],
    keep: Path,
) -> list[Job]:
    """What is left to do after one more child."""
    status, why, said = _watch(engine, module, jobs, folder)
    for at, job in enumerate(jobs):
        own, target = job.folder(folder), targets[job.name]
        last = counts(own)
        found[job.name].add(last)
        for each in failures(own):
            _keep(found[job.name], target, each["why"], Path(each["file"]), keep)
        if (own / "done").exists() and not (status and at == len(jobs) - 1):
            continue
        if not last.begun:
            raise RuntimeError(f"{job.name}: the child {why or f'ended with {status}'} before it began:\n{said}")
        if why:
            found[job.name].hangs += 1
        else:
            found[job.name].crashes += 1
            why = f"ended with {status}" + (f" ({signal.Signals(-status).name})" if status < 0 else "")
        _keep(found[job.name], target, f"{why}\n{said}", input_of(own), keep)
        done = int(last.begun)
        again = job._replace(runs=job.runs - done, seed=job.seed + (done if engine == "hostile" else 7919))
        return [each for each in (again,) if each.runs > 0] + jobs[at + 1 :]
    return []


def _watch(engine: str, module: str, jobs: list[Job], folder: Path) -> tuple[int, str, str]:
    """One child until it ends: its status, why it was ended from here if it was, and what it said."""
    log = folder / "log"
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", str(folder), engine, module, *(":".join(map(str, job)) for job in jobs)],
            cwd=ROOT, stdout=output, stderr=output, env={**os.environ, "PYTHONFAULTHANDLER": "1"}, start_new_session=True,
        )  # fmt: skip
        why = ""
        folders = [job.folder(folder) for job in jobs]
        state, since, used = (0, -1.0), time.monotonic(), 0.0
        while child.poll() is None:
            time.sleep(_POLL_S)
            while len(folders) > 1 and folders[1].exists():
                del folders[0]
            now = counts(folders[0])
            try:
                cpu = cpu_s(child.pid)
            except (FileNotFoundError, ProcessLookupError, IndexError):  # it has just ended
                continue
            if (len(folders), now.begun) != state:
                state, since, used = (len(folders), now.begun), time.monotonic(), cpu
            patience = (PATIENCE_S, WALL_S) if now.begun > now.ended else (_START_S, _START_S)
            clock = time.monotonic() - since
            # A process that a reader keeps over many inputs counts when it ends, with all that it used: more than the clock.
            if min(cpu - used, clock) > patience[0] or clock > patience[1]:
                why = f"hangs: {cpu - used:.1f} s of CPU, {clock:.1f} s by the clock"
                child.send_signal(signal.SIGABRT)  # has faulthandler say where
                time.sleep(0.3)
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return child.returncode, why, log.read_text(errors="replace")[-1500:]


def _keep(found: Found, target: Target, why: str, file: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    data = file.read_bytes()
    kept = keep / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}{Path(target.file).suffix}"
    kept.write_bytes(data)
    found.faults.append((why, kept))
