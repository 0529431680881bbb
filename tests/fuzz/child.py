"""The process in which readers read: it says what it is about to do, so that whoever watches it knows what ended it.

python -m tests.fuzz.child FOLDER ENGINE MODULE READER:RUNS:SEED ... (the module has TARGETS)
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import resource
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # atheris must see pycap's modules first
    from tests.fuzz.target import Target

#: Of a child's address space, over what it had at first: what a reader asks for in vain ends in a MemoryError, not in the
#: machine's memory.
ADDRESS_MIB = 2048
RATIO = 16  # of a file above a MiB: what it may take of memory besides, for each of its bytes
_LIMIT_S = 600  # of atheris, an input; with 0 it ends at one second: who watches from outside is stricter than this
_BATCH = 250  # examples of hypothesis from one seed
#: What atheris watches the branches of.
INSTRUMENTED = [
    "pycap.data",
    "pycap.weights",
    "pycap.config",
    "pycap.picking",
    "pycap.bulk",
    "pycap.checkpoint",
    "pycap.tensorfile",
]
_COUNTS = struct.Struct("<6d")
_LIBC = ctypes.CDLL(None)


class Counts(NamedTuple):
    """How far a child has come. begun: inputs that a reader was given; ended: those it was done with; slowest in seconds."""

    begun: float = 0
    ended: float = 0
    accepted: float = 0
    refused: float = 0
    slowest: float = 0
    peak_mib: float = 0


def counts(folder: Path) -> Counts:
    """What the child of a folder has noted last."""
    try:
        return Counts(*_COUNTS.unpack((folder / "counts").read_bytes()))
    except (FileNotFoundError, struct.error):  # not begun yet
        return Counts()


def input_of(folder: Path) -> Path:
    """Where a child puts what it gives to the reader next."""
    return folder / "input"


def failures(folder: Path) -> list[dict[str, str]]:
    """What a child has found wrong, each with the file that shows it."""
    path = folder / "failures.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _status(key: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


class Watched:
    """A target in a folder, each of its inputs counted and judged."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.target, self._folder = target, folder
        self._work = folder / "work"
        self._work.mkdir()
        self.target.prepare(self._work)
        with open(folder / "counts", "w+b") as file:
            file.write(bytes(_COUNTS.size))
            file.flush()
            self._map = mmap.mmap(file.fileno(), 0)
        self._counts = list(Counts())
        self._failed = 0

    def sound(self) -> None:
        """The seeds, which must be read as what they are; what this takes is what a reader takes at first."""
        for seed, data in self.target.seeds.items():
            outcome = self.try_(data)
            if outcome.verdict != "accepted":
                self.fail(data, f"the sound file {seed} was {outcome.verdict}: {outcome.why}")
                continue
            try:
                (self._work / self.target.file).write_bytes(data)
                self.target.same(seed, self.target.read(self._work))
            except AssertionError as error:
                self.fail(data, f"the sound file {seed} is read as another: {error}")
        self._counts = list(Counts())

    def start(self) -> None:
        """What this process holds now is not the next input's: whatever made the input took memory too, and libraries keep
        some. What is free within it goes back to the system, or the reader would take it unseen. A reader that keeps memory of
        each of thousands of inputs meets the bound of the address space."""
        _LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def limit(self) -> None:
        """Bound the address space from now on, and leave no core files."""
        most = int((_status("VmSize") + ADDRESS_MIB) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))  # as of this reader: it may be set again
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def try_(self, data: bytes):  # type: ignore[no-untyped-def]
        """One input, counted; what is wrong is kept."""
        return self.target.try_(self._work, data)

    def __call__(self, data: bytes) -> None:
        counted = self._counts
        counted[0] += 1
        input_of(self._folder).write_bytes(data)  # the file that the reader is given may be one that it writes to
        self._map[:] = _COUNTS.pack(*counted)
        self.start()
        outcome = self.try_(data)
        counted[1] += 1
        counted[2] += outcome.verdict == "accepted"
        counted[3] += outcome.verdict == "refused"
        counted[4] = max(counted[4], outcome.seconds)
        grown = _status("VmHWM") - self._before
        most = self.target.memory_mib + RATIO * (len(data) >> 20)
        if outcome.verdict == "failed":
            self.fail(data, outcome.why)
        elif grown > most:
            self.fail(data, f"took {grown:.0f} MiB, and may take {most}")
        counted[5] = max(counted[5], grown)
        self._map[:] = _COUNTS.pack(*counted)

    def fail(self, data: bytes, why: str) -> None:
        """Keep an input, and what is wrong with it."""
        self._failed += 1
        kept = self._folder / f"failed-{self._failed}"
        kept.write_bytes(data)
        with open(self._folder / "failures.jsonl", "a", encoding="ascii") as file:
            file.write(json.dumps({"file": str(kept), "why": why}) + "\n")


