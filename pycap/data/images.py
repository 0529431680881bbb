"""Images: the one decoder and resizer, the preprocessing spec, and work done ahead in threads."""

from __future__ import annotations

import io
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pycap.data import DataError
from pycap.data.resize import squash

# Formats whose decoders only decode; Pillow's EPS reader, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 80_000_000  # below the limit at which Pillow warns
JPEG_QUALITY = 95
_PREVIEW_QUALITY = 85
# Bytes that a decoder is handed at once: with Pillow's 64 KiB it takes Python's lock, and copies, several times an image.
_BLOCK = 1 << 20
_BAND = 1 << 20  # pixels that are converted to RGB at once
# A JPEG is reduced while it is decoded to no less than this times the size wanted. Measured on 160 photographs of COCO
# against the squash of all pixels, reduced by 2, 4, 8: mean difference 0.52, 0.64, 0.78 levels (of the worst image 1.1,
# 1.4, 1.6), 99.9 % within 6, 7, 8, all within 22. With 1 in its place: 1.5 to 1.8, 99.9 % within 20 to 22, since the
# decoder's filter is sharper. Black letters on white, the worst case, differ by up to 20 levels, 3 on average.
_REDUCED = 2
# What Pillow's decoders raise on bytes that are not what they should be.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error)
# How a file begins that is HEIC or AVIF, after the four bytes of a length.
_HEIF = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1", b"ftypavif", b"ftypavis")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112
# EXIF orientation -> what brings the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = NDArray[np.uint8]
T = TypeVar("T")


class ImageError(DataError):
    """One image that cannot be used: `file` names it, `reason` says why; the message holds both."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


@dataclass(frozen=True)
class PreprocessSpec:
    """How pixels reach the network. It belongs in every checkpoint: captions go wrong when it differs from training's.

    An image is squashed to `resize` x `resize` (antialiased bilinear), a `crop` x `crop` window is taken, and each
    channel becomes y = (x - mean) / std, with x in 0..255; `mean` and `std` are in those units. The defaults are
    ImageNet's.
    """

    resize: int = 256
    crop: int = 224
    mode: str = "squash"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channels: str = "RGB"

    def __post_init__(self) -> None:
        """DataError on a value that no pycap writes (names the field)."""
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DataError(
                    f"preprocessing spec: {name} is {value!r}; it must be a whole number of pixels, 1 or more"
                )
        if self.crop > self.resize:
            raise DataError(
                f"preprocessing spec: crop {self.crop} does not fit in resize {self.resize}; make resize larger"
            )
        for name, known in (("mode", "squash"), ("interpolation", "bilinear"), ("channels", "RGB")):
            if getattr(self, name) != known:
                raise DataError(f"preprocessing spec: {name} is {getattr(self, name)!r}; this pycap knows {known!r}")
        for name in ("mean", "std"):
            try:
                values = tuple(float(v) for v in getattr(self, name))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"preprocessing spec: {name} is {getattr(self, name)!r}; it must be three numbers"
                ) from error
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise DataError(f"preprocessing spec: {name} is {values}; it must be three finite numbers, std above 0")
            object.__setattr__(self, name, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON or YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessSpec:
        """What `to_dict` gave. DataError on a missing or an unknown key, or a bad value."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or set(values) != set(names):
            found = sorted(values) if isinstance(values, dict) else repr(values)
            raise DataError(
                f"preprocessing spec: the keys must be {', '.join(names)}; found {found}; take it from the checkpoint"
            )
        return cls(**values)

    def centre(self) -> tuple[int, int, int]:
        """(top, left, flip) of evaluation's crop: the centre, not flipped."""
        offset = (self.resize - self.crop) // 2
        return offset, offset, 0


