"""The demo data set: drawn scenes with five captions each, in COCO's layout, whose captions can be checked for truth.

    folder = generate("data/demo", train=4000, val=300)
    scenes = load_scenes(folder, "val")
    is_true("two large red circles on the left", scenes[1000001])

Captions speak of left and right: a training run on this set must not mirror its images.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from pycap.data import DataError, demo_folder, demo_grammar
from pycap.data.demo_grammar import disagreements, parse, write
from pycap.data.demo_scene import SETTINGS, Scene, Thing, draw, sample_scene

__all__ = ["Scene", "Thing", "draw", "explain", "generate", "is_true", "load_scenes", "parse", "sample_scene", "write"]

REVISION = 1  # raise it when the same settings come to give other images or captions
MANIFEST = "demo.json"
SPLITS = ("train", "val")
FIRST_ID = {"train": 1, "val": 1_000_001}
CAPTIONS = 5


def is_true(caption: str, scene: Scene) -> bool:
    """Whether the caption is one that the grammar can produce, and everything it states holds in the scene.

    Case and a final period are ignored. A caption must account for all objects of the scene: one that names only the
    first of two is false, and so is one that names no count, colour or shape.
    """
    return not disagreements(caption, scene)


def explain(caption: str, scene: Scene) -> str:
    """ "true", or what is wrong with the caption: `a:colour says red, is blue; scene:position says left, is top`."""
    return "; ".join(disagreements(caption, scene)) or "true"


def generate(folder: str | Path, *, train: int = 4000, val: int = 300, seed: int = 0, size: int = 72) -> Path:
    """Make the demo set in `folder` and return its path; do nothing where the same set already stands there.

    The folder then holds `annotations/captions_{train,val}2017.json`, `{train,val}2017/*.jpg` (`size` x `size` RGB),
    `scenes_{train,val}2017.json` (the truth by image id) and `demo.json` (what was asked for, written last). Image `i`
    of a split depends on `seed` and `i` alone, so that a larger set begins with the smaller one.

    The set is built beside `folder` and renamed into place; what an interrupted call left is cleared away. A set of
    other parameters, or one from which files are gone, is replaced. Concurrent calls wait for each other.
    Raises ValueError for parameters out of range, DataError where `folder` holds something else.
    """
    folder = Path(folder)
    if train < 1 or val < 1 or max(train, val) >= FIRST_ID["val"]:
        raise ValueError(f"train={train}, val={val}: a demo set needs from 1 to 999,999 images in each split")
    if size < 48:
        raise ValueError(f"size={size}: below 48 pixels the small objects of the demo set cannot be told apart")
    if seed < 0:
        raise ValueError(f"seed={seed}: seeds are not negative")
    return demo_folder.ensure(
        folder,
        MANIFEST,
        wanted := _manifest(train, val, seed, size),
        lambda building: _build(building, train=train, val=val, seed=seed, size=size),
        whole=lambda folder: _whole(folder, wanted),
        ours=lambda names: bool(names & {MANIFEST, *(f"scenes_{split}2017.json" for split in SPLITS)}),
    )


def load_scenes(folder: str | Path, split: str) -> dict[int, Scene]:
    """The truth of every image of a split ("train" or "val"), by COCO image id.

    Raises ValueError for an unknown split, DataError where the folder is no demo set or the file is damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: the demo set has {' and '.join(SPLITS)}")
    path = Path(folder) / f"scenes_{split}2017.json"
    if not path.exists():
        raise DataError(f"{path} is missing: {folder} is no demo set; make one with pycap.data.demo.generate")
    try:
        return {int(key): Scene.from_json(value) for key, value in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove {folder} and make the demo set again") from error


def _manifest(train: int, val: int, seed: int, size: int) -> dict[str, Any]:
    """What identifies a set. The digest changes with every setting, word and template."""
    grammar = demo_grammar.WORDS, demo_grammar.MACROS, demo_grammar.GROUP_TEMPLATES, demo_grammar.PAIR_TEMPLATES
    digest = hashlib.sha256(repr((SETTINGS, grammar)).encode()).hexdigest()[:16]
    return {"train": train, "val": val, "seed": seed, "size": size, "revision": REVISION, "settings": digest}


def _whole(folder: Path, wanted: dict[str, Any]) -> bool:
    for split in SPLITS:
        images = folder / f"{split}2017"
        if not images.is_dir() or len(os.listdir(images)) != wanted[split]:
            return False
        if not (folder / f"scenes_{split}2017.json").is_file():
            return False
        if not (folder / "annotations" / f"captions_{split}2017.json").is_file():
            return False
    return True


def _build(folder: Path, *, train: int, val: int, seed: int, size: int) -> None:
    (folder / "annotations").mkdir()
    seen: set[bytes] = set()  # digests of all images: none occurs twice, in one split or in two
    for split, count in (("train", train), ("val", val)):
        (folder / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        scenes: dict[str, Any] = {}
        for index in range(count):
            scene, captions, jpeg = _example(split, index, seed, size, seen)
            image_id = FIRST_ID[split] + index
            name = f"{image_id:012d}.jpg"
            (folder / f"{split}2017" / name).write_bytes(jpeg)
            images.append({"license": 1, "file_name": name, "height": size, "width": size, "id": image_id})
            scenes[str(image_id)] = scene.to_json()
            for place, caption in enumerate(captions):
                annotation_id = (image_id - 1) * CAPTIONS + place + 1
                annotations.append({"image_id": image_id, "id": annotation_id, "caption": caption})
        document = {
            "info": {"description": "pycap demo set: drawn scenes; do not mirror the images", "version": "1.0"},
            "images": images,
            "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
            "annotations": annotations,
        }
        captions_file = folder / "annotations" / f"captions_{split}2017.json"
        captions_file.write_text(json.dumps(document), encoding="utf-8")
        (folder / f"scenes_{split}2017.json").write_text(json.dumps(scenes), encoding="utf-8")


def _example(split: str, index: int, seed: int, size: int, seen: set[bytes]) -> tuple[Scene, list[str], bytes]:
    """One scene, its captions and its JPEG, which is none of `seen` and joins them."""
    attempt = 0
    while True:
        rng = np.random.default_rng([seed, SPLITS.index(split), index, attempt])
        scene = sample_scene(rng)
        captions: dict[str, None] = {}
        while len(captions) < CAPTIONS:
            captions[write(scene, rng)] = None
        buffer = io.BytesIO()
        draw(scene, rng, size).save(buffer, "JPEG", quality=90, subsampling=0)
        digest = hashlib.sha256(buffer.getvalue()).digest()
        if digest not in seen:
            seen.add(digest)
            return scene, list(captions), buffer.getvalue()
        attempt += 1
