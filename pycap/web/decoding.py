"""An upload's bytes become what a model takes; what they claim to be is looked at before anything is decoded."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Sequence
from contextlib import nullcontext

from PIL import Image, UnidentifiedImageError

from pycap.data.images import ImageError, decode_image, unknown_format
from pycap.web.batches import Decoded
from pycap.web.refusals import Refused

#: What browsers send, and the media type of each.
FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
_LONGEST_NAME = 256
# Of a progressive JPEG; encoders write a dozen. Each is a pass over all pixels, and may take few bytes of the file: 10 MB could
# keep a decoder busy for an hour.
_MOST_SCANS = 64
# Images of more pixels than this are decoded one at a time: a WebP takes 16 bytes a pixel while it is.
_LARGE = 4_000_000
_large = threading.Lock()
# What is neither a stuffed byte of compressed data, nor a restart in it, nor filling.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_START_OF_SCAN, _END_OF_IMAGE = b"\xda", b"\xd9"


def decode(upload: bytearray, sizes: Sequence[int], most_pixels: int) -> Decoded:
    """An upload's pixels, squashed to each of `sizes`. Refused: 415 for what is none of FORMATS, 413 for too many pixels, 400
    for what is corrupt or cut short. An animation's first frame."""
    data = bytes(upload)
    pixels = _look(data, most_pixels)
    try:
        with _large if pixels > _LARGE else nullcontext():
            return {size: decode_image(data, size, "the image") for size in sizes}
    except ImageError as error:
        raise Refused(400, f"the image cannot be used: {error.reason}") from error


def _look(data: bytes, most_pixels: int) -> int:
    """How many pixels an image has. Refused for one that should not be decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
    except UnidentifiedImageError as error:
        named = len(data) < _LONGEST_NAME and data.isascii()  # as after `curl -F image=photo.jpg`
        hint = "; is it a file's name in place of the file? (curl: -F image=@NAME)" if named else ""
        raise Refused(415, f"the file is {unknown_format(data[:12], list(FORMATS))}{hint}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(
            413, f"the image has more than the {most_pixels:,} pixels that it may have: shrink it first"
        ) from error
    except Exception as error:  # each decoder has its own for a header that makes no sense
        raise Refused(400, f"the image's header is corrupt ({type(error).__name__})") from error
    width, height = image.size
    if width * height > most_pixels:
        raise Refused(413, f"the image has {width} x {height} pixels; it may have {most_pixels:,}: shrink it first")
    if _scans(data) > _MOST_SCANS:
        raise Refused(400, f"the image is a JPEG of more than {_MOST_SCANS} scans: save it anew")
    return width * height


def _scans(data: bytes) -> int:
    """How many scans a JPEG's first image has, counted no further than one too many; 0 for what is none."""
    scans, at = 0, 2
    while data.startswith(b"\xff\xd8") and scans <= _MOST_SCANS and (marker := _MARKER.search(data, at)):
        if marker[1] == _END_OF_IMAGE:  # what follows may be anything: a film, a second image
            break
        scans += marker[1] == _START_OF_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])  # the segment counts its own length
    return scans
