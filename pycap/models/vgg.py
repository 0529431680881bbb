"""VGG image encoders (Simonyan & Zisserman 2014): configurations A, B, D, E and two small ones, up to fc7."""

from __future__ import annotations

import numpy as np

from pycap import ops
from pycap.autograd import Tensor
from pycap.nn import Conv2d, Dropout, Linear, Module

#: Output channels of the 3x3 convolutions, block by block; each block ends in a 2x2 max-pool.
BLOCKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "vgg19": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
    "vgg_small6": ((32,), (64,), (128, 128), (256, 256)),
    "vgg_micro": ((16,), (32,), (48,), (64,)),
}


class VGG(Module):
    """Images [N,S,S,3], normalised, or as `ops.Pixels` -> the fc7 vector [N, fc_size] (4096 in the paper).

    name: a key of `BLOCKS`. width: multiplies every channel count (rounded to a multiple of 8). fc_size: of fc6 and fc7.
    drop: dropout after fc6 and fc7. Parameters are called ``conv<block>_<layer>``, ``fc6``, ``fc7``; fc6 reads the last map
    flattened in the order H, W, C. Raises ValueError for an unknown name or an image size the pools do not divide.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        rng: np.random.Generator | None,
        *,
        width: float = 1.0,
        fc_size: int = 4096,
        drop: float = 0.5,
    ) -> None:
        if name not in BLOCKS:
            raise ValueError(f"cnn {name!r} is unknown; choose from {', '.join(BLOCKS)}")
        blocks = BLOCKS[name]
        side, remainder = divmod(image_size, 2 ** len(blocks))
        if remainder or not side:
            raise ValueError(
                f"image size {image_size}: {name} pools {len(blocks)} times, so it must be a multiple of {2 ** len(blocks)}"
            )
        self.name, self.image_size, self.output_size = name, image_size, fc_size
        self._convolutions: list[Conv2d] = []
        inputs = 3
        for i, block in enumerate(blocks, 1):
            for j, channels in enumerate(block, 1):
                outputs = channels if width == 1 else max(8, round(channels * width / 8) * 8)
                layer = Conv2d(inputs, outputs, rng, pool=j == len(block))
                setattr(self, f"conv{i}_{j}", layer)
                self._convolutions.append(layer)
                inputs = outputs
        self.fc6 = Linear(side * side * inputs, fc_size, rng, relu=True)
        self.drop6 = Dropout(drop)
        self.fc7 = Linear(fc_size, fc_size, rng, relu=True)
        self.drop7 = Dropout(drop)

    def __call__(self, images: Tensor | ops.Pixels) -> Tensor:
        first, *others = self._convolutions
        x = first(images)
        for layer in others:
            x = layer(x)
        x = ops.reshape(x, (x.shape[0], -1))
        return self.drop7(self.fc7(self.drop6(self.fc6(x))))
