"""A stage's images and captions, or the demo set where there are none; the vocabulary and the loaders over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pycap.config import TrainConfig, with_recipe
from pycap.data import DataError, Example, Problem, demo, folders, load_split
from pycap.data.images import PreprocessSpec
from pycap.data.layout import EXPECTED
from pycap.data.loader import Loader
from pycap.data.store import ImageStore
from pycap.data.vocab import Vocabulary, tokenize
from pycap.device import cpu_count, current, pinned_empty

#: Where a stage's data is looked for when --data is not given.
DATA_FOLDER = Path("data")
_CACHE_BYTES = 1 << 30
_WORKERS = 2  # where the kernels want the CPUs
_MOST_WORKERS = 16
_PREFETCH = 4

NO_DATA = """\
No COCO data in {folder}, so this run trains on the demo set: drawn scenes with captions, whose truth can be checked.
To train on COCO, unpack annotations_trainval2017.zip, train2017.zip and val2017.zip from cocodataset.org so that
{folder}/annotations/captions_train2017.json, {folder}/train2017/ and {folder}/val2017/ exist, or give the folder with
--data DIR. The demo set lies in {demo}; the options of recipes/demo.yaml apply (those you gave go first)."""


@dataclass
class Source:
    """Examples to train on and to validate on, and what was wrong with the others. `scenes`: the demo set's truth."""

    folder: Path
    train: list[Example]
    val: list[Example]
    problems: list[Problem]
    scenes: dict[int, Any] | None = None


@dataclass
class Loaders:
    train: Loader
    val: Loader
    store: ImageStore | None

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def find(config: TrainConfig, say: Any) -> tuple[Source, TrainConfig]:
    """The stage's data, and the config, changed by recipes/demo.yaml where the demo set stands in, and for a classifier, whose
    images have one caption of one word each.

    say: called with a paragraph for the person at the terminal. Raises DataError where --data was given and is not usable.
    """
    folder = config.data or DATA_FOLDER / config.stage
    if config.stage == "coco" and config.data is None and not folder.exists():
        place = DATA_FOLDER / "demo"
        say(NO_DATA.format(folder=folder, demo=place))
        config = with_recipe(config, "demo")
        return _demo(place, config), config
    if config.data is None and not folder.exists():
        raise DataError(
            f"stage {config.stage}: no data in {folder.absolute()}; put the data set there or give its folder with --data DIR: "
            f"{EXPECTED[config.stage]}"
        )
    if config.classifies:
        return Source(folder, *folders.load(folder)), replace(config, seq_per_img=1, max_length=1)
    if (folder / demo.MANIFEST).is_file():
        return _read_demo(folder, config), config
    return _read(folder, config), config


def _read(folder: Path, config: TrainConfig) -> Source:
    train, problems = load_split(config.stage, folder, "train")
    val, more = load_split(config.stage, folder, "val")
    return Source(folder, train, val, problems + more)


def _demo(folder: Path, config: TrainConfig) -> Source:
    demo.generate(folder, train=config.demo_train, val=config.demo_val, seed=0, size=config.resize_to)
    return _read_demo(folder, config)


def _read_demo(folder: Path, config: TrainConfig) -> Source:
    source = _read(folder, config)
    source.scenes = demo.load_scenes(folder, "val")
    return source


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


def workers(config: TrainConfig) -> int:
    """Threads that decode images: what the config says; else 2 on the CPU, whose cores the kernels need, and all on a GPU."""
    if config.workers is not None:
        return config.workers
    return _WORKERS if current() == "cpu" else min(cpu_count(), _MOST_WORKERS)


def loaders(
    source: Source, vocab: Vocabulary, spec: PreprocessSpec, config: TrainConfig, run: Path, val_batch: int = 0
) -> Loaders:
    """Loaders over both splits. A store is used where config.store says so; `auto`: where the images do not fit in memory.

    val_batch: images a batch of the validation split (0: as in training); what is said of them does not depend on it.
    """
    size = spec.resize * spec.resize * 3
    store: ImageStore | None = None
    if config.store == "auto":
        if (len(source.train) + len(source.val)) * size > _CACHE_BYTES:
            store = ImageStore(run / "images.h5", spec.resize)
    elif config.store != "none":
        store = ImageStore(Path(config.store), spec.resize)
    val = source.val if config.val_images_use < 0 else source.val[: config.val_images_use]
    threads = workers(config)
    common: dict[str, Any] = {
        "seq_per_img": config.seq_per_img,
        "max_length": config.max_length,
        "seed": config.seed,
        "workers": threads,
        # A thread whose batch is done begins another while the first in order is still being made.
        "prefetch": max(_PREFETCH, threads * 3 // 2),
        "store": store,
        "cache_bytes": _CACHE_BYTES // 2,
        "skipped_path": run / "skipped.jsonl",
        "allocate": pinned_empty,
        "words": folders.whole if config.classifies else tokenize,
    }
    return Loaders(
        Loader(source.train, vocab, spec, train=True, flip=config.flip, batch_size=config.batch_size, **common),
        Loader(val, vocab, spec, train=False, flip=False, batch_size=val_batch or config.batch_size, **common),
        store,
    )