def by_hypothesis(watched: Watched, runs: int, seed: int) -> None:
    """So many inputs, which the seed determines."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    from tests.fuzz.strategies import inputs

    made = inputs(watched.target)
    for first in range(0, runs, _BATCH):
        left = min(_BATCH, runs - first)

        @hypothesis.seed(seed * 1_000_003 + first)
        @settings(
            max_examples=left,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(made)
        def each(data: bytes) -> None:
            watched(data)

        each()


def by_atheris(watched: Watched, runs: int, seed: int, folder: Path) -> None:
    """So many inputs, led by what of pycap they reach; does not return."""
    import atexit
    import random
    import signal

    import atheris

    from benchmarks.mutations import changed, structure_of
    from tests.fuzz.text_changes import CHANGES

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    target = watched.target
    for number, data in enumerate((*target.seeds.values(), *target.hostile().values())):
        if len(data) < 1 << 20:
            (corpus / f"{number}").write_bytes(data)

    def mutated(data: bytes, size: int, own: int) -> bytes:
        rng = random.Random(own)
        if rng.randrange(4) == 0 or not data:
            return atheris.Mutate(data, size)
        if CHANGES[target.form] and rng.randrange(2):  # one change alone: many leave text that cannot be read
            made = bytearray(data)
            rng.choice(list(CHANGES[target.form].values()))(made, rng, target.seeds)
            return bytes(made)[:size]
        name = rng.choice(sorted(target.seeds))
        structure = target.structure or CHANGES[target.form] or structure_of(name)
        return changed({**target.seeds, "": data}, "", rng, structure).data[:size]

    flags = [
        f"-atheris_runs={runs}",
        f"-seed={seed + 1}",
        f"-timeout={_LIMIT_S}",
        "-rss_limit_mb=0",
        f"-max_len={1 << 20}",
        "-mutate_depth=1",  # a step of `mutated` is several changes already
        "-verbosity=0",
        "-print_final_stats=0",
        f"-artifact_prefix={folder}/",
    ]
    atexit.register((folder / "done").touch)
    # libFuzzer's clock goes on ringing after Python has taken its handler away, which ends the process.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    atheris.Setup(["fuzz", *flags, str(corpus)], watched, custom_mutator=mutated)
    atheris.Fuzz()


class Job(NamedTuple):
    """So many inputs of a reader, from a seed; of the hostile ones those from number `seed` on."""

    name: str
    runs: int
    seed: int

    def folder(self, top: Path) -> Path:
        """Where a child puts what it finds."""
        return top / f"{self.name}-{self.seed}"


def run(folder: Path, engine: str, job: Job, target: Target) -> None:
    """One job, to its end; `done` in its folder says that it has come to it."""
    watched = Watched(folder, target)
    watched.sound()
    watched.limit()
    if engine == "hostile":
        for data in list(watched.target.hostile().values())[job.seed :]:
            watched(data)
    elif engine == "atheris":
        by_atheris(watched, job.runs, job.seed, folder)
    else:
        by_hypothesis(watched, job.runs, job.seed)
    (folder / "done").touch()


def main(arguments: list[str]) -> None:
    top, engine, module = Path(arguments[0]), *arguments[1:3]
    jobs = [Job(name, int(runs), int(seed)) for name, runs, seed in (each.split(":") for each in arguments[3:])]
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=INSTRUMENTED):
            importlib.import_module(module)  # with all that it imports
    targets = importlib.import_module(module).TARGETS
    for job in jobs:
        job.folder(top).mkdir()
        run(job.folder(top), engine, job, targets[job.name])
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
