"""A folder, a list and tars of images for `benchmarks.bulk`: drawn scenes and photographs, some grey, some broken."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pycap.data import demo
from pycap.data.disk import write_whole
from pycap.data.inputs import images_below

SEED = 8
MANIFEST = "bulk.json"  # written last
#: Ways to be no image, in turn: an empty file, a text, a JPEG cut in the middle, one whose bytes after the header are noise.
BROKEN = ("empty", "text", "cut", "noise")
_EVERY_BROKEN, _EVERY_GREY, _EVERY_PNG = 97, 31, 53
_A_FOLDER = 500  # images a sub-folder


@dataclass(frozen=True)
class Images:
    """What was made. inputs: as `pycap caption` takes them; broken: how many of the `count` images cannot be read; bytes: of
    all files."""

    inputs: tuple[str, ...]
    count: int
    broken: int
    photographs: int
    bytes: int


def make(place: Path, count: int, photographs: Path | None = None, scene_size: int = 160) -> Images:
    """Images 0 to count-1 in `place`: six of ten in a folder of folders, two named by a list, two in tars, one of them
    compressed. Every other one is a photograph, while there are any below `photographs`; the others are drawn scenes.

    Image i does not depend on `count`, so the first 2,000 of 20,000 are the 2,000. What stands there already is kept.
    """
    files = _shuffled([photographs / name for name in images_below(photographs)]) if photographs else []
    settings = {"count": count, "scene_size": scene_size, "seed": SEED, "photographs": len(files)}
    manifest = place / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text("utf-8"))
        if found["settings"] == settings:
            return Images(**{**found["images"], "inputs": tuple(found["images"]["inputs"])})
    elif place.exists() and any(place.iterdir()):
        raise FileExistsError(f"{place}: holds something else than images of this benchmark; name another folder")
    shutil.rmtree(place, ignore_errors=True)
    inputs = place / "folder", place / "listed.txt", place / "shard-0.tar", place / "shard-1.tgz"
    inputs[0].mkdir(parents=True)
    (place / "elsewhere").mkdir()
    size = broken = real = 0
    with (
        open(inputs[1], "w", encoding="utf-8") as listed,
        tarfile.open(inputs[2], "w") as tar,
        tarfile.open(inputs[3], "w:gz", compresslevel=1) as compressed,
    ):
        for index, (name, data) in enumerate(_images(count, files, scene_size)):
            size += len(data)
            broken += index % _EVERY_BROKEN == 5
            real += index % 2 == 1 and index // 2 < len(files)
            kind = index % 10
            if kind < 6:
                folder = inputs[0] / f"{index // _A_FOLDER:04d}"
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
            elif kind < 8:
                path = place / "elsewhere" / name
                path.write_bytes(data)
                listed.write(f"{path}\n")
            else:
                entry = tarfile.TarInfo(f"images/{name}")
                entry.size = len(data)
                (tar if kind == 8 else compressed).addfile(entry, io.BytesIO(data))
    images = Images(tuple(map(str, inputs)), count, broken, real, size)
    write_whole(manifest, json.dumps({"settings": settings, "images": vars(images)}) + "\n")
    return images


def _shuffled(files: Sequence[Path]) -> list[Path]:
    order = np.random.default_rng(SEED).permutation(len(files))
    return [files[i] for i in order]


def _images(count: int, files: Sequence[Path], scene_size: int) -> Iterator[tuple[str, bytes]]:
    """A name and a file's bytes for each image."""
    for index in range(count):
        rng = np.random.default_rng([SEED, index])
        if index % 2 and index // 2 < len(files):
            data = files[index // 2].read_bytes()
        else:
            data = _encoded(demo.draw(demo.sample_scene(rng), rng, scene_size), "JPEG")
        name = f"{index:09d}.jpg"
        if index % _EVERY_BROKEN == 5:
            data = _broken(data, BROKEN[index // _EVERY_BROKEN % len(BROKEN)], rng)
        elif index % _EVERY_GREY == 7:
            data = _encoded(Image.open(io.BytesIO(data)).convert("L"), "JPEG")
        elif index % _EVERY_PNG == 11:
            name = f"{index:09d}.png"
            data = _encoded(Image.open(io.BytesIO(data)).convert("RGBA"), "PNG")
        yield name, data


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 90} if form == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()


def _broken(data: bytes, how: str, rng: np.random.Generator) -> bytes:
    if how == "empty":
        return b""
    if how == "text":
        return b"404 Not Found\n"
    if how == "cut":
        return data[: len(data) // 2]
    return data[:20] + rng.bytes(len(data) - 20)
