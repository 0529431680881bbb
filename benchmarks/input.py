"""How many images a second become batches on a CPU: pycap's loader, and PyTorch's DataLoader with torchvision beside it.

    python -m benchmarks.input [--data DIR] [--out benchmarks/results/input.json] [--workers 1 2] [--images 640] [--rounds 5]

DIR: photographs, at any depth; without it JPEGs of COCO's sizes are drawn. Both sides decode, squash to 256 x 256, draw where
to crop and whether to mirror, and make batches of 64. Nothing is kept in memory between passes, and fewer files are gone
through repeatedly. `files`: the photographs. `store`: the same, squashed before and encoded at quality 95: pycap's own store
of images, and a folder of the same JPEGs for the peer. `filling`: the pass that makes the store. A pass is an epoch; the
sides take turns, the other way round in each round, and the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine
from benchmarks.joint_work import smooth_image
from pycap.data import DataError, Example
from pycap.data.disk import write_whole
from pycap.data.images import PreprocessSpec, decode_image, encode_jpeg
from pycap.data.inputs import images_below
from pycap.data.loader import Loader
from pycap.data.store import ImageStore
from pycap.data.vocab import Vocabulary

BATCH = 64
CAPTIONS = ("a photograph",)
#: COCO's most frequent sizes, (width, height). At this quality drawn JPEGs of them are as large as its photographs: 140 kB.
DRAWN = ((640, 480), (480, 640), (640, 427), (640, 480))
QUALITY = 95


@dataclass
class Pass:
    """One side at one work. epoch: makes all batches, and tells the images of each. samples: (seconds, CPU seconds)."""

    work: str
    side: str
    workers: int
    epoch: Callable[[], Iterable[int]]
    samples: list[tuple[float, float]] = field(default_factory=list)

    def run(self) -> int:
        """An epoch, timed; how many images it had."""
        used, began = cpu_seconds(), time.perf_counter()
        images = sum(self.epoch())
        self.samples.append((time.perf_counter() - began, cpu_seconds() - used))
        return images


def cpu_seconds() -> float:
    """CPU time of this process and of its children at work, all threads; of children only where the system has /proc."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            after_name = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            total += (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    return total


def photographs(data: Path | None, place: Path, images: int) -> list[Path]:
    """`images` files under `place`: links to those of `data`, again and again, or drawn ones."""
    if data is None:
        rng = np.random.default_rng(0)
        drawn = place / "drawn"
        drawn.mkdir()
        for i, (width, height) in enumerate(islice(cycle(DRAWN), 32)):
            picture = smooth_image(rng, max(width, height))[:height, :width]
            Image.fromarray(picture).save(drawn / f"{i}.jpg", quality=QUALITY)
        data = drawn
    files = [data / name for name in images_below(data)]
    if not files:
        raise DataError(f"{data}: no images in the folder or below it")
    folder = place / "files" / "all"  # the folder of a class, as torchvision wants it
    folder.mkdir(parents=True)
    links = [folder / f"{i}{file.suffix.lower()}" for i, file in enumerate(islice(cycle(files), images))]
    for link, file in zip(links, cycle(files)):
        link.symlink_to(file.resolve())
    return links


def squashed(files: Sequence[Path], place: Path, size: int) -> None:
    """JPEGs of the squashed images, as the store has them, for the peer."""
    folder = place / "store" / "all"
    folder.mkdir(parents=True)
    made: dict[Path, bytes] = {}
    for file in files:
        source = file.resolve()
        if source not in made:
            made[source] = encode_jpeg(decode_image(source, size))
        (folder / f"{file.stem}.jpg").write_bytes(made[source])


