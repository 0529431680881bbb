"""Which kind of data set a folder holds, by the files that only this kind has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pycap.data import DataError
from pycap.data.datasets import KINDS, Part, parse
from pycap.data.layout import EXPECTED, contents, is_image_name

#: Files and folders that tell a kind, as patterns of a path in the folder.
_SIGNS = {
    "coco": (
        "dataset_coco.json", "annotations/captions_*.json", "train2017", "val2017", "train2014", "val2014",
        "images/train2017", "images/val2017", "images/train2014", "images/val2014",
    ),
    "flickr30k": (
        "dataset_flickr30k.json", "results_20130124.token", "results.csv", "flickr30k-images", "flickr30k_images",
        "flickr30k_*.txt",
    ),
    "flickr8k": (
        "dataset_flickr8k.json", "Flickr8k_text", "Flickr8k.token.txt", "Flickr_8k.*Images.txt", "Flicker8k_Dataset",
        "Flickr8k_Dataset",
    ),
    "imageclef": (
        "scaleconcepts16_images", "scaleconcept16_images", "sentences.txt", "sentences.tsv", "captions.tsv",
        "captions.json", "annotations/captions.txt", "annotations/captions.json", "annotations/sentences.txt",
    ),
}  # fmt: skip
#: Of sets in one folder, ROOT/KIND, as --data ROOT of several takes it.
_TOGETHER = ("coco", "flickr8k", "flickr30k", "imageclef")


@dataclass(frozen=True)
class Recognised:
    """What a folder was taken for. parts: its data sets; of classified images none. reason: why nothing was recognised, with
    what was expected and the nearest match, or empty."""

    kind: str
    parts: tuple[Part, ...] = ()
    reason: str = ""


def recognise(folder: Path) -> Recognised:
    """By what lies in the folder; nothing is read but the first line of a `captions.txt`, which two kinds have.

    DataError where there is no such folder, it is empty, or it is a file (but one of picks).
    """
    if folder.is_file():
        if folder.suffix in (".jsonl", ".ndjson"):
            return Recognised("picks", (Part("picks", folder, folder.parent),))
        raise DataError(
            f"{folder}: is a file; give the folder that holds captions and images (or a file of picks, .jsonl)"
        )
    if not folder.exists():
        beside = f"; {folder.parent} holds: {contents(folder.parent)}" if folder.parent.is_dir() else ""
        raise DataError(f"{folder}: no such folder; check the path{beside}")
    if not any(folder.iterdir()):
        raise DataError(f"{folder}: the folder is empty; give one that holds captions and images (docs/data.md)")
    kind = _kind(folder)
    if kind:
        return Recognised(kind, (Part(kind, folder, folder),))
    together = [name for name in _TOGETHER if (folder / name).is_dir() and _kind(folder / name)]
    if together:
        picks = ["picks"] if (folder / "picks.jsonl").is_file() else []
        return Recognised("+".join(together + picks), parse("+".join(together + picks), folder))
    if _classified(folder / "train"):
        return Recognised("pretrain")
    return Recognised("", reason=_nearest(folder))


def as_kind(folder: Path, kind: str) -> Recognised:
    """The folder taken for a kind, or for a stage of several, whatever it holds. DataError for an unknown kind."""
    if kind == "pretrain":
        return Recognised(kind)
    parts = parse(kind, folder)
    return Recognised("+".join(part.kind for part in parts), parts)


def _kind(folder: Path) -> str:
    """The kind with most signs in the folder; empty without any."""
    found = {kind: len(_signs(folder, kind)) for kind in _SIGNS}
    best = max(found, key=lambda kind: found[kind])
    if found[best]:
        return best
    others = sorted(folder.glob("dataset_*.json"))  # Karpathy's form under another name
    if others:
        return "coco"
    file = folder / "captions.txt"
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        first = opened.readline(4096)
    if first.removeprefix(b"\xef\xbb\xbf").lower().startswith(b"image,"):
        return "flickr8k"
    return "flickr8k" if b"#" in first.partition(b"\t")[0] else "imageclef"


def _signs(folder: Path, kind: str) -> list[str]:
    return [sign for sign in _SIGNS[kind] if next(folder.glob(sign), None)]


def _classified(folder: Path) -> bool:
    """Whether it holds a folder for each class: one of the first has an image in it."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        classes = [entry.path for entry in entries if entry.is_dir()][:20]
    return any(is_image_name(name) for each in classes for _, _, names in os.walk(each) for name in names)


def _nearest(folder: Path) -> str:
    """What was looked for, what is there, and where something like it lies: a folder above or below."""
    holds = f"the folder holds: {contents(folder)}"
    for near in (folder.absolute().parent, folder.absolute().parent.parent):
        if kind := _kind(near):
            return f"it is a part of {kind}'s folder {near}; give that; {holds}"
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()][:50]
    for near in (*below, *(inner for path in below for inner in sorted(path.iterdir())[:50] if inner.is_dir())):
        if kind := _kind(near):
            return f"{kind} lies further in: give {near}; {holds}"
        if _classified(near / "train"):
            return f"classified images lie further in: give {near}; {holds}"
    wanted = "; ".join(f"{kind}: {EXPECTED[kind]}" for kind in (*_SIGNS, "pretrain"))
    return f"{holds}. Expected is one of: {wanted}"


STAGES = (*KINDS, "pretrain")
