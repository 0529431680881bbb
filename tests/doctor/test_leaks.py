"""The same photograph in two splits is found, in other forms too; others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pycap.doctor.images import Picture, see
from pycap.doctor.leaks import near
from tests.doctor.examining import Captions, examined, names
from tests.doctor.planting import SIDE, clean, photograph, saved


def test_photographs_saved_anew_are_found_and_others_are_not(tmp_path: Path) -> None:
    """Of one photograph, saved in other qualities and sizes, all are found; of fifty different ones none."""
    root = clean("coco", tmp_path)
    train, val = Captions(root, "train"), Captions(root, "val")
    forms: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({"quality": 95}, (300, 200)), ({"quality": 50}, (300, 200)), ({"quality": 85}, (150, 100)),
        ({"quality": 75, "subsampling": 2}, (600, 400)), ({"form": "PNG"}, (300, 200)),
    ]  # fmt: skip
    expected = set()
    for number, (options, size) in enumerate(forms):
        (one, _), (other, _) = train.take(), val.take()
        picture = photograph(200 + number, 300, 200)
        train.path(one).write_bytes(saved(picture, quality=90))
        val.path(other).write_bytes(saved(picture.resize(size), **options))
        one.update(width=300, height=200)
        other.update(width=size[0], height=size[1])
        expected.add(one["file_name"])
    for number in range(50):
        train.path(image := train.take()[0]).write_bytes(saved(photograph(300 + number)))
        image.update(width=SIDE, height=SIDE)
    train.write()
    val.write()
    found = names(examined(root))
    assert found.pop("other-format") and found == {"leak-pixels": expected}


def test_leaks_between_any_two_splits(tmp_path: Path) -> None:
    root = clean("flickr8k", tmp_path)
    listed = {
        split: (root / f"Flickr8k_text/Flickr_8k.{split}Images.txt").read_text().split()
        for split in ("train", "dev", "test")
    }
    expected: dict[str, set[str]] = {"leak-pixels": set(), "leak-bytes": set()}
    place = 0
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        for kind in expected:
            ours, theirs = (root / "Flicker8k_Dataset" / listed[split][place] for split in (one, other))
            picture = photograph(90 + place, 200, 150)
            ours.write_bytes(saved(picture, quality=95))
            theirs.write_bytes(ours.read_bytes() if kind == "leak-bytes" else saved(picture, quality=60))
            expected[kind].add(ours.name)
            place += 1
    assert names(examined(root)) == expected


def test_pictures_that_are_alike_in_little_only_are_no_leak(tmp_path: Path) -> None:
    """The same large forms under another texture."""
    root = clean("coco", tmp_path)
    train, val = Captions(root, "train"), Captions(root, "val")
    smooth = np.asarray(photograph(95, 192, 192), np.float32)
    thumbs = []
    for c, seed in ((train, 1), (val, 2)):
        image, _ = c.take()
        texture = np.random.default_rng(seed).normal(0, 25, smooth.shape)
        textured = np.clip(smooth / 2 + 64 + texture, 0, 255).astype(np.uint8)
        c.path(image).write_bytes(saved(Image.fromarray(textured), quality=95))
        image.update(width=192, height=192)
        c.write()
        thumbs.append(see(Picture("", c.path(image), None)).thumb)
    # Which only the closer look tells apart.
    assert list(near(np.stack(thumbs), np.array([0]), np.array([1]))) == [(0, 1)]
    assert names(examined(root)) == {}


def test_small_forms_are_near_only_where_they_differ_by_few_levels() -> None:
    one = np.full((8, 8, 3), 100, np.uint8)
    everywhere, somewhere, little = one + 3, one.copy(), one + 1
    somewhere[0, 0, 0] += 11
    thumbs = np.stack([one, everywhere, somewhere, little])
    assert list(near(thumbs, np.array([0]), np.array([1, 2, 3]))) == [(0, 3)]
