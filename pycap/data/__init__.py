"""Captioned images on disk: what an example is, and `load_split`, which reads any caption layout pycap knows.

| file | its job |
|---|---|
| `datasets.py` | which sets a stage reads, alone or combined, and what must not be trained on |
| `coco.py`, `flickr.py`, `karpathy.py`, `imageclef.py`, `picks.py` | one caption layout each: folder, split -> what is listed |
| `folders.py` | classified images: a folder for each class |
| `layout.py` | what the layouts share: listing folders, reading JSON, dropping what cannot be used |
| `vocab.py` | tokeniser and vocabulary |
| `images.py` | the one decoder and resizer of images, and the preprocessing spec |
| `inputs.py` | what is to be captioned: files, folders, lists, archives and stores as one lazy sequence of items |
| `items.py` | an item, wherever its image is, and reading items ahead |
| `shards.py` | the images in tar archives |
| `resize.py` | the one resize: Pillow's arithmetic, by a kernel where there is one |
| `store.py` | HDF5 store of resized JPEG bytes |
| `features.py` | HDF5 file of a CNN's fc7 vectors |
| `hdf5.py` | HDF5 files looked through by another process, since damaged ones can take a process down |
| `growing.py` | what both HDF5 files are: they grow by whole records, and survive a kill |
| `loader.py` | shuffled, prefetched, resumable batches |
| `demo.py` | drawn scenes with captions, in COCO's layout |
| `demo_domains.py`, `demo_layouts.py` | drawn data sets that differ as COCO, Flickr and ImageCLEF do, in their layouts |
| `demo_scene.py`, `demo_grammar.py`, `demo_folder.py` | what is drawn, what is said of it, the folder that is made or kept |
| `names.py` | names in eight bytes each |
| `disk.py` | what is on the disk, and kept from other processes |
| `forms.py`, `results.py` | files of captions that a model made, written and read |

Bad input is either tolerated and listed (a problem: `{"kind", "file", "reason"}`, with more keys where they help; kinds are
those of `pycap doctor`) or, when nothing usable is left, one `DataError` that names the file, the value and the remedy.
"""

from __future__ import annotations

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


def load_split(stage: str, root: Path, split: str) -> tuple[list[Example], list[Problem]]:
    """Read one split of a captioned data set, or of several (docs/data.md).

    stage: a kind (`coco`, `coco_all`, `flickr8k`, `flickr30k`, `imageclef`), a stage of several (`flickr`, `selected`), or
    kinds joined by `+`. A Karpathy file (`dataset_KIND.json`) goes before the kind's own layout. root: the data set's
    folder; for several, the folder that holds one a kind. split: `train`, `val` (Flickr's dev), `test`, or `all` of them.
    Returns the usable examples, in the files' order (of several sets, in turn one of each), and the problems found (dicts
    with at least `file` and `reason`).
    Raises DataError when the folder or its files are not what they should be, or when nothing usable is left.
    """
    from pycap.data import datasets  # it imports the readers, which import this module

    return datasets.load(datasets.parse(stage, Path(root)), split)
