"""Captioning many images, as a proof: killed again and again it writes the same file, and memory does not grow with the images.

    python -m benchmarks.bulk --images 20000 --kills 10 --data DIR --checkpoint RUN --out FILE

`pycap caption` captions all images (`bulk_images`) without interruption; the first tenth of them; all of them again,
killed (SIGKILL) at random moments and resumed each time; all of them as two shards, merged; and the first tenth in every
other format, killed and not. Each must give the same bytes as the uninterrupted run, and the peak of the memory must be the
same for all images as for a tenth of them, within 10 %. Status 1 where one of this does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import bulk_images, machine
from benchmarks.report import markdown_table
from pycap.data import demo
from pycap.data.disk import write_whole
from pycap.device import cpu_count

ROOT = Path(__file__).resolve().parents[1]
MOST_GROWTH = 0.1  # of the peak, from a tenth of the images to all of them
FORMATS = ("coco", "csv", "txt-sidecar", "imageclef")
_POLL_S = 0.002
_ATTEMPTS = 5
_BATCH = 16  # of pycap caption, unless it is told otherwise
#: A process of pycap that says at its end how long it took and the most memory it held.
_PYCAP = """
import atexit, json, sys, time
from benchmarks.machine import peak_mib
begin = time.perf_counter()
atexit.register(lambda: print(json.dumps({"seconds": time.perf_counter() - begin, "peak_mib": peak_mib()}), file=sys.stderr))
from pycap.cli import main
main(sys.argv[1:])
"""


class Fault(Exception):
    """What was to be shown does not hold."""


@dataclass(frozen=True)
class Job:
    """`pycap caption` of some images: everything but where the result goes."""

    checkpoint: Path
    inputs: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def beside(self) -> bool:
        """Whether the result is a folder of text files."""
        return "txt-sidecar" in self.options

    def start(self, output: Path, *more: str) -> subprocess.Popen[str]:
        command = ["caption", str(self.checkpoint), *self.inputs, "--output", str(output), *self.options, *more]
        return _pycap(command)

    def run(self, output: Path, *more: str) -> dict[str, float]:
        """To its end; its seconds and the peak of its memory. Fault where it fails."""
        return _end(self.start(output, *more), output)


def _pycap(command: Sequence[str]) -> subprocess.Popen[str]:
    whole = [sys.executable, "-c", _PYCAP, *command]
    return subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str], output: Path) -> dict[str, float]:
    """Wait for it. Status 1 is right as well: some images are broken."""
    printed = process.communicate()[1]
    if process.returncode not in (0, 1) or not output.exists():
        raise Fault(f"{output}: pycap ended with status {process.returncode}: {printed[-2000:]}")
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def failures(output: Path) -> Path:
    """Where `pycap caption` lists the images that it could not read."""
    return output / "captions.failed.jsonl" if output.is_dir() else output.with_name(f"{output.stem}.failed.jsonl")


def partial(output: Path) -> Path:
    """The journal of captions made so far."""
    return output / "captions.partial" if output.is_dir() else output.with_name(f"{output.name}.partial")


class Growing:
    """The number of lines of a file that another process writes."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self.lines = path, 0, 0

    def look(self) -> int:
        """The line ends that are in it by now; 0 while it is not there."""
        if not self._path.exists():
            return 0
        with open(self._path, "rb") as stream:
            if stream.seek(0, 2) < self._read:  # it was cut: a torn line went
                self._read = self.lines = 0
            stream.seek(self._read)
            new = stream.read()
        self._read, self.lines = self._read + len(new), self.lines + new.count(b"\n")
        return self.lines


def count_lines(file: Path) -> int:
    """Line ends in a file, 0 where it is not there."""
    return Growing(file).look()


