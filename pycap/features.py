"""`pycap features`: the fc7 vectors of images, made once by a CNN and kept in an HDF5 file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycap.data import Example
    from pycap.data.images import PreprocessSpec
    from pycap.models.vgg import VGG

_WORKERS = 2


def extract_features(args: argparse.Namespace) -> int:
    """Extract what args.output lacks; what is in it stays. Status 1 where an image could not be read."""
    from rich.progress import track

    from pycap.backends import select, set_threads
    from pycap.captioner import cnn_origin
    from pycap.data import DataError
    from pycap.data.features import FeatureStore
    from pycap.device import cpu_count
    from pycap.training.features import extract

    select(args.device, args.backend)
    set_threads(args.threads or cpu_count())
    paths = list(args.paths)
    if args.vgg_weights:
        source = args.vgg_weights
    elif paths:
        source = paths.pop(0)
    else:
        raise DataError("features: of which CNN? give a checkpoint, or --vgg-weights FILE")
    if bool(args.data) == bool(paths):
        raise DataError("features: of which images? give image files or folders, or --data DIR")
    cnn, spec, stage, precision = _cnn(Path(source), args.resize)
    examples = _data_set(args.stage or stage, Path(args.data), args.split or ["all"]) if args.data else _images(paths)
    with FeatureStore(args.output, cnn_origin(cnn, spec)) as store:
        missing = store.missing(examples)
        here = f"{len(examples) - len(missing)} of {len(examples)} vectors are there already; " if len(store) else ""
        print(f"{here}{store.origin}", flush=True)
        made = extract(
            cnn,
            store,
            missing,
            batch_size=args.batch_size,
            precision=args.precision or precision,
            workers=_WORKERS,
        )
        failed = [error for error in track(made, "features", len(missing)) if error is not None]
        for error in failed:
            print(f"skipped {error}")
        print(f"{len(missing) - len(failed)} made, {len(store)} vectors of {store.origin.size}: {args.output}")
    return 1 if failed else 0


def _cnn(source: Path, resize: int | None) -> tuple[VGG, PreprocessSpec, str | None, str]:
    """(the CNN, how images reach it, the stage it was trained on, the precision) of a run, a checkpoint or a file of weights.

    resize: side to which images are resized before the crop; None: as in training, or for a file of weights the side of the
    crop, so that nothing is cut off.
    """
    from pycap import checkpoint, weights
    from pycap.models.vgg import BLOCKS, VGG

    found = weights.load(source)
    if source.is_dir():
        saved = checkpoint.load(source)
        config, spec = saved.config, saved.spec
        size, width, precision = config.image_size, config.cnn_width, config.precision
        stage = None if config.classifies else config.reads
    else:
        size, stage, precision = found.image_size, None, "fp32"
        spec = replace(found.preprocess(), resize=size)
        last = max((name for name in found.arrays if name.startswith("conv")), key=lambda name: (len(name), name))
        width = len(found.arrays[last]) / BLOCKS[found.cnn][-1][-1]
    if not found.has_dense:
        raise weights.WeightsError(f"{source}: has no fc6 and fc7, whose outputs are the features; give a whole VGG")
    cnn = VGG(found.cnn, size, None, width=width, fc_size=len(found.arrays["fc7.bias"]))
    cnn.load_arrays(found.arrays)
    return cnn, replace(spec, resize=resize) if resize else spec, stage, precision


def _data_set(stage: str | None, folder: Path, splits: Sequence[str]) -> list[Example]:
    """The images of a stage's splits."""
    from pycap.data import DataError, load_split
    from pycap.data.datasets import kinds

    if stage is None:
        raise DataError(f"features: of which kind is {folder}? give --stage, as flickr8k (images: without --data)")
    return [example for split in splits for example in load_split(kinds(stage), folder, split)[0]]


def _images(paths: Sequence[str]) -> list[Example]:
    """Image files, and those in folders, which are named as they stand below their folder, and in lists."""
    from pycap.data import DataError, Example
    from pycap.data.inputs import find

    found: list[Example] = []
    for given in map(Path, paths):
        for name, load in find([given]).references():
            if load is not None:
                raise DataError(f"{given}: features are made of image files; unpack it")
            path = Path(name)
            found.append(
                Example(path.stem, path.relative_to(given).as_posix() if given.is_dir() else path.name, path, ())
            )
    return found
