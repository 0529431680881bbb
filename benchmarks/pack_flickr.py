"""A captioned data set as one small file: images squashed to one size and encoded anew, all other files as they are.

    python -m benchmarks.pack_flickr --data DIR --size 160 --max-mib 60 --out flickr8k.zip

The zip holds the folder's own layout (Flickr's or COCO's), so that what reads the folder reads the unpacked zip. The JPEG
quality is the best of a few at which everything fits.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pycap.data import DataError
from pycap.data.images import decode_image
from pycap.data.layout import IMAGE_SUFFIXES
from pycap.device import cpu_count

QUALITIES = (90, 85, 80, 75, 70, 65, 60, 55, 50, 40, 30)
_SAMPLE = 60  # images from which the whole is estimated
_ENTRY = 80  # bytes that the zip adds to an entry, besides its name twice
_SAFETY = 1.03  # of the estimate


def files(root: Path) -> tuple[list[Path], list[Path]]:
    """(Images, other files) under a folder, in order of their names. DataError where there is no image."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{root}: no images in it; give the data set's folder with --data")
    return images, [path for path in found if path.suffix.lower() not in IMAGE_SUFFIXES]


def encode(path: Path, size: int, quality: int) -> bytes:
    """The image, squashed to size x size, as a JPEG. ImageError for one that cannot be read."""
    buffer = io.BytesIO()
    Image.fromarray(decode_image(path, size)).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def choose_quality(images: Sequence[Path], size: int, room: float, root: Path) -> int:
    """The best quality at which all images take at most `room` bytes, from a sample. DataError where none does."""
    sample = images[:: max(1, len(images) // _SAMPLE)]
    names = sum(_ENTRY + 2 * len(str(path.relative_to(root))) for path in images)
    needed = 0.0
    for quality in QUALITIES:
        mean = sum(len(encode(path, size, quality)) for path in sample) / len(sample)
        needed = _SAFETY * mean * len(images) + names
        if needed <= room:
            return quality
    raise DataError(
        f"{len(images)} images of {size}x{size} take about {needed / 2**20:.2g} MiB at quality {QUALITIES[-1]}, and there is "
        f"room for {room / 2**20:.2g}: lower --size, or raise --max-mib"
    )


def _encoded(images: Sequence[Path], size: int, quality: int) -> Iterator[tuple[Path, bytes]]:
    """The images in order, a few ahead in threads; Pillow works outside Python's lock."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        for first in range(0, len(images), 256):
            part = images[first : first + 256]
            yield from zip(part, pool.map(lambda path: encode(path, size, quality), part), strict=True)


def pack(root: Path, out: Path, size: int, max_mib: float) -> int:
    """Write the zip; returns the quality. DataError where it does not fit, and nothing is left then."""
    images, others = files(root)
    temporary = out.with_name(out.name + ".tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for path in others:
                archive.write(path, path.relative_to(root), zipfile.ZIP_DEFLATED)
            room = max_mib * 2**20 - sum(entry.compress_size for entry in archive.infolist())
            quality = choose_quality(images, size, room, root)
            for path, data in _encoded(images, size, quality):
                archive.writestr(str(path.relative_to(root)), data)
        taken = temporary.stat().st_size / 2**20
        if taken > max_mib:
            raise DataError(f"{taken:.1f} MiB at quality {quality}, more than the sample promised: lower --size")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return quality


def main(argv: Sequence[str] | None = None) -> int:
    """Pack what the command line names; 1 and one line where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack_flickr", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--size", type=int, default=160, help="height and width, in pixels (default: %(default)s)")
    parser.add_argument("--max-mib", type=float, default=60.0, help="the file's largest size (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.zip")
    own = parser.parse_args(argv)
    if own.size < 1 or own.max_mib <= 0:
        parser.error("--size and --max-mib are above 0")
    try:
        quality = pack(own.data, own.out, own.size, own.max_mib)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{own.out}: {own.out.stat().st_size / 2**20:.3g} MiB, images of {own.size}x{own.size}, JPEG quality {quality}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
