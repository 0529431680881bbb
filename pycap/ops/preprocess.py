"""Images from uint8 to normalised floats, cropped and flipped on the way; no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pycap import memory
from pycap.autograd import Tensor
from pycap.backends import kernels
from pycap.device import to_device


def preprocess(images: Any, crops: Any, size: int, mean: Any, std: Any, dtype: DTypeLike = np.float32) -> Tensor:
    """(pixel - mean) / std of a window of each image.

    images uint8 [N,H,W,3]; crops int32 [N,3]: top, left (pixels) and whether to mirror left and right; both arrays of the
    host, which go to the current device here. size: the side of the window in pixels; mean, std [3] in units of 0..255.
    Returns [N,size,size,3] of `dtype`, float32 or bfloat16, and with it decides what the layers that follow compute in.
    Raises ValueError for a window that sticks out.
    """
    n, h, w, channels = images.shape
    if channels != 3 or images.dtype != np.uint8 or crops.shape != (n, 3):
        raise ValueError(
            f"preprocess: images {images.shape} {images.dtype}, crops {crops.shape} are not uint8 [N,H,W,3], [N,3]"
        )
    if n and (int(crops[:, :2].min()) < 0 or int(crops[:, 0].max()) + size > h or int(crops[:, 1].max()) + size > w):
        raise ValueError(f"preprocess: a {size}x{size} window sticks out of a {h}x{w} image")
    scale = (1.0 / np.asarray(std, np.float64)).astype(np.float32)
    shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)
    y = memory.empty((n, size, size, 3), dtype)
    crops = crops.astype(np.int32, copy=False)
    kernels.preprocess(y, *(to_device(array) for array in (images, crops, scale, shift)))
    return Tensor(y)
