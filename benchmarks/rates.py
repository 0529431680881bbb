"""How fast the parts of captioning at scale are on this machine: the rates that `benchmarks.scale` computes with.

    python -m benchmarks.rates --data DIR --out benchmarks/results/rates.json [--only decode_100kB ...] [--seconds 3]

DIR: photographs of 640 x 480 or so, of which JPEGs of 100 kB and of 500 kB are made. Each rate is the median of passes that
take so many seconds together, after one that is not counted; they are measured one after the other, alone. With --only the
others in FILE stay.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import case_values, machine
from benchmarks.cases import Case, registry
from benchmarks.jpegs import KINDS, PHOTOGRAPHS, SIZE, lock_rate, photographs, stored
from benchmarks.pycap_side import PycapSide
from pycap.backends import set_threads
from pycap.bulk.journal import Journal, read_rows, standing
from pycap.bulk.merge import merge
from pycap.captioner import Captioner
from pycap.config import TrainConfig
from pycap.data import Example
from pycap.data.disk import write_whole
from pycap.data.features import FeatureStore, Origin
from pycap.data.images import PreprocessSpec, decode_image
from pycap.data.inputs import find
from pycap.data.store import ImageStore
from pycap.data.vocab import SPECIALS, Vocabulary
from pycap.device import cpu_count
from pycap.models.nic import NIC

ROOT = Path(__file__).resolve().parents[1]
FEATURES = 4096
FILES = 500_000  # of the folder that is listed
ROWS = 200_000  # of a journal
MEMBERS = 50_000  # of a tar
BATCH = 16
ROW = {
    "image_id": "000000391895",
    "file_name": "photographs/0123/000000391895.jpg",
    "caption": "a man riding a motorcycle on a dirt road",
    "logprob": -9.1730523109436035,
    "beams": [
        {"caption": "a man riding a motorcycle on a dirt road", "logprob": -9.1730523109436035},
        {"caption": "a man riding on the back of a motorcycle", "logprob": -9.8120307922363281},
        {"caption": "a man on a motorcycle on a dirt road", "logprob": -10.226391792297363},
    ],
}


@dataclass(frozen=True)
class Where:
    """What the measurements share. place: an empty folder for what they make."""

    data: Path
    place: Path
    seconds: float
    threads: int
    files: int = FILES
    rows: int = ROWS
    members: int = MEMBERS


def rate(where: Where, once: Callable[[], int]) -> float:
    """Things a second; `once` does some, and says how many."""
    once()
    found: list[float] = []
    end = time.perf_counter() + where.seconds
    while time.perf_counter() < end or len(found) < 3:
        begin = time.perf_counter()
        count = once()
        found.append(count / (time.perf_counter() - begin))
    return statistics.median(found)


def _made(where: Where, kind: str = "decode_100kB") -> tuple[bytes, ...]:
    return photographs(where.data, *KINDS[kind])


def decode(where: Where, kind: str) -> float:
    return _decoded(where, _made(where, kind))


def _decoded(where: Where, files: Sequence[bytes]) -> float:
    return rate(where, lambda: sum(1 for data in files if len(decode_image(data, SIZE))))


def decode_store(where: Where) -> float:
    return _decoded(where, stored(_made(where)))


def store_bytes(where: Where) -> float:
    files = stored(_made(where))
    return sum(map(len, files)) / len(files)


def _examples(where: Where, count: int) -> list[Example]:
    sources = []
    for number in range(count):
        path = where.place / "sources" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        sources.append(Example(number, path.name, path, ()))
    return sources


def store_read(where: Where) -> float:
    files, examples = stored(_made(where)), _examples(where, 2000)
    with ImageStore(where.place / "images.h5", SIZE) as store:
        for number, example in enumerate(examples):
            store.put(example, files[number % len(files)])
        store.flush()
        return rate(where, lambda: sum(1 for example in examples if store.get(example)))


def features_read(where: Where) -> float:
    examples = _examples(where, 2000)
    origin = Origin("vgg16", "0" * 64, PreprocessSpec(), FEATURES)
    with FeatureStore(where.place / "features.h5", origin) as store:
        store.add(examples, np.ones((len(examples), FEATURES), np.float32))
        return rate(where, lambda: sum(1 for example in examples if len(store.get(example))))


def _case(op: str, dtype: str = "float32") -> Case:
    return next(case for case in registry() if (case.op, case.dtype) == (op, dtype))


@cache
def _model() -> tuple[NIC, TrainConfig]:
    model, config = case_values.captioner(_case("caption"))
    model.train(False)
    return model, config


def _captioner(precision: str) -> Captioner:
    """VGG16 and an LSTM of 512 with 10,000 words, which writes captions of the longest kind."""
    model, config = _model()
    words = [f"word{number}" for number in range(_case("caption").shape["V"] - len(SPECIALS))]
    return Captioner(model, Vocabulary(words), case_values.SPEC, config, precision)


def caption(where: Where, precision: str, beam_size: int) -> float:
    images, crops = case_values.photographs(BATCH)
    captioner = _captioner(precision)
    return rate(where, lambda: len(captioner.caption_batch(images, crops, beam_size=beam_size)))


def whole(where: Where) -> float:
    """Files to captions, decoded by two threads meanwhile, as `pycap caption` does it."""
    folder, files = where.place / "whole", _made(where)
    folder.mkdir()
    for number in range(2 * PHOTOGRAPHS):
        (folder / f"{number}.jpg").write_bytes(files[number % len(files)])
    captioner = _captioner("fp32")
    return rate(where, lambda: sum(map(len, captioner.batches(find([folder]), batch_size=BATCH))))


def beam(where: Where, precision: str) -> float:
    vectors, crops = (
        np.abs(case_values.normal(np.random.default_rng(5), BATCH, FEATURES)),
        np.zeros((BATCH, 3), np.int32),
    )
    captioner = _captioner(precision)
    return rate(where, lambda: len(captioner.caption_batch(vectors, crops)))


def train(where: Where, dtype: str) -> float:
    case = _case("joint", dtype)
    work = PycapSide(where.threads).prepare(case)[""]()

    def once() -> int:
        work.run()
        return case.shape["B"]

    return rate(where, once)


def start(where: Where) -> float:
    work = PycapSide(where.threads).prepare(_case("cold"))[""]()
    try:
        return statistics.median(work.run()[0] for _ in range(5))
    finally:
        work.close()


def list_files(where: Where) -> float:
    folder = where.place / "many"
    for number in range(where.files):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04d}").mkdir(parents=True)
        os.close(os.open(folder / f"{number // 1000:04d}" / f"{number:012d}.jpg", os.O_CREAT | os.O_WRONLY))
    return rate(where, lambda: sum(1 for _ in find([folder]).references()))


def tar_headers(where: Where) -> float:
    path, data = where.place / "shard.tar", _made(where, "decode_flickr")[0]
    with tarfile.open(path, "w") as archive:
        for number in range(where.members):
            entry = tarfile.TarInfo(f"{number:012d}.jpg")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return rate(where, lambda: sum(1 for _ in find([path]).references()))


def _journal(path: Path, rows: int, header: dict[str, Any] | None = None, images: int = 0) -> Journal:
    """A complete one. images: of all shards, where it is one of several."""
    with Journal(path, header or {"shard": "1/1"}) as journal:
        for first in range(0, rows, BATCH):
            journal.add([ROW] * min(BATCH, rows - first))
        journal.complete(images or rows, "")
    return journal


def write_rows(where: Where) -> float:
    path = where.place / "rows.partial"

    def once() -> int:
        path.unlink(missing_ok=True)
        return _journal(path, where.rows).standing.rows

    return rate(where, once)


def walk_rows(where: Where) -> float:
    path = where.place / "walked.partial"
    _journal(path, where.rows)
    return rate(where, lambda: standing(path).rows and sum(1 for _ in read_rows(path)))


def row_bytes(where: Where) -> float:
    path = where.place / "one.partial"
    _journal(path, 1000)
    return path.stat().st_size / 1000


def merge_rows(where: Where) -> float:
    target = where.place / "merged.jsonl"
    header = {"batch_size": BATCH, "inputs": ["photographs"], "skip_existing": None}
    header |= {"_format": "jsonl", "_separator": "\t", "_output": str(target)}
    rows = where.rows // (2 * BATCH) * BATCH  # a shard's, whole batches

    def once() -> float:
        for number in (1, 2):
            shard = target.with_name(f"{target.name}.shard-{number}-of-2")
            _journal(shard, rows, {**header, "shard": f"{number}/2"}, 2 * rows)
        begin = time.perf_counter()
        merge(target)
        return 2 * rows / (time.perf_counter() - begin)

    return statistics.median(once() for _ in range(3))


@dataclass(frozen=True)
class Measure:
    """A rate: its unit, what it is of, and the function that finds it."""

    unit: str
    what: str
    find: Callable[[Where], float]


def _of(kind: str) -> str:
    (width, height), nbytes = KINDS[kind]
    return f"JPEGs of {width} x {height} and {nbytes / 1e3:.0f} kB to {SIZE} x {SIZE}"


MEASURES = {
    **{
        kind: Measure("images/s a core", f"decode_image, one thread: {_of(kind)}", partial(decode, kind=kind))
        for kind in KINDS
    },
    "decode_store": Measure("images/s a core", f"the same from a store's JPEGs of {SIZE} x {SIZE}", decode_store),
    "store_bytes": Measure("bytes an image", f"a store's JPEG of {SIZE} x {SIZE}, quality 95", store_bytes),
    "store_read": Measure("images/s a process", "HDF5 image store: a JPEG's bytes, checked", store_read),
    "features_read": Measure("images/s a process", f"HDF5 feature file: a vector of {FEATURES}", features_read),
    "lock_files": Measure(
        "images/s a process",
        "what Python's lock allows at least, JPEGs of 100 kB",
        lambda w: lock_rate(_made(w), w.seconds),
    ),
    "lock_store": Measure(
        "images/s a process", "the same, from a store's JPEGs", lambda w: lock_rate(stored(_made(w)), w.seconds)
    ),
    **{
        f"caption_{name}": Measure("images/s", f"VGG16 + NIC 512, {what}, batches of {BATCH}", partial(caption, **how))
        for name, what, how in (
            ("fp32", "fp32, beam 3", {"precision": "fp32", "beam_size": 3}),
            ("bf16", "bf16, beam 3", {"precision": "bf16", "beam_size": 3}),
            ("fp32_beam1", "fp32, beam 1", {"precision": "fp32", "beam_size": 1}),
            ("bf16_beam1", "bf16, beam 1", {"precision": "bf16", "beam_size": 1}),
        )
    },
    "whole_fp32": Measure("images/s", "the same with reading JPEGs of 100 kB, fp32, beam 3", whole),
    "beam_fp32": Measure("images/s", "NIC 512 from features, fp32, beam 3", partial(beam, precision="fp32")),
    "beam_bf16": Measure("images/s", "the same in bf16", partial(beam, precision="bf16")),
    "train_fp32": Measure("images/s", "joint step of 4 images x 5 captions, fp32", partial(train, dtype="float32")),
    "train_bf16": Measure("images/s", "the same in bf16", partial(train, dtype="bfloat16")),
    "start": Measure("s", "a new process until VGG16's first caption", start),
    "list_files": Measure("files/s", f"finding the images in folders of {FILES:,} files", list_files),
    "tar_headers": Measure("images/s", f"finding {MEMBERS:,} images of 10 kB in a tar", tar_headers),
    "row_bytes": Measure("bytes an image", "a caption with three beams in the journal", row_bytes),
    "write_rows": Measure("rows/s", f"writing the journal, {BATCH} rows at once", write_rows),
    "walk_rows": Measure("rows/s", "reading the journal as --resume does", walk_rows),
    "merge_rows": Measure("rows/s", "pycap merge of two shards", merge_rows),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="photographs, at any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the rates, JSON")
    parser.add_argument("--only", nargs="+", choices=tuple(MEASURES), metavar="NAME", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--seconds", type=float, default=3.0, help="a rate")
    parser.add_argument("--threads", type=int, default=0, help="of the kernels (default: one a CPU)")
    own = parser.parse_args(argv)
    threads = own.threads or cpu_count()
    set_threads(threads)
    rates = json.loads(own.out.read_text("utf-8"))["rates"] if own.only and own.out.exists() else {}
    for name in own.only or MEASURES:
        measure = MEASURES[name]
        with tempfile.TemporaryDirectory() as place:
            value = measure.find(Where(own.data, Path(place), own.seconds, threads))
        rates[name] = {"value": float(f"{value:.4g}"), "unit": measure.unit, "source": f"measured: {measure.what}"}
        print(f"{name:<20} {value:>12,.6g} {measure.unit}", flush=True)
        found = {
            "command": "python -m benchmarks.rates --data DIR --out FILE",
            "commit": machine.commit(),
            "hardware": machine.cpu_name(),
            "threads": threads,
            "versions": machine.versions(("numpy", "pillow", "h5py")),
            "rates": {each: rates[each] for each in MEASURES if each in rates},
        }
        write_whole(own.out, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
