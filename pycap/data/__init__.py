"""Captioned images on disk: what an example is, and `load_split`, which reads any caption layout pycap knows.

| file | its job |
|---|---|
| `coco.py`, `flickr.py`, `karpathy.py` | one caption layout each: a folder -> examples and problems |
| `folders.py` | classified images: a folder for each class |
| `layout.py` | what the layouts share: listing folders, reading JSON, dropping what cannot be used |
| `vocab.py` | tokeniser and vocabulary |
| `images.py` | the one decoder and resizer of images, and the preprocessing spec |
| `store.py` | HDF5 store of resized JPEG bytes |
| `loader.py` | shuffled, prefetched, resumable batches |
| `demo.py` | drawn scenes with captions, in COCO's layout |
| `demo_domains.py` | drawn data sets that differ as COCO, Flickr and ImageCLEF do |

Bad input is either tolerated and listed (a problem: `{"file", "reason"}`, with more keys where they help) or, when
nothing usable is left, one `DataError` that names the file, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Problem = dict[str, Any]
Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = ("train", "val", "test")


class DataError(ValueError):
    """Data that cannot be used. The message names the file, the value and the remedy."""


@dataclass(frozen=True)
class Example:
    """One image and its human captions (whitespace collapsed, none without a word)."""

    image_id: int | str
    file_name: str
    path: Path
    captions: tuple[str, ...]


def _reader(stage: str) -> Callable[[Path, str], tuple[list[Example], list[Problem]]]:
    """The reader of a stage's own layout; imported late, because the readers import this module."""
    from pycap.data import coco, flickr

    readers = {"coco": coco.load, "flickr8k": flickr.load_8k, "flickr30k": flickr.load_30k}
    if stage not in readers:
        raise DataError(f"stage {stage!r} has no caption layout of its own; known stages: {', '.join(readers)}")
    return readers[stage]


def load_split(stage: str, root: Path, split: str) -> tuple[list[Example], list[Problem]]:
    """Read one split of a captioned data set.

    stage: `coco`, `flickr8k` or `flickr30k`. A Karpathy file (`dataset_STAGE.json`) in `root` goes before the stage's
    own layout. root: the data set's folder. split: `train`, `val` (Flickr's dev) or `test`. Returns the usable
    examples, in the files' order, and the problems found (dicts with at least `file` and `reason`). Raises DataError
    when the folder or its files are not what they should be, or when nothing usable is left.
    """
    from pycap.data import karpathy
    from pycap.data.layout import require_folder

    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    read = _reader(stage)
    root = Path(root)
    require_folder(root, stage)
    dataset = karpathy.find(root, stage)
    return karpathy.load(root, split, dataset) if dataset else read(root, split)
