"""The whole training step and captioning on a GPU, pycap beside PyTorch eager and torch.compile: rows of results.

    python -m benchmarks.peers.torch_joint --device cuda                     # VGG16 at 224, bf16, 64 x 5
    python -m benchmarks.peers.torch_joint --device cuda --freeze-cnn --precision tf32
    python -m benchmarks.peers.torch_joint --rehearse                        # the same code on the CPU, tiny

Each side has a process of its own on the same GPU; they work in turns, in an order that rotates, on the same decoded batches
in host memory. Losses must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import joint_work, machine
from benchmarks.gpu_rows import table
from benchmarks.nvml import Meter
from benchmarks.peers.joint_gpu_rows import (
    BOUNDS,
    DRAWN_BOUND,
    DTYPES,
    Disagreement,
    caption_row,
    check,
    input_rows,
    step_rows,
    summary,
)
from benchmarks.peers.joint_gpu_sides import SIDES, Captions, Task, serve
from benchmarks.results import Row, Writer
from benchmarks.sides import Unavailable
from benchmarks.worker import Remote, SideError
from pycap import device
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError, demo

RESULTS = Path(__file__).parents[1] / "results" / "local" / "joint_gpu.jsonl"
DISTRIBUTIONS = ("pycap-captioning", "numpy", "cupy-cuda13x", "triton", "ml_dtypes", "torch", "nvidia-cudnn-cu13")


_DRAWN_STEPS = 50


@dataclass(frozen=True)
class Options:
    """turns, turn_s: of each side. beams: widths of searches. seconds: no further turn begins after so long."""

    turns: int = 5
    turn_s: float = 1.0
    beams: tuple[int, ...] = (3, 1)
    sides: tuple[str, ...] = tuple(SIDES)
    seconds: float = 600.0
    input: bool = False
    rehearse: bool = False


@dataclass
class Side:
    """One side's process and what it came to. seconds: a step, by turns. joules: an image, by turns."""

    remote: Remote
    info: dict[str, Any]
    device_mib: float | None = None
    seconds: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    steps: int = 0


