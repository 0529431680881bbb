"""Images made wrong at random, each from a seed and a number: bits, bytes, pieces, and the structure of each format.

`seeds()` are small sound images of the formats that browsers send; `mutate(images, seed, number)` is one of them after a
few changes. What a format's reader checks first (a PNG's sums, the length of a RIFF file) is made right again half the time,
so that changes reach the code behind it.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from benchmarks.joint_work import smooth_image

SIDE = 96
_SIGNATURE = 8  # bytes of a PNG before its first chunk
_ODD = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_ODD_SIZES = (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF)


#: Changes a file in place. The files: what another's end may be taken from.
Change = Callable[[bytearray, random.Random, Mapping[str, bytes]], None]


@dataclass(frozen=True)
class Mutant:
    """A changed image. how: the image that it was and what was done, in words."""

    data: bytes
    how: str


@cache
def seeds() -> dict[str, bytes]:
    """By name (the end of which is the format), sound images of about 3 kB: always the same for one version of Pillow."""
    rng = np.random.default_rng(0)
    scene = Image.fromarray(smooth_image(rng, SIDE)).crop((0, 0, SIDE, SIDE * 3 // 4))
    other = Image.fromarray(smooth_image(rng, SIDE)).crop((0, 0, SIDE, SIDE * 3 // 4))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [other], "duration": 40}
    made = {
        "plain.jpeg": _encode(scene, "JPEG"),
        "progressive.jpeg": _encode(scene, "JPEG", progressive=True),
        "turned.jpeg": _encode(scene, "JPEG", exif=turned, subsampling=0, comment=b"a scene", dpi=(72, 72)),
        "grey.jpeg": _encode(scene.convert("L"), "JPEG"),
        "cmyk.jpeg": _encode(scene.convert("CMYK"), "JPEG"),
        "plain.png": _encode(scene.quantize(16).convert("RGB"), "PNG"),
        "palette.png": _encode(scene.quantize(16), "PNG", transparency=3),
        "lossy.webp": _encode(scene, "WEBP"),
        "lossless.webp": _encode(scene.quantize(16).convert("RGBA"), "WEBP", lossless=True, exif=turned),
        "moving.webp": _encode(scene, "WEBP", **frames),
        "moving.gif": _encode(scene.quantize(16), "GIF", **frames),
        "plain.bmp": _encode(scene.resize((32, 24)), "BMP"),
    }
    return made


def mutate(images: Mapping[str, bytes], seed: int, number: int) -> Mutant:
    """One image of `images` after one to four changes, which `seed` and `number` determine."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(sorted(images))
    return changed(images, name, rng, structure_of(name))


def changed(files: Mapping[str, bytes], name: str, rng: random.Random, structure: Mapping[str, Change]) -> Mutant:
    """One of `files`, of any form, after one to four changes to its bytes or, twice as often each, to its form's structure."""
    data, done = bytearray(files[name]), []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        kind = rng.choice((*_ANY, *tuple(structure) * 2))
        change = _ANY.get(kind) or structure[kind]
        if data:
            change(data, rng, files)
            done.append(kind)
    return Mutant(bytes(data), f"{name}: {', '.join(done)}")


def structure_of(name: str) -> Mapping[str, Change]:
    """The changes to the structure of an image, by the end of its name; none for a format that has none here."""
    return {kind: _FORMS[kind] for kind in _STRUCTURE.get(name.rpartition(".")[2], ())}


