"""`pycap serve` under load: many clients at once for a while, and what batching brings over one image at a time.

    python -m benchmarks.serving [--checkpoint CHECKPOINT] [--name NAME] [--data DIR] [--out FILE] [--seconds 30]

Three services, one after the other: one that batches, asked by `--clients` clients at once; one with --max-batch 1, asked by as
many; and one with --max-batch 1, asked by one client. A client keeps its connection, sends JPEGs of DIR (drawn ones without
it), and waits as long as Retry-After says where it is answered 503. Any other answer than 200 and 503, a connection that
ends, or memory that grows is a fault: status 1. Clients share the CPUs with the service. FILE holds a record a NAME, and
those of other names stay in it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import bulk, joint_work, machine
from benchmarks.http_client import Answer, Client, predict_request
from benchmarks.report import markdown_table
from benchmarks.service import ROOT, Service, ServiceError, Usage
from pycap import checkpoint as checkpoints
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data.disk import write_whole
from pycap.data.images import PreprocessSpec
from pycap.data.inputs import images_below
from pycap.device import cpu_count

WARM_S = 2.0  # before anything is counted
MOST_GROWTH = 0.02  # of the memory, from the first third of the time to the last
IMAGES = 256
_SAMPLE_S = 0.25
HEAD = (
    "model", "one client", "many, `--max-batch 1`", "many, batched", "ratio", "images a batch", "latency, ms", "memory, MiB",
    "answers to many, batched",
)  # fmt: skip
RESULTS = ROOT / "benchmarks/results/serving.json"


@dataclass
class Load:
    """What clients saw and what the service held. statuses: of all answers; latencies: of captions within the `seconds` that
    count, in seconds."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    client_cpu_s: float = 0.0
    all_cpu_s: float = 0.0
    batches: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Captions a second."""
        return len(self.latencies) / self.seconds

    def thirds(self) -> tuple[float, float]:
        """The most memory, MiB, in the first and in the last third of the time."""
        third = max(1, len(self.usage) // 3)
        first, last = (max(one.rss_mib for one in part) for part in (self.usage[:third], self.usage[-third:]))
        return first, last

    def record(self) -> dict[str, Any]:
        """As the file has it."""
        first, last = self.thirds()
        service_cpu_s = self.usage[-1].cpu_s - self.usage[0].cpu_s
        used = {
            "service": service_cpu_s,
            "clients": self.client_cpu_s,
            "others": max(0.0, self.all_cpu_s - self.client_cpu_s - service_cpu_s),
        }
        return {
            "seconds": self.seconds,
            "captions_per_s": round(self.rate, 1),
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
            "latency_ms": {
                name: round(1000 * float(np.quantile(self.latencies or [0.0], q)), 1)
                for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
            "batches": self.batches,
            "cpus_used": {name: round(cpu_s / self.seconds, 2) for name, cpu_s in used.items()},
            "memory_mib": {
                "first_third": round(first, 1),
                "last_third": round(last, 1),
                "peak": round(self.usage[-1].peak_mib, 1),
            },
            "open_files": max(one.files for one in self.usage),
            "threads": max(one.threads for one in self.usage),
        }


def photographs(data: Path | None) -> list[bytes]:
    """JPEGs: those of a folder, or drawn ones of the same size as Flickr8k's here."""
    if data is not None:
        names = (name for name in images_below(data) if name.lower().endswith((".jpg", ".jpeg")))
        return [(data / name).read_bytes() for name in islice(names, IMAGES)]
    rng = np.random.default_rng(0)
    made = []
    for _ in range(32):
        file = io.BytesIO()
        Image.fromarray(joint_work.smooth_image(rng, 224)).save(file, "JPEG", quality=70)
        made.append(file.getvalue())
    return made


def drawn_checkpoint(place: Path) -> Path:
    """A NIC with VGG16 at 224 x 224, an LSTM of 512 and COCO's 9,956 words, of drawn weights: what it costs is what counts.

    It never says END first, so its captions are as long as they may be."""
    if not place.exists():
        config = TrainConfig(**{**joint_work.COCO, "precision": "fp32"}).validate()
        model = build_model(config, joint_work.COCO_WORDS)
        checkpoints.save(
            place,
            model=model.state_arrays(),
            optimizer=None,
            state={},
            vocab=joint_work.vocabulary(joint_work.COCO_WORDS),
            config=config,
            preprocess=PreprocessSpec(config.resize_to, config.image_size).to_dict(),
        )
    return place


async def ask(service: Service, images: Sequence[bytes], clients: int, seconds: float, warm_s: float = WARM_S) -> Load:
    """So many clients at once, for so many seconds after `warm_s` that do not count."""
    load = Load(seconds)
    requests = [predict_request(image, host=service.host) for image in images]
    numbers = count()
    begin = time.perf_counter() + warm_s
    end = begin + seconds

    async def work() -> None:
        async with Client(service.address) as client:
            while (sent := time.perf_counter()) < end:
                try:
                    answer = await client.ask(requests[next(numbers) % len(requests)])
                except (OSError, TimeoutError) as error:
                    load.faults.append(f"{type(error).__name__}: {error}")
                    return
                now = time.perf_counter()
                load.statuses[answer.status] += 1
                if answer.status == 200 and begin <= now < end:
                    load.latencies.append(now - sent)
                if fault := wrong(answer):
                    load.faults.append(fault)
                if answer.status == 503:
                    await asyncio.sleep(min(int(answer.headers.get("retry-after", "1")), max(0.0, end - now)))

    async def watch() -> None:
        await asyncio.sleep(begin - time.perf_counter())
        before, used, used_by_all = await service.metrics(), time.process_time(), machine.busy_cpu_s()
        while time.perf_counter() < end:
            load.usage.append(service.usage())
            await asyncio.sleep(_SAMPLE_S)
        load.usage.append(service.usage())
        load.client_cpu_s, load.all_cpu_s = time.process_time() - used, machine.busy_cpu_s() - used_by_all
        load.batches = batch_sizes(before, await service.metrics())

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for _ in range(clients):
            group.create_task(work())
    return load