def ours(examples: Sequence[Example], spec: PreprocessSpec, workers: int, store: ImageStore | None) -> Iterator[int]:
    """An epoch of pycap's loader."""
    loader = Loader(
        examples,
        Vocabulary.build(CAPTIONS, 1),
        spec,
        batch_size=BATCH,
        seq_per_img=1,
        train=True,
        seed=0,
        workers=workers,
        prefetch=max(4, workers * 3 // 2),
        store=store,
        cache_bytes=0,
    )
    return (len(batch) for batch in loader.epoch(0))


def agreement(peer: ModuleType, files: Iterable[Path], size: int) -> dict[str, Any]:
    """How the two sides' pixels differ, over files that are not the same."""
    counted, same, largest, total = 0, 0, 0, 0.0
    for file in {file.resolve(): file for file in files}:
        apart = np.abs(decode_image(file, size).astype(int) - peer.pixels(file, size))
        counted, same = counted + 1, same + (not apart.any())
        largest, total = max(largest, int(apart.max())), total + float(apart.mean())
    return {"images": counted, "identical": same, "largest_level": largest, "mean_level": round(total / counted, 5)}


def take_turns(passes: Sequence[Pass], rounds: int, images: int) -> None:
    """Every pass once a round, the other way round each time; a first round is forgotten."""
    for turn in range(rounds + 1):
        for one in passes[:: -1 if turn % 2 else 1]:
            made = one.run()
            if made != images:
                raise DataError(
                    f"{one.side}, {one.work}: {made} images of {images}; leave out those that cannot be read"
                )
        if turn == 0:
            for one in passes:
                one.samples.clear()


def row(one: Pass, images: int) -> dict[str, Any]:
    """Medians of a pass over its rounds."""
    seconds, used = (statistics.median(values) for values in zip(*one.samples, strict=True))
    return {
        "work": one.work,
        "side": one.side,
        "workers": one.workers,
        "images_per_s": round(images / seconds, 1),
        "images_per_core_s": round(images / used, 1),
        "rounds": len(one.samples),
    }


def find_peer() -> ModuleType | None:
    """The other side; None, and told, where PyTorch is not installed."""
    try:
        from benchmarks.peers import torch_input
    except ImportError as error:
        print(f"pycap alone: {error}", file=sys.stderr)
        return None
    return torch_input


def measure(own: argparse.Namespace, peer: ModuleType | None, place: Path) -> dict[str, Any]:
    """The rows, and how the pixels of the two sides differ."""
    spec = PreprocessSpec(resize=own.resize, crop=own.resize * 7 // 8)
    files = photographs(own.data, place, own.images)
    squashed(files, place, own.resize)
    examples = [Example(i, file.name, file, CAPTIONS) for i, file in enumerate(files)]
    rows = []
    with ExitStack() as stack:
        store = stack.enter_context(ImageStore(place / "images.h5", own.resize))
        filling = Pass("filling", "pycap", 1, partial(ours, examples, spec, 1, store))
        filling.run()
        rows.append(row(filling, own.images))
        for work, kept in (("files", None), ("store", store)):
            for workers in own.workers:
                passes = [Pass(work, "pycap", workers, partial(ours, examples, spec, workers, kept))]
                if peer is not None:
                    pipeline = peer.Pipeline(place / work, spec.resize, spec.crop, BATCH, workers)
                    passes.append(Pass(work, peer.NAME, workers, pipeline.epoch))
                take_turns(passes, own.rounds, own.images)
                rows += [row(one, own.images) for one in passes]
    return {"rows": rows, "pixels": agreement(peer, files, own.resize) if peer else None}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="photographs, also in folders below it (default: drawn)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the results, JSON")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="threads, and processes of the peer, to try"
    )
    parser.add_argument("--resize", type=int, default=256, help="side in pixels to which images are squashed")
    parser.add_argument("--images", type=int, default=640, help="images a pass")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    own = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as place:
            found = measure(own, find_peer(), Path(place))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    for one in found["rows"]:
        rates = f"{one['images_per_s']:8,.0f} images/s {one['images_per_core_s']:8,.0f} a core"
        print(f"{one['work']:<8} {one['workers']} workers {rates}  {one['side']}")
    print(f"pixels: {found['pixels']}")
    if own.out:
        about = {
            "command": "python -m benchmarks.input --data DIR --out FILE",
            "commit": machine.commit(),
            "hardware": machine.cpu_name(),
            "what": f"{own.images} images to {own.resize} px, batches of {BATCH}; medians of {own.rounds} rounds",
            "versions": machine.versions(("numpy", "pillow", "h5py", "torch", "torchvision")),
        }
        write_whole(own.out, json.dumps(about | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
