"""Images from uint8 to normalised floats, cropped and flipped on the way; no gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pycap import device, memory
from pycap.autograd import Tensor
from pycap.backends import kernels


@dataclass(frozen=True, eq=False)
class Pixels:
    """Windows of images that are not normalised yet: `ops.conv2d_first` does so as it reads them. Made by `ops.pixels`.

    images uint8 [N,H,W,3], crops int32 [N,3], scale and shift float32 [3], all on the current device; size: the windows'
    side; dtype: that of the normalised images.
    """

    images: Any
    crops: Any
    scale: Any
    shift: Any
    size: int
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the normalised images: [N,size,size,3]."""
        return self.images.shape[0], self.size, self.size, 3

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """What primitives take: images, crops, scale, shift."""
        return self.images, self.crops, self.scale, self.shift

    def normalised(self) -> Tensor:
        """The normalised images, [N,size,size,3] of `dtype`."""
        y = memory.empty(self.shape, self.dtype)
        kernels.preprocess(y, *self.arrays)
        return Tensor(y)


@memory.kept(16)
def _scale_and_shift(where: tuple[ModuleType, int], mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Any, Any]:
    """1/std and -mean/std on the current device, which `where` names; kept, so that a step uploads neither."""
    scale, shift = 1 / np.array(std), -np.array(mean) / np.array(std)
    return device.to_device(scale.astype(np.float32)), device.to_device(shift.astype(np.float32))


def _where() -> tuple[ModuleType, int]:
    """The current device and its number."""
    module = device.module()
    return module, 0 if module is np else module.cuda.Device().id


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _stick_out(crops: np.ndarray, lowest: int, rightmost: int) -> bool:
    tops, lefts = crops[:, 0], crops[:, 1]
    return bool(tops.min() < 0 or lefts.min() < 0 or tops.max() > lowest or lefts.max() > rightmost)


def pixels(images: Any, crops: Any, size: int, mean: Any, std: Any, dtype: DTypeLike = np.float32) -> Pixels:
    """A window of each image, to be normalised to (pixel - mean) / std by whatever reads it.

    images uint8 [N,H,W,3]; crops int32 [N,3]: top, left (pixels) and whether to mirror left and right; arrays of the host,
    which go to the current device here, or of the device already. size: the side of the window in pixels; mean, std: 3 numbers
    each in units of 0..255. dtype: float32 or bfloat16, and with it what the layers that follow compute in.
    Raises ValueError for other arrays and for a window that sticks out. Crops that lie on a GPU are trusted: whoever put them
    there has seen them on the host, and reading them back would have it wait.
    """
    n, h, w, channels = images.shape
    if channels != 3 or images.dtype != np.uint8 or crops.shape != (n, 3):
        raise ValueError(
            f"preprocess: images {images.shape} {images.dtype}, crops {crops.shape} are not uint8 [N,H,W,3], [N,3]"
        )
    if n and (size > min(h, w) or (device.array_module(crops) is np and _stick_out(crops, h - size, w - size))):
        raise ValueError(f"preprocess: a {size}x{size} window sticks out of a {h}x{w} image")
    scale, shift = _scale_and_shift(_where(), _numbers(mean), _numbers(std))
    crops = device.to_device(crops.astype(np.int32, copy=False))
    return Pixels(device.to_device(images), crops, scale, shift, size, np.dtype(dtype))


def preprocess(images: Any, crops: Any, size: int, mean: Any, std: Any, dtype: DTypeLike = np.float32) -> Tensor:
    """(pixel - mean) / std of a window of each image: [N,size,size,3] of `dtype`. Arguments and errors as for `pixels`."""
    return pixels(images, crops, size, mean, std, dtype).normalised()
