"""The one resize of pycap: antialiased bilinear, with the arithmetic of Pillow, by a kernel of our own where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LONGEST_SIDE = 65535  # that the kernel takes; a JPEG's can be no longer


@cache
def _kernel() -> Callable[..., None] | None:
    """`_cpu.squash`; None where pycap._cpu is not built, or the CPU lacks AVX2."""
    try:
        from pycap.backends import cpp  # finds the libraries that _cpu needs
    except ImportError:
        return None
    return cpp.squash


def _memory(image: Image.Image) -> Any | None:
    """Where Pillow has the image's pixels, four bytes each, or None: before 11.2 it does not tell, and a large image lies
    in pieces.
    """
    # Rows with gaps between them (PILLOW_ALIGNMENT) are refused by Pillow itself only in later versions.
    if not hasattr(image, "__arrow_c_array__") or 4 * image.width % Image.core.get_alignment():
        return None
    try:
        return image.__arrow_c_array__()
    except ValueError:
        return None


def squash(image: Image.Image, out: NDArray[np.uint8], extent: tuple[float, float] | None = None) -> None:
    """Resize an RGB image to out, uint8 [P, Q, 3], C-contiguous.

    extent: (width, height) of the picture, where it ends inside the image's last column and row, as after a JPEG decoder's
    reduction; multiples of 1/8. Rows are resized first and rounded to 8 bits, then columns, with weights of 22 bits: what
    Pillow does up to version 12. From 13 on it takes the columns of tall images first, which changes some levels by 1; here
    the order is always the same, so that pixels depend neither on Pillow's version nor on whether the kernel is there.
    """
    height, width = out.shape[:2]
    wide, high = extent or image.size
    kernel = _kernel()
    memory = _memory(image) if kernel is not None and max(*image.size, width, height) <= _LONGEST_SIDE else None
    if kernel is not None and memory is not None:
        kernel(out, memory, image.height, image.width, high, wide)
    else:
        bilinear = Image.Resampling.BILINEAR
        narrow = image.resize((width, image.height), bilinear, box=(0, 0, wide, image.height))
        out[...] = np.asarray(narrow.resize((width, height), bilinear, box=(0, 0, width, high)))
