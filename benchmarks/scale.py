"""From rates to hours: a simulation of captioning and training at scale, whose tables are those of docs/scale.md.

    python -m benchmarks.scale [--rates FILE] [--set decode_100kB=500 ...] [--update docs/scale.md]

A machine is a few pools of servers (storage, cores, Python's lock, the GPUs) through which batches go, at most so many at
once. What was measured comes from a file of `benchmarks.rates`, with which you measure your own machine; what was not
stands in ASSUMED.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path

from benchmarks import bulk
from benchmarks.report import markdown_table, replace_block

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks/results/rates.json"
PROOF = ROOT / "benchmarks/results/bulk.json"


@dataclass(frozen=True)
class Rate:
    """A number and where it comes from."""

    value: float
    unit: str
    source: str


ASSUMED = {
    "gpu_caption": Rate(10_000, "images/s a GPU", "predicted: VGG16 forward at 450 TFLOP/s and beam 3, docs/gpu.md"),
    "gpu_beam": Rate(50_000, "images/s a GPU", "predicted: beam 3 from features, 20 steps of 192 rows"),
    "gpu_train": Rate(4_400, "images/s a GPU", "predicted: 64 images x 5 captions in 14.5 ms, bf16, docs/gpu.md"),
    "gpu_copy": Rate(20e9, "bytes/s a GPU", "assumed: PCIe 4 or 5, pinned memory"),
    "gpu_links": Rate(370e9, "bytes/s a GPU", "predicted: sums over NVLink, docs/gpu.md"),
    "net_links": Rate(50e9, "bytes/s a GPU", "assumed: 400 Gbit/s a GPU between machines"),
    "net_servers": Rate(1.25e9, "bytes/s", "assumed: 10 Gbit/s between servers without GPUs"),
    "disk_laptop": Rate(0.5e9, "bytes/s", "assumed: SATA SSD"),
    "disk_server": Rate(3e9, "bytes/s", "assumed: NVMe"),
    "disk_node": Rate(20e9, "bytes/s", "assumed: eight NVMe"),
    "shared": Rate(40e9, "bytes/s", "assumed: one parallel file system that all machines read"),
    "failures": Rate(720, "hours a machine", "assumed: between two kills (preemption, power, people)"),
    "relaunch": Rate(60, "s", "assumed: until a killed rank is noticed and the job runs again"),
}

CPU_BATCH, GPU_BATCH = 16, 64
PARAMETERS = 148.7e6  # of VGG16 up to fc7, and an LSTM of 512 with 10,000 words
PAPER, MANY = 510_123, 100_000_000
PIXELS = 256 * 256 * 3  # bytes of an image on its way to a GPU
BATCHES = 2000  # simulated: the rate is that of the last two thirds
VARIATION = 0.2  # a batch takes this much more or less time in each stage, at most


@dataclass(frozen=True)
class Machine:
    """A kind of machine. nodes: so many of them, which read from one file system, `disk`; shards: processes on each GPU."""

    name: str
    cores: int
    gpus: int = 0
    disk: str = "disk_server"
    precision: str = "fp32"
    nodes: int = 1
    shards: int = 1

    @property
    def ranks(self) -> int:
        """Processes: `shards` a GPU, each with its part of cores and storage; or one a machine, with all of its cores."""
        return self.nodes * max(self.gpus, 1) * self.shards


MACHINES = (
    Machine("2 cores", 2, disk="disk_laptop"),
    Machine("16 cores", 16),
    Machine("16 cores, bf16 (AMX)", 16, precision="bf16"),
    Machine("16 cores, one H200*", 16, 1),
    Machine("the same, 4 shards*", 16, 1, shards=4),
    Machine("112 cores, 8 H200*", 112, 8, "disk_node"),
    Machine("8 such nodes*", 112, 8, "shared", nodes=8),
)


@dataclass(frozen=True)
class Source:
    """What is captioned. read: the rate of a process's reading of an HDF5 file, empty for files; decode: that of a core."""

    name: str
    bytes: float
    decode: str = ""
    read: str = ""
    lock: str = "lock_files"


@dataclass(frozen=True)
class Stage:
    """What happens to a batch: `seconds` on one of the servers of `pool`."""

    name: str
    pool: str
    seconds: float