def wrong(answer: Answer) -> str:
    """What is wrong with an answer to a sound request; empty where nothing is."""
    if answer.status == 200:
        return "" if json.loads(answer.body).get("predictions") else f"200 without predictions: {answer.body[:200]!r}"
    if answer.status != 503:
        return f"{answer.status}: {answer.body[:200]!r}"
    after = answer.headers.get("retry-after", "")
    return "" if after.isdigit() and int(after) > 0 else f"503 with Retry-After {after!r}"


def batch_sizes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Of the batches between two looks at the metrics: how many, and images a batch on average."""
    batches, images = (
        after[name] - before.get(name, 0.0) for name in ("pycap_batch_images_count", "pycap_batch_images_sum")
    )
    return {"batches": batches, "images_a_batch": round(images / max(batches, 1), 2)}


def measure(
    checkpoint: Path,
    images: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    single_s: float,
    options: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The record of one model, and its faults."""
    loads = {}
    for name, how, many, duration in (
        ("batched", (), clients, seconds),
        ("max_batch_1", ("--max-batch", "1"), clients, single_s),
        ("one_client", ("--max-batch", "1"), 1, single_s),
    ):
        with Service(checkpoint, (*options, *how)) as service:
            loads[name] = asyncio.run(ask(service, images, many, duration))
    faults = [f"{name}: {fault}" for name, load in loads.items() for fault in load.faults[:5]]
    first, last = loads["batched"].thirds()
    if last > first * (1 + MOST_GROWTH):
        faults.append(f"batched: memory grew from {first:.1f} to {last:.1f} MiB")
    record: dict[str, Any] = {name: load.record() for name, load in loads.items()}
    ratios = {f"over_{name}": round(loads["batched"].rate / max(loads[name].rate, 1e-9), 2) for name in list(loads)[1:]}
    return record | {"ratios": ratios, "clients": clients, "options": list(options)}, faults


def table(records: Mapping[str, Any]) -> str:
    """The records as Markdown."""
    rows = []
    for name, record in records.items():
        batched, single = record["batched"], record["one_client"]
        statuses = ", ".join(f"{number:,} x {status}" for status, number in batched["statuses"].items())
        memory = batched["memory_mib"]
        rows.append(
            (
                name,
                f"{single['captions_per_s']:.1f}",
                f"{record['max_batch_1']['captions_per_s']:.1f}",
                f"{batched['captions_per_s']:.1f}",
                f"{min(record['ratios'].values()):.1f}x",
                f"{batched['batches']['images_a_batch']:.1f}",
                f"{single['latency_ms']['p50']:.0f} / {batched['latency_ms']['p50']:.0f} ({batched['latency_ms']['p99']:.0f})",
                f"{memory['first_third']:.0f} -> {memory['last_third']:.0f}",
                statuses,
            )
        )
    return markdown_table(HEAD, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", type=Path, help="a run or its checkpoint (default: a tiny one, trained first)")
    model.add_argument("--vgg16", action="store_true", help="a NIC of COCO's sizes with drawn weights")
    parser.add_argument("--name", default="", help="of the record (default: what the model is)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="JPEGs, also in folders below it (default: drawn)")
    parser.add_argument(
        "--place", type=Path, default=Path("build/serving"), metavar="DIR", help="checkpoints made here"
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the load on the service that batches")
    parser.add_argument("--single-seconds", type=float, default=10.0, help="of each of the two others")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the records, JSON")
    own, options = parser.parse_known_args(argv)
    place = own.place.absolute()
    if own.vgg16:
        checkpoint, name = drawn_checkpoint(place / "vgg16"), "VGG16 at 224 px"
    elif own.checkpoint:
        checkpoint, name = own.checkpoint.absolute(), own.checkpoint.name
    else:
        checkpoint, name = bulk.tiny_checkpoint(place / "run"), "demo, 64 px"
    try:
        record, faults = measure(
            checkpoint, photographs(own.data), clients=own.clients, seconds=own.seconds, single_s=own.single_seconds,
            options=options,
        )  # fmt: skip
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    name = own.name or name
    print(table({name: record}))
    for fault in faults:
        print(fault, file=sys.stderr)
    if own.out and not faults:
        kept = json.loads(own.out.read_text("utf-8"))["models"] if own.out.exists() else {}
        about = {
            "command": "python -m benchmarks.serving --checkpoint CHECKPOINT --data DIR --out FILE",
            "hardware": machine.cpu_name(),
            "cpus": cpu_count(),
            "versions": machine.versions(("numpy", "pillow", "starlette", "uvicorn", "python-multipart")),
            "models": {**kept, name: {"commit": machine.commit(), **record}},
        }
        write_whole(own.out, json.dumps(about, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
