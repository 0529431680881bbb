"""Image files, each read and decoded as training decodes them: what is wrong with a file, and what it looks like in little."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from pycap.data.images import ImageError, Pixels, look, run_ahead
from pycap.data.layout import is_image_name
from pycap.device import cpu_count
from pycap.doctor.findings import Findings

SIDE = 32  # pixels, to which an image is squashed to be compared with others
THUMB = 8  # pixels, of what is kept of it
TINY, THIN = 32, 10  # a side in pixels, and one side by the other
LARGEST = 256 << 20  # bytes of a file that are read at once
_BATCH = 8  # images of a task
_SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM",
}  # fmt: skip


class Picture(NamedTuple):
    """An image to look at. name: what findings call it. size: width and height as the annotations say, or None."""

    name: str
    path: Path
    size: tuple[int, int] | None


class Seen(NamedTuple):
    """What was found. problems: (kind, detail). digest: of the file's bytes, 0 where they were not read. thumb: uint8
    [THUMB, THUMB, 3], None where it was not decoded. form: `JPEG RGB`."""

    problems: list[tuple[str, str]]
    digest: int
    thumb: Pixels | None
    form: str
    size: tuple[int, int]


class Looks:
    """What is kept of the images looked at, in their order: 200 bytes each.

    digests: uint64 [N], 0 where there is none. thumbs: uint8 [N, THUMB, THUMB, 3]. decoded: bool [N].
    """

    def __init__(self, count: int) -> None:
        self.digests = np.zeros(count, np.uint64)
        self.thumbs = np.zeros((count, THUMB, THUMB, 3), np.uint8)
        self.decoded = np.zeros(count, bool)
        self.looked_at = 0
        self.forms: Counter[str] = Counter()
        self.smallest: tuple[int, int] | None = None
        self.largest: tuple[int, int] | None = None

    def add(self, place: int, seen: Seen) -> None:
        self.looked_at += 1
        self.digests[place] = seen.digest
        if seen.thumb is None:
            return
        self.decoded[place], self.thumbs[place] = True, seen.thumb
        self.forms[seen.form] += 1
        area = seen.size[0] * seen.size[1]
        if self.smallest is None or area < self.smallest[0] * self.smallest[1]:
            self.smallest = seen.size
        if self.largest is None or area > self.largest[0] * self.largest[1]:
            self.largest = seen.size

    def repeat(self, seen: int, place: int) -> None:
        """What was found of the picture at `seen` holds for the one at `place`: it is the same file."""
        self.digests[place], self.decoded[place] = self.digests[seen], self.decoded[seen]
        self.thumbs[place] = self.thumbs[seen]


def look_at(
    pictures: Sequence[Picture], places: Iterable[int], looks: Looks, findings: Findings, workers: int = 0
) -> Generator[int, None, None]:
    """Look at the pictures at `places`, in as many threads as there are CPUs (or `workers`); yields how many were, as it goes.

    What is kept of a picture lies in `looks` at its place.
    """
    threads = workers or cpu_count()
    batches = (tuple(batch) for batch in _batched(places))
    with _quiet():
        results = run_ahead((partial(_task, pictures, batch) for batch in batches), threads, 2 * threads)
        try:
            for batch in results:
                for place, seen in batch:
                    looks.add(place, seen)
                    for kind, detail in seen.problems:
                        findings.add(kind, pictures[place].name, detail)
                yield len(batch)
        finally:
            results.close()


def _batched(places: Iterable[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for place in places:
        batch.append(place)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of broken EXIF and the like, which does not keep an image from being used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _task(pictures: Sequence[Picture], batch: Sequence[int]) -> list[tuple[int, Seen]]:
    return [(place, see(pictures[place])) for place in batch]


def see(picture: Picture) -> Seen:
    """Read and decode one image."""
    problems: list[tuple[str, str]] = []
    path = picture.path
    nothing = (0, 0)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            return Seen([("unreadable-image", f"{path} is no file")], 0, None, "", nothing)
        large = status.st_size > LARGEST
        with open(path, "rb") as file:
            content = b"" if large else file.read()
    except FileNotFoundError:
        return Seen([("missing-image", f"{path} (a link that leads nowhere)")], 0, None, "", nothing)
    except OSError as error:
        return Seen([("unreadable-image", f"{path}: {error.strerror}")], 0, None, "", nothing)
    if not content and not large:
        return Seen([("empty-image", "")], 0, None, "", nothing)
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") if content else 0
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    try:
        header = look(path if large else content, SIDE, picture.name, pixels)
    except ImageError as error:
        return Seen([(_failure(error), error.reason)], digest, None, "", nothing)
    width, height = size = header.width, header.height
    expected = _SUFFIXES.get(path.suffix.lower())
    form = "JPEG" if header.format == "MPO" else header.format
    if expected and form != expected:
        problems.append(("other-format", f"{form}, and its name ends in {path.suffix}"))
    if form == "JPEG" and not large and not _ends(content):
        problems.append(("image-without-end", f"{len(content)} bytes, without the marker of a JPEG's end"))
    if header.animated:
        problems.append(("animated", form))
    if header.mode == "CMYK":
        problems.append(("cmyk", form))
    if header.mode.startswith("I"):
        problems.append(("sixteen-bit", form))
    if header.transparent:
        problems.append(("transparent", f"{form} {header.mode}"))
    if min(size) < TINY:
        problems.append(("tiny", f"{width}x{height}"))
    if max(size) >= THIN * min(size):
        problems.append(("long-and-thin", f"{width}x{height}"))
    if picture.size and picture.size not in (size, size[::-1]):
        problems.append(("size-differs", f"{width}x{height}, annotated as {picture.size[0]}x{picture.size[1]}"))
    return Seen(problems, digest, reduced(pixels), f"{form} {header.mode}", size)


def reduced(pixels: Pixels) -> NDArray[np.uint8]:
    """Means of blocks: uint8 [SIDE, SIDE, 3] -> uint8 [THUMB, THUMB, 3]."""
    block = SIDE // THUMB
    means = pixels.reshape(THUMB, block, THUMB, block, 3).mean((1, 3), dtype=np.float32)
    return np.rint(means).astype(np.uint8)


def _failure(error: ImageError) -> str:
    """The kind of what kept an image from being decoded."""
    if isinstance(error.__cause__, UnidentifiedImageError):
        return "not-an-image"
    if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
        return "unreadable-image"
    return "too-many-pixels" if "pixels" in error.reason else "corrupt-image"


def _ends(content: bytes) -> bool:
    """Whether a JPEG's end is in the file, after the start of its last scan. A download that was stopped may have left zeros in
    the place of the rest, over which decoders go without a word."""
    return content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda")


def orphans(folders: Iterable[Path], named: set[str]) -> Iterator[str]:
    """Image files in these folders that nothing names. named: paths. Folders that cannot be read have none."""
    for folder in sorted(folders):
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image_name(entry.name) and entry.path not in named and os.path.isfile(entry.path):
                    yield entry.path