def killed(job: Job, output: Path, kills: int, count: int, seed: int, seconds: float) -> list[int]:
    """Caption with so many SIGKILLs at random moments, then to the end; how many lines the journal had at each kill.

    A moment is a number of captioned images, and up to a fiftieth of the `seconds` that the job takes alone: however fast the
    machine is now, the moments are spread over the whole job. One that has passed when the process starts falls while it
    reads what there is. A job that ends before its last kill is done again with other moments; Fault when none is left.
    """
    for attempt in range(_ATTEMPTS):
        seen = _kill(job, output, random.Random(f"{seed} {attempt}"), kills, count, seconds / 50)
        if len(seen) == kills:
            job.run(output, *_resume(output))
            return seen
        for file in (output, failures(output)):
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        if job.beside:
            output.mkdir()
    raise Fault(f"{output}: {_ATTEMPTS} times the job ended before its {kills} kills; caption more images")


def _kill(job: Job, output: Path, rng: random.Random, kills: int, count: int, jitter_s: float) -> list[int]:
    """The lines at each kill, fewer than `kills` where the job came to its end."""
    seen: list[int] = []
    for moment in sorted(rng.randrange(count) for _ in range(kills)):
        process = job.start(output, *_resume(output))
        journal = Growing(partial(output))
        passed = journal.look() > moment
        while process.poll() is None and journal.look() <= moment:
            time.sleep(_POLL_S)
        time.sleep(rng.uniform(0, 1.0 if passed else jitter_s))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            return seen
        seen.append(count_lines(partial(output)))
    return seen


def _resume(output: Path) -> tuple[str, ...]:
    return ("--resume",) if partial(output).exists() else ()


def difference(one: Path, other: Path) -> str:
    """Empty where two results are the same, bytes of captions and of failures; else what differs first. Of folders: all
    files in them."""
    pairs = [(one, other), (failures(one), failures(other))]
    if one.is_dir():
        names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
        pairs = [(one / name, other / name) for name in sorted(names)]
    for a, b in pairs:
        if not (a.exists() and b.exists()):
            return f"{a if b.exists() else b}: is not there"
        both = zip(a.read_bytes().splitlines(True), b.read_bytes().splitlines(True), strict=False)
        for number, (x, y) in enumerate(both, 1):
            if x != y:
                return f"{b}: line {number} is {y[:200]!r}, and in {a.name} {x[:200]!r}"
        if a.stat().st_size != b.stat().st_size:
            return f"{b}: {count_lines(b)} lines, and in {a.name} {count_lines(a)}"
    return ""


