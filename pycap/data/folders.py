"""Classified images: ImageNet's tree of folders, `train/CLASS/*` and `val/CLASS/*`; a class is its folder's name.

Without val/, every tenth image of each class is held out: those first by SHA-256 of `CLASS/NAME`, which is the same
everywhere. An example's one caption is its class. A class may have a readable name, from a file beside the folders.
"""

from __future__ import annotations

import hashlib
import os
from itertools import zip_longest
from pathlib import Path

from pycap.data import DataError, Example, Problem
from pycap.data.inputs import images_below
from pycap.data.layout import contents, layout_error, read_text, require_folder
from pycap.data.vocab import Vocabulary

STAGE = "pretrain"
#: Lines `CLASS<TAB>name`, or `CLASS name` (Kaggle's ImageNet).
NAME_FILES = ("classes.tsv", "LOC_synset_mapping.txt", "words.txt")
HELD_OUT = 10  # one image of so many, where there is no val/


def load(root: Path) -> tuple[list[Example], list[Example], list[Problem]]:
    """(training examples by class and name; validation examples, in turn one of each class; problems).

    Problems are folders without an image, and classes with none to validate on; what cannot be decoded, the loader finds.
    Raises DataError where the tree has another form, has no image, has validation classes that are not trained, or has fewer
    than two classes.
    """
    require_folder(root, STAGE)
    if not (root / "train").is_dir():
        raise layout_error(root, STAGE, "no train/ in it")
    train, problems = _split(root, "train")
    if len(train) < 2:
        raise layout_error(root / "train", STAGE, f"{len(train)} folders with images, and it takes two classes or more")
    if (root / "val").is_dir():
        val, more = _split(root, "val")
        problems += more
        strange = sorted(val.keys() - train.keys())
        if strange:
            raise DataError(
                f"{root / 'val'}: {len(strange)} of {len(val)} classes have no images in train/ (first: "
                f"{', '.join(strange[:3])}); the folders of val/ must be named as those of train/"
            )
    else:
        val = {name: _held_out(images) for name, images in train.items()}
        apart = {example.file_name for images in val.values() for example in images}
        train = {name: [e for e in images if e.file_name not in apart] for name, images in train.items()}
    problems += [
        {
            "kind": "class-without-validation",
            "file": f"val/{name}",
            "reason": "no image to validate on; the class is trained all the same",
        }
        for name in train
        if not val.get(name)
    ]
    # In turn, so that the first N (--val-images-use, the page of samples) are of as many classes as can be.
    held = [example for turn in zip_longest(*(val[name] for name in sorted(val))) for example in turn if example]
    if not held:
        raise DataError(
            f"{root}: no val/, and no class has {HELD_OUT} images of which one could be held out; make val/CLASS/ and move "
            "some there"
        )
    return [example for images in train.values() for example in images], held, problems


def class_names(root: Path) -> dict[str, str]:
    """Readable names by class, from the first of `NAME_FILES` that is there; empty without one. Lines without a name are
    left out."""
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return {}
    found = {}
    for line in read_text(file).splitlines():
        class_, _, name = line.strip().partition("\t" if "\t" in line else " ")
        if name.strip():
            found[class_] = name.strip()
    return found


def classes(examples: list[Example]) -> Vocabulary:
    """The classes of examples, as a vocabulary of one word each, in the order of their names."""
    return Vocabulary(sorted({example.captions[0] for example in examples}))


def whole(class_: str) -> list[str]:
    """How the loader splits an example's caption into words: not at all."""
    return [class_]


def _split(root: Path, split: str) -> tuple[dict[str, list[Example]], list[Problem]]:
    """The images of one split by class, sorted, and its folders without any. An image may lie deeper in its class's folder."""
    folder = root / split
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    found: dict[str, list[Example]] = {}
    problems: list[Problem] = []
    for name in names:
        if images := _images(folder, name):
            found[name] = images
        else:
            reason = "the folder holds no image; it is left out"
            problems.append({"kind": "class-without-images", "file": f"{split}/{name}", "reason": reason})
    if not found:
        raise DataError(
            f"{folder}: no folder of a class with images in it ({split}/CLASS/*.JPEG); it holds: {contents(folder)}; "
            "images that lie side by side, as ImageNet's validation images do, must be moved into a folder for each class"
        )
    return found, problems


def _images(folder: Path, class_: str) -> list[Example]:
    names = [f"{class_}/{name}" for name in images_below(folder / class_)]
    return [Example(name, name, folder / name, (class_,)) for name in names]


def _held_out(images: list[Example]) -> list[Example]:
    ranked = sorted(images, key=lambda example: hashlib.sha256(example.file_name.encode()).digest())
    return sorted(ranked[: len(images) // HELD_OUT], key=lambda example: example.file_name)
