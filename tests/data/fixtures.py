"""Small data folders with known defects, made in a test's own folder: COCO, Flickr8k, Karpathy, and their images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

BROKEN_KEY = "2258277193_586949ec62.jpg.1"


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: smooth gradients and an offset by seed; JPEG keeps it nearly as it is."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y + 37 * seed) % 256]
    return np.stack(planes, axis=-1).astype(np.uint8)


def quadrants(size: int = 64) -> Image.Image:
    """Red, green / blue, white quarters: shows at once which way up an image is."""
    half = size // 2
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:half, :half] = (255, 0, 0)
    pixels[:half, half:] = (0, 255, 0)
    pixels[half:, :half] = (0, 0, 255)
    pixels[half:, half:] = (255, 255, 255)
    return Image.fromarray(pixels)


def write_jpeg(path: Path, seed: int = 0, height: int = 40, width: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(height, width, seed)).save(path, "JPEG", quality=95)
    return path


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cut a file short."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def write_json(path: Path, body: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def coco_body(images: int = 4, captions: int = 2) -> dict:
    """COCO captions JSON with ids 100, 101, ...; image i has the captions `a cat number i`, `the dog number i`, ..."""
    nouns = ("a cat", "the dog", "one bird", "some fish", "two cows", "a horse", "the goat")
    return {
        "images": [{"id": 100 + i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 48} for i in range(images)],
        "annotations": [
            {"id": 10 * i + k, "image_id": 100 + i, "caption": f"{nouns[k]} number {'abcdefghijkl'[i % 12]}"}
            for i in range(images)
            for k in range(captions)
        ],
    }


def make_coco(
    root: Path, images: int = 4, captions: int = 2, year: str = "2017", splits: tuple[str, ...] = ("train", "val")
) -> Path:
    """A sound folder in COCO's layout."""
    for split in splits:
        body = coco_body(images, captions)
        write_json(root / "annotations" / f"captions_{split}{year}.json", body)
        for i, image in enumerate(body["images"]):
            write_jpeg(root / f"{split}{year}" / image["file_name"], seed=i)
    return root


def edit_json(path: Path, change) -> None:
    """Apply `change` to the parsed JSON of a file, in place."""
    body = json.loads(path.read_text(encoding="utf-8"))
    change(body)
    write_json(path, body)


def make_flickr8k(root: Path, images: int = 6, broken_key: bool = True) -> Path:
    """Flickr8k's original layout: the first images train, the last but one dev, the last test; five captions each."""
    names = [f"{1000 + i}_abc.jpg" for i in range(images)]
    lines = [f"{name}#{k}\tA dog number {k} runs ." for name in names for k in range(5)]
    if broken_key:
        lines[5:5] = [f"{BROKEN_KEY}#{k}\tPeople at a picnic ." for k in range(5)]
    text = root / "Flickr8k_text"
    text.mkdir(parents=True)
    (text / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for word, part in (("train", names[:-2]), ("dev", names[-2:-1]), ("test", names[-1:])):
        (text / f"Flickr_8k.{word}Images.txt").write_text("".join(f"{name}\n" for name in part), encoding="utf-8")
    for i, name in enumerate(names):
        write_jpeg(root / "Flicker8k_Dataset" / name, seed=i)
    return root


def karpathy_body(coco: bool = True) -> dict:
    """Karpathy's JSON: one image of each split name."""
    images = []
    for i, split in enumerate(("train", "restval", "val", "test")):
        image = {
            "filename": f"pic{i}.jpg",
            "imgid": i,
            "split": split,
            "sentences": [
                {"raw": f"A bird number {k} .", "tokens": ["a", "bird"], "sentid": 5 * i + k} for k in range(5)
            ],
        }
        if coco:
            image.update(filepath="val2014" if split != "train" else "train2014", cocoid=700 + i)
        images.append(image)
    return {"dataset": "coco" if coco else "flickr8k", "images": images}
