"""A stage's images and captions, or the demo set where there are none; the vocabulary and the loaders over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycap.config import TrainConfig, with_recipe
from pycap.data import DataError, Example, Problem, datasets, demo, folders
from pycap.data.datasets import DATA_FOLDER, Part
from pycap.data.features import FeatureStore
from pycap.data.growing import GrowingFile
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Loader
from pycap.data.store import ImageStore
from pycap.data.vocab import Vocabulary, tokenize
from pycap.device import cpu_count, decoding_threads, pinned_empty
from pycap.distributed import ALONE, Ranks
from pycap.training import shares

_CACHE_BYTES = 1 << 30
_PREFETCH = 4

NO_DATA = """\
No COCO data in {folder}, so this run trains on the demo set: drawn scenes with captions, whose truth can be checked.
To train on COCO, unpack annotations_trainval2017.zip, train2017.zip and val2017.zip from cocodataset.org so that
{folder}/annotations/captions_train2017.json, {folder}/train2017/ and {folder}/val2017/ exist, or give the folder with
--data DIR. The demo set lies in {demo}; the options of recipes/demo.yaml apply (those you gave go first)."""


@dataclass
class Source:
    """Examples to train on and to validate on, and what was wrong with the others.

    folders: where they were read. remarks: what to know of them besides. scenes: the demo set's truth.
    """

    folders: list[Path]
    train: list[Example]
    val: list[Example]
    problems: list[Problem]
    remarks: list[str] = field(default_factory=list)
    scenes: dict[int, Any] | None = None

    def digest(self) -> str:
        """Of names and captions, in their order; not of where they lie."""
        told = hashlib.sha256()
        for example in (*self.train, *self.val):
            told.update(repr((example.image_id, example.file_name, tuple(example.captions))).encode())
        return f"{len(self.train)} + {len(self.val)} images, {told.hexdigest()[:16]}"


@dataclass
class Loaders:
    train: Loader
    val: Loader
    files: list[GrowingFile]

    def close(self) -> None:
        for file in self.files:
            file.close()


def find(config: TrainConfig, say: Callable[[str], None], ranks: Ranks = ALONE) -> tuple[Source, TrainConfig]:
    """The stage's data, and the config, changed by recipes/demo.yaml where the demo set stands in, and for a classifier, whose
    images have one caption of one word each.

    say: called with a paragraph for the person at the terminal. ranks: which all call this; the first draws the demo set.
    Raises DataError where the data is missing or not usable.
    """
    if config.classifies:
        folder = config.data or DATA_FOLDER / config.stage
        return Source([folder], *folders.load(folder)), replace(config, seq_per_img=1, max_length=1)
    parts = datasets.parse(config.reads, config.data, config.picks)
    folder = parts[0].path
    if config.stage == "coco" and not config.datasets and config.data is None and ranks.first(not folder.exists()):
        place = DATA_FOLDER / "demo"
        say(NO_DATA.format(folder=folder, demo=place))
        config = with_recipe(config, "demo")
        many = {"train": config.demo_train, "val": config.demo_val}
        shares.led(ranks, lambda: demo.generate(place, **many, seed=0, size=config.resize_to))
        parts = datasets.parse("coco", place)
    return _read(parts), config


def _read(parts: tuple[Part, ...]) -> Source:
    datasets.require(parts)
    train, problems = datasets.load(parts, "train")
    val, more = datasets.load(parts, "val")
    source = Source([part.path for part in parts], train, val, problems + more, datasets.remarks(parts))
    folder = parts[0].path
    if len(parts) == 1 and (folder / demo.MANIFEST).is_file():
        source.scenes = demo.load_scenes(folder, "val")
    if len(parts) > 1:
        source.remarks += [_share(part, source) for part in parts]
    return source


def _share(part: Part, source: Source) -> str:
    """What one of several data sets gives."""
    train, val = (sum(str(e.image_id).startswith(f"{part.name}/") for e in each) for each in (source.train, source.val))
    leaks = sum("held_out_by" in p and p["file"].startswith(f"{part.name}/") for p in source.problems)
    told = f"{part.name}: {train} images to train on, {val} to validate, from {part.path}"
    return f"{told}; {leaks} left out of training, which another set validates or tests on" if leaks else told


def vocabulary(source: Source, config: TrainConfig) -> Vocabulary:
    """Built from the training captions, or the classes."""
    if config.classifies:
        return folders.classes(source.train)
    return Vocabulary.build((c for e in source.train for c in e.captions), config.word_count_threshold)


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """Resize and crop as the config says; pixels normalised by ImageNet's mean and deviation of each channel."""
    return PreprocessSpec(
        resize=config.resize_to, crop=config.image_size, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    )


def workers(config: TrainConfig, ranks: Ranks = ALONE) -> int:
    """Threads that decode images: what the config says, else as `decoding_threads` does. ranks: among which a machine's are
    divided."""
    if config.workers is not None:
        return config.workers
    return decoding_threads(cpu_count(), ranks.local_size)


def stores_automatically(images: int, side: int) -> bool:
    """Whether `--store auto` keeps so many images of `side` pixels in the run's folder: where they do not fit into memory."""
    return images * side * side * 3 > _CACHE_BYTES


def loaders(
    source: Source,
    vocab: Vocabulary,
    spec: PreprocessSpec,
    config: TrainConfig,
    run: Path,
    val_batch: int = 0,
    features: FeatureStore | None = None,
    ranks: Ranks = ALONE,
) -> Loaders:
    """Loaders over both splits. A store is used where config.store says so; `auto`: where the images do not fit in memory.

    features: what batches hold in place of images, which then need no store. val_batch: images a batch of the validation
    split and of a rank (0: as in training); what is said of them does not depend on it. ranks: which share each batch. Several
    only read a store, which has to be there: DataError where it is not; `auto` is none.
    """
    store: ImageStore | None = None
    if config.store == "auto":
        large = stores_automatically(len(source.train) + len(source.val), spec.resize)
        if features is None and large and ranks.size == 1:
            store = ImageStore(run / "images.h5", spec.resize)
    elif config.store != "none" and features is None:
        store = ImageStore(Path(config.store), spec.resize, writable=ranks.size == 1)
        if not store.path.is_file() and ranks.size > 1:
            raise DataError(
                f"{store.path}: there is no such image store, and {ranks.size} ranks can only read one: make it in a run of "
                "one process, or give --store none"
            )
    val = source.val if config.val_images_use < 0 else source.val[: config.val_images_use]
    threads = workers(config, ranks)
    common: dict[str, Any] = {
        "seq_per_img": config.seq_per_img,
        "max_length": config.max_length,
        "seed": config.seed,
        "workers": threads,
        # A thread whose batch is done begins another while the first in order is still being made.
        "prefetch": max(_PREFETCH, threads * 3 // 2),
        "store": store,
        "features": features,
        "cache_bytes": _CACHE_BYTES // 2 // ranks.local_size,
        "skipped_path": run / "skipped.jsonl" if ranks.rank == 0 else None,
        "allocate": pinned_empty,
        "words": folders.whole if config.classifies else tokenize,
        "shard": (ranks.rank, ranks.size),
    }
    return Loaders(
        Loader(source.train, vocab, spec, train=True, flip=config.flip, batch_size=config.batch_size, **common),
        Loader(
            val, vocab, spec, train=False, flip=False, batch_size=val_batch * ranks.size or config.batch_size, **common
        ),
        [file for file in (store, features) if file is not None],
    )