def _encode(image: Image.Image, form: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


# Changes to any bytes -------------------------------------------------------------------------------------------------


def _piece(data: bytearray, rng: random.Random) -> slice:
    """A random piece, short more often than long."""
    begin = rng.randrange(len(data))
    return slice(begin, begin + 1 + int((len(data) - begin) * rng.random() ** 3))


def _flip(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] = rng.choice((*_ODD, rng.randrange(256)))


def _overwrite_head(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    data[rng.randrange(min(64, len(data)))] = rng.choice((*_ODD, rng.randrange(256)))


def _truncate(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    del data[_piece(data, rng)]


def _repeat(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    piece = _piece(data, rng)
    data[piece] = bytes(data[piece]) * rng.choice((2, 2, 3, 40))


def _insert(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 16, 512)))


def _splice(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    """The end is another image's, of this format or another."""
    other = images[rng.choice(sorted(images))]
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


_ANY: dict[str, Change] = {
    "bits flipped": _flip,
    "bytes overwritten": _overwrite,
    "header overwritten": _overwrite_head,
    "cut short": _truncate,
    "piece deleted": _delete,
    "piece repeated": _repeat,
    "bytes inserted": _insert,
    "spliced": _splice,
}


# Changes to a format's structure --------------------------------------------------------------------------------------


def _segments(data: bytearray) -> list[slice]:
    """A JPEG's segments between SOI and the first scan, and that scan's header: marker, length, content."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(slice(at, min(end, len(data))))
        if data[at + 1] == 0xDA:
            break
        at = end
    return found


def _chunks(data: bytearray) -> list[slice]:
    """A PNG's chunks: length, name, content, sum."""
    found, at = [], _SIGNATURE
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        found.append(slice(at, min(end, len(data))))
        at = end
    return found


def _jpeg_marker(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    if segments := _segments(data):
        data[rng.choice(segments).start + 1] = rng.randrange(0xC0, 0x100)


def _jpeg_length(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    if segments := _segments(data):
        start = rng.choice(segments).start
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        data[start + 2 : start + 4] = struct.pack(
            ">H", rng.choice((*_ODD_SIZES, (length - 1) & 0xFFFF, (length + 1) & 0xFFFF))
        )


def _jpeg_frame(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    """Another height, width, precision, number of components, sampling or table in the frame's header."""
    for segment in _segments(data):
        if 0xC0 <= data[segment.start + 1] <= 0xC2 and segment.stop - segment.start > 10:
            at = segment.start + rng.choice((4, 5, 7, 9, *range(10, segment.stop - segment.start)))
            if at - segment.start in (5, 7):
                data[at : at + 2] = struct.pack(">H", rng.choice((*_ODD_SIZES, rng.randrange(0x10000))))
            else:
                data[at] = rng.choice((*_ODD, rng.randrange(256)))


def _jpeg_content(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    """Bytes within a segment: tables, EXIF, the scan's header."""
    if segments := [one for one in _segments(data) if one.stop - one.start > 4]:
        segment = rng.choice(segments)
        for _ in range(rng.choice((1, 4))):
            data[rng.randrange(segment.start + 4, segment.stop)] = rng.randrange(256)


def _rearrange(parts: Callable[[bytearray], list[slice]]) -> Change:
    """A part of the file dropped, doubled many times, or exchanged with another."""

    def change(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
        found = parts(data)
        if not found:
            return
        pieces = [bytes(data[one]) for one in found]
        at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        match rng.randrange(3):
            case 0:
                pieces[at] = b""
            case 1:
                pieces[at] *= rng.choice((2, 2, 100))
            case _:
                pieces[at], pieces[other] = pieces[other], pieces[at]
        data[found[0].start : found[-1].stop] = b"".join(pieces)

    return change


def _png_content(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    """Bytes of a chunk, its sum made right."""
    if chunks := [one for one in _chunks(data) if one.stop - one.start > 12]:
        chunk = rng.choice(chunks)
        for _ in range(rng.choice((1, 4))):
            data[rng.randrange(chunk.start + 4, chunk.stop - 4)] = rng.choice((*_ODD, rng.randrange(256)))
        _sum(data, chunk)


def _png_frame(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    """Another width, height, depth, kind of colour or interlacing, its sum made right."""
    if chunks := _chunks(data):
        start = chunks[0].start + 8
        if rng.randrange(2):
            at = start + rng.choice((0, 4))
            data[at : at + 4] = struct.pack(">I", rng.choice((*_ODD_SIZES, 0x7FFFFFFF, rng.randrange(20_000))))
        elif start + 12 < len(data):
            data[start + rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        _sum(data, chunks[0])


def _sum(data: bytearray, chunk: slice) -> None:
    data[chunk.stop - 4 : chunk.stop] = struct.pack(">I", zlib.crc32(data[chunk.start + 4 : chunk.stop - 4]))


def _riff_frame(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
    """Bytes of the first chunk's header, where sizes stand; half the time the length of the file is made right."""
    if len(data) > 40:
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(12, 40)] = rng.choice((*_ODD, rng.randrange(256)))
        if rng.randrange(2):
            data[4:8] = struct.pack("<I", len(data) - 8)


def _sizes(places: Mapping[int, str]) -> Change:
    """Another size at a byte's place, packed as the format does."""

    def change(data: bytearray, rng: random.Random, images: Mapping[str, bytes]) -> None:
        at, form = rng.choice(sorted(places.items()))
        if at + struct.calcsize(form) <= len(data):
            wide = struct.calcsize(form) > 2 and rng.randrange(2)
            struct.pack_into(form, data, at, rng.choice((0x7FFFFFFF, 50_000) if wide else (*_ODD_SIZES, 9_000)))

    return change


_FORMS: dict[str, Change] = {
    "JPEG marker": _jpeg_marker,
    "JPEG segment's length": _jpeg_length,
    "JPEG frame": _jpeg_frame,
    "JPEG segment's content": _jpeg_content,
    "JPEG segments rearranged": _rearrange(_segments),
    "PNG frame": _png_frame,
    "PNG chunk's content": _png_content,
    "PNG chunks rearranged": _rearrange(_chunks),
    "WebP frame": _riff_frame,
    "GIF size": _sizes({6: "<H", 8: "<H"}),
    "BMP size": _sizes({10: "<I", 14: "<I", 18: "<I", 22: "<I", 28: "<H", 30: "<I"}),
}
_STRUCTURE: dict[str, tuple[str, ...]] = {
    "jpeg": tuple(kind for kind in _FORMS if kind.startswith("JPEG")),
    "png": tuple(kind for kind in _FORMS if kind.startswith("PNG")),
    "webp": ("WebP frame",),
    "gif": ("GIF size",),
    "bmp": ("BMP size",),
}
