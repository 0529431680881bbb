"""How the demo domains lie on disk: drawn images written as COCO, Flickr8k, Flickr30k, ImageCLEF and ImageNet are."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pycap.data.demo_scene import Scene

_COCO_IDS = {"train": 1, "val": 1_000_001}


@dataclass(frozen=True)
class Drawn:
    """An image of a domain: its split and number there, its truth, captions and JPEG bytes."""

    split: str
    index: int
    scene: Scene
    captions: tuple[str, ...]
    jpeg: bytes


def encode(image: Image.Image, **options: Any) -> bytes:
    """JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write_coco(root: Path, name: str, drawn: list[Drawn], size: int) -> list[str]:
    """`annotations/captions_{train,val}2017.json`, `{train,val}2017/`. Returns the images' ids, in order."""
    folder = root / name
    (folder / "annotations").mkdir(parents=True)
    keys = []
    for split, first in _COCO_IDS.items():
        (folder / f"{split}2017").mkdir()
        images, annotations = [], []
        for d in (d for d in drawn if d.split == split):
            number = first + d.index
            images.append(
                {"license": 1, "file_name": f"{number:012d}.jpg", "height": size, "width": size, "id": number}
            )
            _write(folder / f"{split}2017" / f"{number:012d}.jpg", d.jpeg)
            for place, caption in enumerate(d.captions):
                identity = (number - 1) * len(d.captions) + place + 1
                annotations.append({"image_id": number, "id": identity, "caption": caption})
            keys.append(str(number))
        document = {
            "info": {"description": "pycap demo domains: drawn scenes; do not mirror the images", "version": "1.0"},
            "images": images,
            "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
            "annotations": annotations,
        }
        (folder / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(document), encoding="utf-8")
    return keys


def write_flickr8k(root: Path, name: str, drawn: list[Drawn], size: int) -> list[str]:
    """`Flickr8k_text/` with the captions and the splits, `Flicker8k_Dataset/`. Returns the images' names without .jpg."""
    texts = "Flickr8k_text/Flickr8k.token.txt", "Flickr8k_text/Flickr_8k.{}Images.txt"
    return _flickr(root / name, "Flicker8k_Dataset", *texts, {"train": "train", "val": "dev", "test": "test"}, drawn)


def write_flickr30k(root: Path, name: str, drawn: list[Drawn], size: int) -> list[str]:
    """`results_20130124.token`, `flickr30k_{train,val,test}.txt`, `flickr30k-images/`. Returns the names without .jpg."""
    texts = "results_20130124.token", "flickr30k_{}.txt"
    return _flickr(root / name, "flickr30k-images", *texts, {s: s for s in ("train", "val", "test")}, drawn)


def write_imageclef(root: Path, name: str, drawn: list[Drawn], size: int) -> list[str]:
    """The validation split as the campaign's development images with captions, the target split as images alone in
    `target/`. Returns the ids."""
    folder = root / name
    keys, lines = [], []
    for d in drawn:
        key = hashlib.sha256(f"{d.split} {d.index} ".encode() + d.jpeg).hexdigest()[:16]
        place = folder if d.split == "val" else root / d.split
        _write(place / "scaleconcepts16_images" / key[:2] / f"{key}.jpg", d.jpeg)
        keys.append(key)
        if d.split == "val":
            lines += [f"{key}\t{caption}" for caption in d.captions]
    (folder / "sentences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return keys


def write_classes(root: Path, name: str, drawn: list[Drawn], size: int) -> list[str]:
    """`{train,val}/CLASS/*.jpg`; the class is the colour and the shape of the scene's one object. Returns the names."""
    keys = []
    for d in drawn:
        (thing,) = d.scene.things
        key = f"{thing.colour}_{thing.shape}/{d.index:06d}.jpg"
        _write(root / name / d.split / key, d.jpeg)
        keys.append(key)
    return keys


LAYOUTS: dict[str, Callable[[Path, str, list[Drawn], int], list[str]]] = {
    "coco": write_coco,
    "flickr8k": write_flickr8k,
    "flickr30k": write_flickr30k,
    "imageclef": write_imageclef,
    "classes": write_classes,
}


def _flickr(
    folder: Path, images: str, token_file: str, split_file: str, words: dict[str, str], drawn: list[Drawn]
) -> list[str]:
    """A caption file of lines `NAME.jpg#K<TAB>caption`, a file of names for each split, and the images."""
    keys = []
    lines = []
    names: dict[str, list[str]] = {split: [] for split in words}
    for d in drawn:
        key = hashlib.sha256(f"{d.split} {d.index} ".encode() + d.jpeg).hexdigest()[:10]
        name = f"{int(key, 16)}_{key}.jpg"
        _write(folder / images / name, d.jpeg)
        lines += [f"{name}#{place}\t{caption} ." for place, caption in enumerate(d.captions)]
        names[d.split].append(name)
        keys.append(name.removesuffix(".jpg"))
    (folder / token_file).parent.mkdir(exist_ok=True)
    (folder / token_file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, word in words.items():
        (folder / split_file.format(word)).write_text("\n".join(names[split]) + "\n", encoding="utf-8")
    return keys


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
