"""Which channels of the ReLU layers never answer: watched while a few batches of held-out images go through the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycap.autograd import Tensor
from pycap.device import array_module, bfloat16, to_host
from pycap.distributed import Ranks
from pycap.nn import Conv2d, Linear, Module
from pycap.nn.watch import watching

IMAGES = 128  # of each rank, and at least a batch: looking at all of them would say the same, and take longer

_FC7 = "cnn.fc7"


@dataclass(frozen=True)
class Relus:
    """images: how many were seen. dead: of each layer, in their order, (channels that were 0 at every place of every image,
    channels). spread: how far fc7 differs between the images, relative to its size; None where no CNN ran."""

    images: int
    dead: dict[str, tuple[int, int]]
    spread: float | None

    @property
    def shares(self) -> dict[str, float]:
        """The part of the channels that are dead, of layers that have any."""
        return {layer: dead / channels for layer, (dead, channels) in self.dead.items() if dead}


class Watch:
    """Looks at the outputs of one model's ReLUs. On a GPU nothing is read back before `result`."""

    def __init__(self, model: Module) -> None:
        self._names = dict(_named(model, ""))
        self._most: dict[str, Any] = {}
        self._least: Any = None
        self._images = 0

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """Within this, without dropout, so many images are looked at, unless enough have been."""
        if self._images >= IMAGES:
            yield
            return
        self._images += images
        with watching(self._see):
            yield

    def _see(self, layer: Module, output: Tensor) -> None:
        name = self._names.get(id(layer))
        if name is None or not output.data.size:
            return
        # What a ReLU puts out is not negative, and so ordered as its bits are, read as a signed number (-0 is below 0).
        bits = output.data.reshape(-1, output.shape[-1]).view(f"int{8 * output.dtype.itemsize}")
        module = array_module(bits)
        most = bits.max(0)
        self._most[name] = module.maximum(self._most[name], most) if name in self._most else most
        if name == _FC7:
            least = bits.min(0)
            self._least = least if self._least is None else module.where(least < self._least, least, self._least)

    def result(self, ranks: Ranks) -> Relus | None:
        """Of all ranks' images; None where no ReLU was seen. Waits for the device."""
        own = {name: to_host(most) for name, most in self._most.items()}
        least = None if self._least is None else to_host(self._least)
        told = ranks.each((own, least, self._images))
        most: dict[str, np.ndarray] = {}
        for theirs, _, _ in told:
            for name, bits in theirs.items():
                most[name] = np.maximum(most[name], bits) if name in most else bits
        if not most:
            return None
        dead = {name: (int((most[name] <= 0).sum()), len(most[name])) for name in self._names.values() if name in most}
        lowest = [bits for _, bits, _ in told if bits is not None]
        spread = None
        if lowest:
            floats = bfloat16() if lowest[0].itemsize == 2 else np.dtype(f"float{8 * lowest[0].itemsize}")
            high, low = (bits.view(floats).astype(np.float64) for bits in (most[_FC7], np.minimum.reduce(lowest)))
            size = float(np.linalg.norm(high))
            spread = float(np.linalg.norm(high - low)) / size if size > 0 else 0.0
        return Relus(sum(images for _, _, images in told), dead, spread)


def _named(module: Module, prefix: str) -> Iterator[tuple[int, str]]:
    """(id, name) of each layer that has a ReLU, in the order of definition."""
    for name, child in module.children():
        if isinstance(child, Conv2d) or (isinstance(child, Linear) and child.relu):
            yield id(child), prefix + name
        yield from _named(child, f"{prefix}{name}.")