class Comparison:
    """The sides' processes, from their start to `close`. failed: why a side is not among `sides`."""

    def __init__(self, task: Task, options: Options, meter: Meter | None) -> None:
        self.task, self.options, self.meter = task, options, meter
        self.sides: dict[str, Side] = {}
        self.failed: dict[str, str] = {}
        self.ceilings: dict[str, float] = {}
        self._begin = time.perf_counter()

    def start(self) -> None:
        """One after the other: each warms up and chooses on a quiet machine."""
        for name in self.options.sides:
            before = self._used()
            remote = Remote(name, serve, name, self.task)
            try:
                info = remote.receive()
            except (Unavailable, SideError) as error:
                remote.close()
                if name == "pycap":
                    raise
                self.failed[name] = str(error).strip().splitlines()[-1]
                print(f"{name:14} {error}", flush=True)
                continue
            after = self._used()
            taken = None if before is None or after is None else after - before
            self.sides[name] = Side(remote, info, taken)
            print(f"{name:14} {info['backend']}; {info['variant']}; {self._gone():.0f} s", flush=True)
            for line in info.get("said", ()):
                print(f"{'':14} {line}", flush=True)

    def _used(self) -> float | None:
        return self.meter.used_mib() if self.meter else None

    def _gone(self) -> float:
        return time.perf_counter() - self._begin

    def measure_ceilings(self, n: int, copied: int) -> None:
        """Where a PyTorch is among the sides."""
        peer = self.sides.get("torch eager")
        self.ceilings = peer.remote.call("ceilings", n, copied) if peer else {}

    def agree(self) -> float:
        """The largest relative distance of losses without dropout. Disagreement where it exceeds the bound."""
        if not {"pycap", "torch eager"} <= self.sides.keys():
            return float("nan")
        ours, theirs = (np.array(self.sides[name].info["agreed"]) for name in ("pycap", "torch eager"))
        return check("the first steps' losses", ours, theirs, BOUNDS[self.task.config.precision])

    def steps(self) -> None:
        """Train in turns, in an order that rotates."""
        names, first = list(self.sides), 0
        counts = {name: self._count(name) for name in names}
        for turn in range(self.options.turns):
            if turn and self._gone() > self.options.seconds:
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                self._turn(name, first, counts[name])
            first += max(counts.values())
        if "torch eager" in self.sides:
            few = min(_DRAWN_STEPS, *(len(side.losses) for side in self.sides.values()))
            means = {name: np.array([np.mean(side.losses[:few])]) for name, side in self.sides.items()}
            for name, mean in means.items():
                check(f"mean losses of {few} steps ({name})", mean, means["torch eager"], DRAWN_BOUND)

    def _count(self, name: str) -> int:
        """Steps that make a turn; those made to find out are not counted."""
        if self.options.rehearse:
            return 2
        remote = self.sides[name].remote
        seconds = remote.call("segment", 0, self.task.batches)["seconds"]
        return max(self.task.batches, min(400, round(self.options.turn_s / seconds)))

    def _turn(self, name: str, first: int, count: int) -> None:
        side = self.sides[name]
        before = self.meter.joules() if self.meter else None
        result = side.remote.call("segment", first, count)
        after = self.meter.joules() if self.meter else None
        side.seconds.append(result["seconds"])
        side.losses += result["losses"]
        side.peak_mib, side.steps = result["peak_mib"], side.steps + count
        if before is not None and after is not None:
            side.joules.append((after - before) / (count * self.task.config.batch_size))

    def inputs(self) -> dict[str, list[float]]:
        """By side, seconds of a step from JPEGs, by turns."""
        seconds: dict[str, list[float]] = {name: [] for name in self.sides}
        names = list(self.sides)
        for turn in range(self.options.turns):
            if turn and self._gone() > self.options.seconds:
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                count = max(1, self.sides[name].steps // len(self.sides[name].seconds))
                seconds[name].append(self.sides[name].remote.call("pipeline", count)["seconds"])
        return seconds

    def captions(self, beam: int) -> tuple[dict[str, list[float]], dict[str, Captions]]:
        """(By side, seconds of a batch by turns; what was said in the last)."""
        names = [name for name in ("pycap", "torch eager") if name in self.sides]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        said: dict[str, Captions] = {}
        counts = {}
        for name in names:
            self.sides[name].remote.call("captions", beam, 1)  # compiles, captures
            once = self.sides[name].remote.call("captions", beam, 1)["seconds"]
            counts[name] = 1 if self.options.rehearse else max(1, min(50, round(self.options.turn_s / once)))
        for turn in range(self.options.turns):
            if turn and self._gone() > self.options.seconds:
                break
            for name in names if turn % 2 == 0 else names[::-1]:
                result = self.sides[name].remote.call("captions", beam, counts[name])
                seconds[name].append(result["seconds"])
                said[name] = result["said"]
        return seconds, said

    def close(self) -> None:
        for side in self.sides.values():
            side.remote.close()


def compare(task: Task, options: Options, meter: Meter | None, about: Row, writer: Writer) -> None:
    """Everything that the options ask for, row by row. Raises Disagreement, SideError, Unavailable."""
    config = task.config
    case = f"{config.cnn}-{config.image_size}px-{config.batch_size}x{config.seq_per_img}"
    made = Comparison(task, options, meter)
    try:
        made.start()
        err = made.agree()
        made.measure_ceilings(*((256, 1 << 20) if options.rehearse else (8192, 1 << 30)))
        print(f"losses agree to {err:.2g}; ceilings {made.ceilings}", flush=True)
        made.steps()
        base: Row = {**about, "case": case, "dtype": DTYPES[config.precision]}
        base["backend"] = made.sides["pycap"].info["backend"]
        for row in step_rows(made, base, made.sides["pycap"].info["flops"], err):
            _tell(writer, row)
        for row in input_rows(made, base) if options.input else ():
            _tell(writer, row)
        for name in ("pycap", "torch eager"):
            if name in made.sides and options.beams:
                made.sides[name].remote.call("prepare_captions")
        for beam in options.beams:
            _tell(writer, caption_row(made, base, beam))
    finally:
        made.close()


def with_images(config: TrainConfig, folder: Path, rehearse: bool) -> TrainConfig:
    """The config with JPEGs to train on (its own data's, else drawn ones of COCO's number of pixels) and threads to decode."""
    workers = config.workers
    if workers is None:
        workers = 2 if rehearse else min(device.cpu_count(), 16)
    if config.data is None:
        images, size = (3 * config.batch_size, 72) if rehearse else (16 * config.batch_size, 512)
        data = demo.generate(folder / "demo", train=images, val=1, size=size)
        config = replace(config, stage="coco", data=data, word_count_threshold=1)
    return replace(config, workers=workers)


def _tell(writer: Writer, row: Row) -> None:
    writer.add(row)
    print(f"{table([row]).splitlines()[1]}\n    {summary(row)}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Run what the command line describes; 1 where the sides disagree or pycap fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.torch_joint --device cuda", description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU: the times mean nothing")
    parser.add_argument("--sides", default=",".join(SIDES), help="which, pycap first (default: %(default)s)")
    parser.add_argument(
        "--compile-modes", default="default,reduce-overhead", help="of torch.compile; the fastest counts"
    )
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--turn-seconds", type=float, default=1.0, help="length of a turn (default: %(default)s)")
    parser.add_argument("--agree", type=int, default=8, help="steps whose losses must agree (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=4, help="different batches (default: %(default)s)")
    parser.add_argument("--words", type=int, default=joint_work.COCO_WORDS, help="vocabulary (default: COCO's)")
    parser.add_argument("--beams", default="3,1", help="widths of the searches (default: %(default)s; empty: none)")
    parser.add_argument("--input", action="store_true", help="also from JPEGs: of --data, or of the drawn demo set")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no turn after so long")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    joint_work.add_options(parser)
    own = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch, the peer, is not installed: pip install torch", file=sys.stderr)
        return 1
    reason = "" if own.rehearse else device.obstacle()
    if reason:
        print(f"no GPU that pycap can use: {reason}; --rehearse goes through everything on the CPU", file=sys.stderr)
        return 1
    sides = tuple(name.strip() for name in own.sides.split(",") if name.strip())
    if sides[:1] != ("pycap",) or not set(sides) <= SIDES.keys() or own.turns < 1 or own.agree < 1 or own.batches < 1:
        parser.error(f"--sides begins with pycap and names {', '.join(SIDES)}; turns, agree and batches are 1 or more")
    try:
        config: TrainConfig = joint_work.make_config(own, **(joint_work.TINY if own.rehearse else {}))
    except ConfigError as error:
        parser.error(str(error))
    if config.micro_batch or config.pretrain_words:
        parser.error("--micro-batch and --pretrain-words: the peer has neither on a GPU")
    modes = tuple(mode for mode in own.compile_modes.split(",") if mode)
    words = min(own.words, joint_work.TINY_WORDS) if own.rehearse else own.words
    task = Task(config, words, own.batches, own.agree, modes, own.rehearse)
    beams = tuple(int(width) for width in own.beams.split(",") if width)
    turns = min(own.turns, 2) if own.rehearse else own.turns
    options = Options(turns, own.turn_seconds, beams, sides, own.seconds, own.input, own.rehearse)
    meter = None if own.rehearse else Meter()
    about: Row = {
        "commit": machine.commit(),
        "hardware": meter.name() if meter else f"rehearsal: {machine.cpu_name()}",
        "versions": machine.versions(DISTRIBUTIONS),
    }
    writer = Writer(own.json)
    try:
        with tempfile.TemporaryDirectory(prefix="pycap-joint-") as folder:
            if own.input:
                task = replace(task, config=with_images(config, Path(folder), own.rehearse))
            compare(task, options, meter, about, writer)
    except (Disagreement, SideError, Unavailable, DataError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    finally:
        writer.close()
    print(f"rows: {writer.jsonl} and {writer.csv.name}")
    return 0