def tiny_checkpoint(place: Path) -> Path:
    """A captioner after a few steps on drawn scenes."""
    if not (place / "best").exists():
        options = (
            "--stage coco --cnn vgg_micro --cnn-width 0.25 --fc-size 24 --image-size 64 --resize 64 --flip false --rnn-size 24 "
            "--input-encoding-size 16 --batch-size 16 --word-count-threshold 1 --epochs 1"
        )
        data = demo.generate(place.with_name("demo"), train=64, val=8, size=64)
        command = [sys.executable, "train.py", *options.split(), "--out-dir", str(place), "--data", str(data)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return place / "best"


def prove(
    place: Path,
    checkpoint: Path,
    count: int,
    kills: int,
    *,
    photographs: Path | None = None,
    options: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
    seed: int = 0,
) -> dict[str, Any]:
    """All of it, in `place`; the record. Fault where something does not hold."""
    some = min(count, max(count // 10, 2 * _BATCH))
    images = {n: bulk_images.make(place / f"images-{n}", n, photographs) for n in (some, count)}
    jobs = {n: Job(checkpoint, images[n].inputs, tuple(options)) for n in images}
    results = place / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()

    straight = {n: results / f"straight-{n}.jsonl" for n in images}
    runs = {n: jobs[n].run(straight[n]) for n in images}
    for n, output in straight.items():
        found, broken = (count_lines(output), count_lines(failures(output))), images[n].broken
        if found != (n - broken, broken):
            raise Fault(f"{output}: {found[0]} captions and {found[1]} failures; of {n} images {broken} are broken")
    ratio = runs[count]["peak_mib"] / runs[some]["peak_mib"]
    if ratio > 1 + MOST_GROWTH:
        peaks = ", ".join(f"{runs[n]['peak_mib']:.0f} MiB for {n}" for n in images)
        raise Fault(f"memory grows with the images: {peaks}")

    stopped = results / "killed.jsonl"
    seen = killed(jobs[count], stopped, kills, count, seed, runs[count]["seconds"])
    _same(straight[count], stopped)

    merged = results / "merged.jsonl"
    for shard in ("1/2", "2/2"):
        _end(jobs[count].start(merged, "--shard", shard), Path(f"{merged}.shard-{shard.replace('/', '-of-')}"))
    merging = _end(_pycap(["merge", str(merged)]), merged)
    _same(straight[count], merged)

    for form in formats:
        job = replace(jobs[some], options=(*options, "--format", form))
        outputs = [results / f"{form}-{way}" for way in ("straight", "killed")]
        for folder in outputs if job.beside else ():
            folder.mkdir()
        killed(job, outputs[1], 1, some, seed, job.run(outputs[0])["seconds"])
        _same(*outputs)
    return {
        "images": {n: vars(made) | {"inputs": len(made.inputs)} for n, made in images.items()},
        "uninterrupted": {n: {**run, "images_per_s": n / run["seconds"]} for n, run in runs.items()},
        "peak_ratio": ratio,
        "bytes_an_image": (straight[count].stat().st_size + failures(straight[count]).stat().st_size) / count,
        "kills": kills,
        "lines_at_kills": seen,
        "merge": merging,
        "formats": list(formats),
        "identical": True,
    }


def table(record: dict[str, Any]) -> str:
    """What was shown, as Markdown."""
    rows = [
        (f"{int(n):,}, in one go", f"{run['peak_mib']:.1f} MiB", f"{run['images_per_s']:.0f}", "")
        for n, run in record["uninterrupted"].items()
    ]
    count = max(map(int, record["uninterrupted"]))
    at = ", ".join(f"{max(seen - 1, 0):,}" for seen in record["lines_at_kills"])  # without the header
    rows.append((f"{count:,}, killed {record['kills']} times", "", "", f"the same bytes; killed after {at} images"))
    rows.append(
        (f"{count:,}, two shards merged", f"{record['merge']['peak_mib']:.1f} MiB (merging)", "", "the same bytes")
    )
    rows.append((f"a tenth, {', '.join(record['formats'])}", "", "", "the same bytes killed and not"))
    return markdown_table(("images", "peak memory", "images/s", "result"), rows)


def _same(one: Path, other: Path) -> None:
    if found := difference(one, other):
        raise Fault(found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20000, help="how many images")
    parser.add_argument("--kills", type=int, default=10, help="how often the job is killed")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photographs below it are half of the images")
    parser.add_argument("--checkpoint", type=Path, help="a run or its checkpoint (default: a tiny one, trained first)")
    parser.add_argument("--place", type=Path, default=Path("build/bulk"), metavar="DIR", help="images and results")
    parser.add_argument("--beam-size", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the kernels (default: one a CPU)")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=FORMATS, metavar="FORM", help="also of these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the record, JSON")
    own = parser.parse_args(argv)
    threads = own.threads or cpu_count()
    options = "--beam-size", str(own.beam_size), "--threads", str(threads)
    place = own.place.absolute()
    checkpoint = own.checkpoint.absolute() if own.checkpoint else tiny_checkpoint(place / "run")
    try:
        record = prove(
            place, checkpoint, own.images, own.kills,
            photographs=own.data, options=options, formats=own.formats, seed=own.seed,
        )  # fmt: skip
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    result = {
        "command": f"python -m benchmarks.bulk --images {own.images} --kills {own.kills} --data DIR --checkpoint RUN",
        "commit": machine.commit(),
        "hardware": machine.cpu_name(),
        "threads": threads,
        "versions": machine.versions(("numpy", "pillow", "h5py")),
        **record,
    }
    write_whole(own.out, json.dumps(result, indent=1) + "\n")
    small, large = record["uninterrupted"].values()
    print(
        f"{own.images} images, {own.kills} kills: the same bytes; {large['peak_mib']:.0f} MiB at most, "
        f"{small['peak_mib']:.0f} for a tenth of them; {large['images_per_s']:.0f} images/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