def centre_crops(spec: PreprocessSpec, count: int) -> NDArray[np.int32]:
    """int32 [count, 3]: (top, left, flip) of the centre crop, as `Batch.crops` has them."""
    return np.tile(np.array(spec.centre(), dtype=np.int32), (count, 1))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 where there is none or the EXIF block itself is broken: the pixels are sound all the
    same.
    """
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode Pillow opens -> RGB: transparency on white, 16-bit samples scaled (Pillow's own conversion clips
    them). In bands, since some of it takes 16 bytes a pixel for a while.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return _converted(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_converted(image.crop(box)), box)
    return whole


def _converted(image: Image.Image) -> Image.Image:
    """As `_to_rgb` says, at once."""
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples, whose range is unknown; save it with 8 or 16 bits")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def decode_image(
    source: str | os.PathLike[str] | bytes, size: int, name: str | None = None, out: Pixels | None = None
) -> Pixels:
    """Decode an image and squash it to size x size (`resize.squash`).

    source: a path, or the file's bytes; name: what errors call it (default: the path). Returns uint8 [size, size, 3],
    which is `out` where that is given (C-contiguous; after an error its contents are undefined): RGB, upright by EXIF;
    grey, CMYK, palette, 16-bit and transparent (on white) images converted. The decoder reduces a JPEG by 2, 4 or 8 where
    twice `size` is left both ways: a photograph's levels are then within 1 of the unreduced one's on average, 99.9 % of
    them within 8. Raises ImageError when the file is missing, no image, cut short, corrupt, or larger than MAX_PIXELS.
    """
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    with _opened(source, name) as image:
        _decode(image, size, out)
    return out


class Header(NamedTuple):
    """What an image's header says. format, mode: Pillow's names (`JPEG`, `CMYK`); width, height: of the pixels as they lie
    in the file; transparent, animated: whether some pixel may be, and whether there are more pictures than the one used."""

    format: str
    mode: str
    width: int
    height: int
    transparent: bool
    animated: bool


def look(source: str | os.PathLike[str] | bytes, size: int, name: str, out: Pixels) -> Header:
    """As `decode_image`, and what the header says."""
    with _opened(source, name) as image:
        transparent = image.mode in _TRANSPARENT or "transparency" in image.info
        header = Header(
            image.format or "", image.mode, image.width, image.height, transparent, _has_more_pictures(image)
        )
        _decode(image, size, out)
    return header


def _has_more_pictures(image: Image.Image) -> bool:
    """Whether a file holds an animation, or several pages; what is broken behind the first picture does not matter."""
    try:
        # Of a JPEG further pictures are previews of it, as cameras put them there.
        return image.format in ("GIF", "PNG", "WEBP", "TIFF") and bool(getattr(image, "is_animated", False))
    except _DECODER_ERRORS:
        return False


def _decode(image: Image.Image, size: int, out: Pixels) -> None:
    """What `decode_image` does with an opened image."""
    drafted = image.draft("RGB", (_REDUCED * size, _REDUCED * size))
    image.load()  # before the orientation is read: Pillow turns TIFFs itself, and a PNG's EXIF may come last
    orientation = _orientation(image)
    squash(_to_rgb(image), out, drafted[1][2:] if drafted else None)
    if orientation != 1:
        out[...] = np.asarray(Image.fromarray(out).transpose(_UPRIGHT[orientation]))


def preview(source: str | os.PathLike[str] | bytes, side: int, name: str | None = None) -> bytes:
    """A JPEG for people to look at: upright, in its own proportions, reduced to at most `side` pixels both ways.

    source, name: as `decode_image` has them; ImageError likewise.
    """
    with _opened(source, name) as image:
        image.draft("RGB", (side, side))
        image.load()
        orientation = _orientation(image)
        small = _to_rgb(image)
        small.thumbnail((side, side))
    if orientation != 1:
        small = small.transpose(_UPRIGHT[orientation])
    return viewed(small)


def viewed(picture: Image.Image | Pixels) -> bytes:
    """A picture, RGB (or uint8 [H, W, 3]), as a JPEG for people to look at: half the bytes of `encode_jpeg`'s."""
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, "JPEG", quality=_PREVIEW_QUALITY)
    return file.getvalue()


def image_format(path: str | os.PathLike[str]) -> str:
    """Which of `FORMATS` a file is of, by what is in it. ImageError as for `decode_image`, as far as the header tells."""
    with _opened(path, None) as image:
        return image.format or ""


def unknown_format(head: bytes, formats: Sequence[str] = FORMATS) -> str:
    """Why a file is none of `formats`, by its first 12 bytes: phones take photographs in a format that nothing here reads."""
    what = "but HEIC or AVIF: save it as a JPEG" if head[4:12] in _HEIF else "or its header is corrupt"
    return f"not an image of a known format ({', '.join(formats)}), {what}"


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes, name: str | None) -> Iterator[Image.Image]:
    """An image whose header was read, and is not too large; what its decoder raises becomes an ImageError."""
    label = name or ("image bytes" if isinstance(source, bytes) else os.fspath(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                reason = f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; shrink the image first"
                raise ImageError(label, reason)
            image.decodermaxblock = _BLOCK
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(label, "no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(label, unknown_format(_head(source))) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(label, f"too many pixels ({error}); shrink the image first") from error
    except _DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's error, not the decoder's
            raise ImageError(label, f"cannot be read ({error.strerror})") from error
        raise ImageError(label, f"corrupt or cut short ({str(error) or type(error).__name__})") from error


def _head(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:12]
    with open(source, "rb") as file:
        return file.read(12)


def encode_jpeg(pixels: Pixels) -> bytes:
    """uint8 [H, W, 3] -> JPEG bytes at quality 95 without chroma subsampling: the same bytes for the same pixels."""
    # Pillow lets other threads run while it encodes into a file of the system, but not into one of Python's.
    with open(os.memfd_create("pycap-jpeg"), "w+b") if hasattr(os, "memfd_create") else io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        file.seek(0)
        return file.read()


def run_ahead(tasks: Iterator[Callable[[], T]], workers: int, ahead: int) -> Generator[T, None, None]:
    """Results of `tasks` in order, with at most `ahead` of them running or waiting in `workers` threads.

    The threads start at the first `next` and have ended when the iterator is exhausted, closed, or left by an
    exception. workers = 0 runs each task in the caller's thread when its result is asked for.
    """
    if workers < 1:
        for task in tasks:
            yield task()
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pycap-data")
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= max(ahead, 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
