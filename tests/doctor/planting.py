"""Clean data sets of every layout, drawn; and images with one defect each."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pycap.data import demo_domains, demo_layouts
from pycap.data.demo_layouts import Drawn

SIDE = 48
_COUNTS = {"coco": (60, 20, 0), "flickr8k": (40, 10, 10), "flickr30k": (40, 10, 10), "imageclef": (0, 40, 0)}
_CLASSES = {"train": 12, "val": 6}


@cache
def _drawn(name: str) -> tuple[Drawn, ...]:
    """The first images of a drawn domain, the same in every test; of classes two a class."""
    seen: set[bytes] = set()
    counts = dict(zip(("train", "val", "test"), _COUNTS.get(name, ()), strict=False)) or _CLASSES
    if name == "classes":
        counts = _CLASSES
        name = "imagenet"
    found = []
    for split, count in counts.items():
        if count:
            found += demo_domains.examples(name, split, count, 0, SIDE, seen)
    return tuple(found)


def clean(layout: str, root: Path) -> Path:
    """A data set without any defect; returns its folder."""
    drawn = list(_drawn(layout))
    if layout == "classes":  # the domain has a class of every shape and colour: here are three
        drawn = [Drawn(d.split, d.index, _drawn(layout)[i % 3].scene, d.captions, d.jpeg) for i, d in enumerate(drawn)]
    demo_layouts.LAYOUTS[layout](root, layout, drawn, SIDE)
    return root / layout


def karpathy(root: Path, source: Path) -> Path:
    """The clean set in COCO's layout, told by Karpathy's file instead."""
    images: list[dict[str, Any]] = []
    sentence = 0
    for split in ("train", "val"):
        document = json.loads((source / "annotations" / f"captions_{split}2017.json").read_text())
        captions: dict[int, list[str]] = {}
        for annotation in document["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        for image in document["images"]:
            sentences = []
            for caption in captions[image["id"]]:
                sentences.append({"raw": caption, "tokens": caption.split(), "sentid": sentence})
                sentence += 1
            images.append(
                {"filepath": f"{split}2017", "filename": image["file_name"], "cocoid": image["id"], "split": split}
                | {"imgid": len(images), "sentences": sentences}
            )
    (source / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    return source


def saved(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photograph(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Smooth noise, another one for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a few bytes."""
    content = bytearray(saved(Image.new("RGB", (4, 4)), "PNG"))
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def large(seed: int) -> bytes:
    """A JPEG with enough bytes to be cut."""
    rng = np.random.default_rng(seed)
    return saved(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)), quality=95)


#: What is wrong with a file -> (its suffix, its bytes for a seed, its width and height).
FILES: dict[str, tuple[str, Callable[[int], bytes], tuple[int, int]]] = {
    "empty-image": (".jpg", lambda seed: b"", (SIDE, SIDE)),
    "corrupt-image": (".jpg", lambda seed: large(seed)[:2000], (SIDE, SIDE)),
    "image-without-end": (".jpg", lambda seed: large(seed)[:2000] + bytes(3000), (SIDE, SIDE)),
    "not-an-image": (".jpg", lambda seed: b"<!doctype html><title>404</title>" * 9, (SIDE, SIDE)),
    "too-many-pixels": (".png", lambda seed: bomb(), (SIDE, SIDE)),
    "other-format": (".jpg", lambda seed: saved(photograph(seed), "PNG"), (SIDE, SIDE)),
    "animated": (
        ".gif",
        lambda seed: saved(photograph(seed), "GIF", save_all=True, append_images=[photograph(seed + 1)]),
        (SIDE, SIDE),
    ),
    "cmyk": (".jpg", lambda seed: saved(photograph(seed).convert("CMYK")), (SIDE, SIDE)),
    "sixteen-bit": (
        ".png",
        lambda seed: saved(Image.fromarray(np.asarray(photograph(seed).convert("L")).astype(np.uint16) * 257), "PNG"),
        (SIDE, SIDE),
    ),
    "transparent": (".png", lambda seed: saved(photograph(seed).convert("RGBA"), "PNG"), (SIDE, SIDE)),
    "tiny": (".jpg", lambda seed: saved(photograph(seed, 31, 40)), (31, 40)),
    "long-and-thin": (".jpg", lambda seed: saved(photograph(seed, 400, 40)), (400, 40)),
}