Values = Mapping[str, float]


def sources(rates: Values) -> tuple[Source, ...]:
    """What images may come from."""
    return (
        Source("JPEGs of 100 kB", 100e3, "decode_100kB"),
        Source("JPEGs of 500 kB", 500e3, "decode_500kB"),
        Source("a store of 256 x 256", rates["store_bytes"], "decode_store", "store_read", "lock_store"),
        Source("features, 4,096 float32", 4096 * 4, "", "features_read"),
    )


def line(machine: Machine, source: Source, rates: Values) -> tuple[list[Stage], dict[str, int], int]:
    """The stages of one of the machine's ranks, the servers of its pools, and the images a batch."""
    batch = GPU_BATCH if machine.gpus else CPU_BATCH
    ranks = machine.ranks
    per_image = [("reading", "storage", source.bytes * ranks / rates[machine.disk])]
    if source.read:
        per_image.append(("reading HDF5", "lock", 1 / rates[source.read]))
    if source.decode:
        per_image.append(("decoding", "cores", 1 / rates[source.decode]))
        per_image.append(("Python's lock", "lock", 1 / rates[source.lock]))
    if machine.gpus:
        size = PIXELS if source.decode else source.bytes
        per_image.append(("copying", "copy", machine.shards * size / rates["gpu_copy"]))
        per_image.append(("GPU", "GPU", machine.shards / rates["gpu_caption" if source.decode else "gpu_beam"]))
    else:  # measured with two threads: a core has half of it
        what, name = ("caption", "CNN and beam") if source.decode else ("beam", "beam")
        per_image.append((name, "cores", 2 / rates[f"{what}_{machine.precision}"]))
    per_image.append(("writing", "lock", 1 / rates["write_rows"]))
    servers = {"cores": machine.nodes * machine.cores // ranks, "storage": 1, "lock": 1, "copy": 1, "GPU": 1}
    return [Stage(name, pool, batch * seconds) for name, pool, seconds in per_image], servers, batch


def simulate(
    stages: Sequence[Stage], servers: Mapping[str, int], batch: int, batches: int = BATCHES, ahead: int = 0
) -> tuple[float, dict[str, float]]:
    """Images a second, and how much of the time each pool works, with at most `ahead` batches under way (0: two a server of the
    largest pool, and two).

    First come, first served in each pool. The times vary by VARIATION, drawn from a seed.
    """
    draw = random.Random(0)
    ahead = ahead or 2 * max(servers.values()) + 2
    free = {pool: [0.0] * count for pool, count in servers.items()}
    busy = dict.fromkeys(free, 0.0)
    waiting = [(0.0, number, 0) for number in range(min(ahead, batches))]  # (ready, batch, stage), a heap
    begun, done = len(waiting), []
    while waiting:
        ready, number, place = heapq.heappop(waiting)
        if place == len(stages):
            done.append(ready)
            if begun < batches:
                heapq.heappush(waiting, (ready, begun, 0))
                begun += 1
            continue
        stage = stages[place]
        seconds = stage.seconds * (1 + VARIATION * (2 * draw.random() - 1))
        end = max(ready, heapq.heappop(free[stage.pool])) + seconds
        heapq.heappush(free[stage.pool], end)
        busy[stage.pool] += seconds
        heapq.heappush(waiting, (end, number, place + 1))
    third = len(done) // 3
    rate = batch * (len(done) - 1 - third) / (done[-1] - done[third])
    return rate, {pool: busy[pool] / (servers[pool] * done[-1]) for pool in free}


@dataclass(frozen=True)
class Outcome:
    """Of all machines together. limit: the stage that decides; then: images/s without that limit."""

    rate: float
    limit: str
    then: float


def outcome(machine: Machine, source: Source, rates: Values) -> Outcome:
    """A machine's rate, what limits it, and what the next limit would be."""
    stages, servers, batch = line(machine, source, rates)
    rate, busy = simulate(stages, servers, batch)
    pool = max(busy, key=lambda name: busy[name])
    limit = max((stage for stage in stages if stage.pool == pool), key=lambda stage: stage.seconds)
    without = [replace(stage, seconds=0.0) if stage.name == limit.name else stage for stage in stages]
    then, _ = simulate(without, servers, batch)
    return Outcome(rate * machine.ranks, limit.name, then * machine.ranks)


def with_kills(hours: float, machine: Machine, images: float, rates: Values) -> tuple[float, float, float]:
    """Kills to be expected in a job of so many hours, and the hours that they add: with --resume, and without.

    A kill stops the whole job. With --resume it costs the relaunch, the start, counting the images, and going through the names
    and a rank's own journal up to where it was, half of it on average. Without, all is done again: (e^(rT) - 1)/r hours in
    place of T at r kills an hour, where none comes to an end at all before long.
    """
    rate = machine.nodes / rates["failures"]
    kills = rate * hours
    walk = 1.5 * images / rates["list_files"] + images / machine.ranks / 2 / rates["walk_rows"]
    again = (exp(kills) - 1) / rate - hours if kills < 50 else float("inf")
    return kills, kills * (rates["relaunch"] + rates["start"] + walk) / 3600, again


def training(machine: Machine, rates: Values, images: int) -> tuple[float, float, float, str]:
    """A data-parallel epoch of the joint model: seconds a step, of them waiting for the sum of gradients; hours; the limit.

    Gradients are of PARAMETERS numbers, bf16 between GPUs and float32 between CPUs. A sum over a node's GPUs, of which then
    each exchanges its part with other nodes, takes 2 (n-1)/n times its bytes over the link. Most gradients, fc6's and fc7's,
    are there first, so that the sum goes on during the convolutions' backward, half of the step.
    """
    nodes = 2 * (machine.nodes - 1) / machine.nodes
    if machine.gpus:
        batch, size = 64, PARAMETERS * 2
        compute = batch / rates["gpu_train"]
        within = 2 * (machine.gpus - 1) / machine.gpus * size / rates["gpu_links"]
        exchange = within + nodes * size / machine.gpus / rates["net_links"]
        read = batch * machine.gpus / min(machine.cores * rates["decode_store"], machine.gpus * rates["lock_store"])
    else:
        batch, size = 4, PARAMETERS * 4
        compute = batch / rates[f"train_{machine.precision}"] * 2 / machine.cores
        exchange, read = nodes * size / rates["net_servers"], 0.0  # a few images a second
    wait = max(0.0, exchange - compute / 2)
    step = max(compute + wait, read)
    limit = "decoding" if read > compute + wait else "gradients" if wait > compute else "computing"
    return step, wait, images / (batch * machine.ranks) * step / 3600, limit


def duration(hours: float) -> str:
    """Hours for people."""
    if hours == float("inf"):
        return "never"
    for least, unit, hours_each in ((48, "days", 24), (1, "h", 1), (1 / 60, "min", 1 / 60), (1 / 3600, "s", 1 / 3600)):
        if hours >= least:
            return f"{_digits(hours / hours_each)} {unit}"
    return f"{_digits(hours * 3.6e6)} ms" if hours else "0"


def _digits(value: float) -> str:
    """Two digits, or the whole number."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def _bytes(value: float) -> str:
    unit, size = next((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)) if value >= s)
    return f"{_digits(value / size)} {unit}"


def _rounded(value: float) -> str:
    """Three digits: what is predicted is not known better."""
    digits = float(f"{value:.3g}")
    return f"{digits:,.0f}" if digits >= 100 else f"{digits:g}"


def rates_table(rates: Mapping[str, Rate]) -> str:
    """Every number that the others are made of."""
    rows = [(f"`{name}`", _rounded(rate.value), rate.unit, rate.source) for name, rate in rates.items()]
    return markdown_table(("rate", "value", "unit", "source"), rows)


def captioning_table(rates: Values) -> str:
    """Machines by sources: the rate, what limits it, the rate without that limit, and how long it takes."""
    rows = []
    for source in sources(rates):
        for machine in MACHINES:
            found = outcome(machine, source, rates)
            hours = [duration((count / found.rate + rates["start"]) / 3600) for count in (PAPER, MANY)]
            read = f"{_bytes(found.rate * source.bytes)}/s"
            rows.append(
                (source.name, machine.name, _rounded(found.rate), found.limit, _rounded(found.then), read, *hours)
            )
    heading = ("from", "on", "images/s", "limit", "without it", "reads", f"{PAPER:,}", "100 million")
    return markdown_table(heading, rows)


def bytes_table(rates: Values) -> str:
    """What goes in and comes out."""
    ins = [(source.name, source.bytes) for source in sources(rates)]
    rows = [("captions with three beams each, JSON Lines", rates["row_bytes"]), *ins]
    cells = [(name, _bytes(size), *(_bytes(size * count) for count in (PAPER, MANY))) for name, size in rows]
    return markdown_table(("what", "an image", f"{PAPER:,}", "100 million"), cells)


def shards_table(rates: Values) -> str:
    """100 million JPEGs of 100 kB on more and more of the largest machines."""
    source, rows = sources(rates)[0], []
    for nodes in (1, 2, 4, 8, 16, 32):
        machine = replace(MACHINES[-1], nodes=nodes)
        found = outcome(machine, source, rates)
        work, listing, merge = (MANY / found.rate, MANY / rates["list_files"], MANY / rates["merge_rows"])
        times = [duration(seconds / 3600) for seconds in (listing, work, merge)]
        rows.append((f"{nodes}", f"{machine.ranks}", _rounded(found.rate), found.limit, *times))
    return markdown_table(("nodes", "ranks", "images/s", "limit", "listing", "captioning", "merging"), rows)


def kills_table(rates: Values) -> str:
    """What kills add to 100 million JPEGs of 100 kB."""
    source, rows = sources(rates)[0], []
    for machine in MACHINES:
        hours = MANY / outcome(machine, source, rates).rate / 3600
        kills, more, again = with_kills(hours, machine, MANY, rates)
        rows.append((machine.name, duration(hours), f"{kills:.2g}", duration(more), duration(again)))
    return markdown_table(("on", "takes", "kills", "more with --resume", "more without"), rows)


def training_table(rates: Values) -> str:
    """An epoch of the paper's images."""
    rows = []
    servers = replace(MACHINES[2], name="8 servers, 16 cores, bf16", nodes=8)
    for machine in (*MACHINES[:3], servers, MACHINES[3], *MACHINES[5:]):
        step, wait, hours, limit = training(machine, rates, PAPER)
        rows.append((machine.name, duration(step / 3600), duration(wait / 3600), limit, duration(hours)))
    return markdown_table(("on", "a step", "of it waiting for gradients", "limit", f"an epoch of {PAPER:,}"), rows)


def tables(rates: Mapping[str, Rate]) -> dict[str, str]:
    """The page's tables by the name of their markers."""
    values = {name: rate.value for name, rate in rates.items()}
    proof = json.loads(PROOF.read_text("utf-8"))
    made = {"proof": bulk.table(proof), "rates": rates_table(rates)}
    makers = (captioning_table, bytes_table, shards_table, kills_table, training_table)
    return made | {maker.__name__.removesuffix("_table"): maker(values) for maker in makers}


def load(file: Path = MEASURED, changed: Sequence[str] = ()) -> dict[str, Rate]:
    """Measured rates, ASSUMED ones, and changes as NAME=VALUE. ValueError names what is wrong."""
    found = {name: Rate(**rate) for name, rate in json.loads(file.read_text("utf-8"))["rates"].items()}
    rates = found | ASSUMED
    for change in changed:
        name, equals, value = change.partition("=")
        if not equals or name not in rates:
            raise ValueError(f"--set {change}: NAME=VALUE with one of {', '.join(rates)}")
        rates[name] = Rate(float(value), rates[name].unit, "given")
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=Path, default=MEASURED, metavar="FILE", help="that benchmarks.rates wrote")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other rates than those")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="write the tables into a page, between its markers")
    own = parser.parse_args(argv)
    try:
        made = tables(load(own.rates, own.set))
        if own.update:
            text = own.update.read_text("utf-8")
            for name, table in made.items():
                text = replace_block(text, table, own.update.name, f"scale {name}")
            own.update.write_text(text, "utf-8")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, table in made.items():
        print(f"{name}\n{table}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
