"""JPEGs of a wanted size and length, made of photographs, and what of their decoding holds Python's lock."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from pycap.data.images import decode_image, encode_jpeg
from pycap.data.inputs import images_below

SIZE = 256  # to which they are decoded
PHOTOGRAPHS = 48
#: name -> (width, height), bytes
KINDS = {
    "decode_100kB": ((640, 480), 100e3),
    "decode_500kB": ((1600, 1200), 500e3),
    "decode_flickr": ((224, 224), 10e3),
}


@cache
def photographs(data: Path, size: tuple[int, int], nbytes: float) -> tuple[bytes, ...]:
    """JPEGs of a size, (width, height), made of photographs at the quality that brings them nearest to `nbytes` on average."""
    pictures = []
    for name in images_below(data):
        with Image.open(data / name) as image:
            if min(image.size) >= 400 and len(pictures) < PHOTOGRAPHS:
                upright = (
                    image.convert("RGB")
                    if image.width >= image.height
                    else image.convert("RGB").rotate(90, expand=True)
                )
                pictures.append(upright.resize(size, Image.Resampling.LANCZOS))
    if not pictures:
        raise ValueError(f"{data}: no photographs of 400 pixels or more both ways; give a folder of COCO's")
    made = ([_jpeg(picture, quality) for picture in pictures] for quality in range(40, 99, 2))
    return tuple(min(made, key=lambda files: abs(sum(map(len, files)) / len(files) - nbytes)))


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def stored(files: Sequence[bytes]) -> tuple[bytes, ...]:
    """What an image store holds of them."""
    return tuple(encode_jpeg(decode_image(data, SIZE)) for data in files)


def lock_rate(files: Sequence[bytes], seconds: float, passes: int = 5) -> float:
    """Images a second if nothing of decoding but what holds Python's lock took time: the best of some passes.

    A second thread runs Python and counts its CPU time while the first decodes: what it lacks of the wall's, the first held the
    lock, or they handed it over, or something else had the second's CPU. So the lock allows rather more than this.
    """
    return max(_lock_pass(files, seconds / passes) for _ in range(passes))


def _lock_pass(files: Sequence[bytes], seconds: float) -> float:
    stop, used = threading.Event(), [0.0]

    def spin() -> None:
        begin = time.thread_time()
        while not stop.is_set():
            pass
        used[0] = time.thread_time() - begin

    spinner = threading.Thread(target=spin)
    interval, count, begin = sys.getswitchinterval(), 0, time.perf_counter()
    sys.setswitchinterval(1e-5)  # so that the first need not wait for the lock long
    spinner.start()
    try:
        while time.perf_counter() < begin + seconds:
            for data in files:
                decode_image(data, SIZE)
            count += len(files)
    finally:
        stop.set()
        spinner.join()
        sys.setswitchinterval(interval)
    return count / max(time.perf_counter() - begin - used[0], 1e-9)
