"""The layers that the models are made of."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from pycap import ops
from pycap.autograd import Tensor
from pycap.nn.module import Module, normal, uniform, zeros
from pycap.nn.watch import shown


class Conv2d(Module):
    """size x size convolution with bias, ReLU and, where `pool`, a 2x2 max-pool, as one op; [N,H,W,C] -> [N,H',W',K].

    A network's first layer takes `ops.Pixels` too: the images are then normalised on the way into it, where it does not pool.
    He initialisation (He et al. 2015): N(0, 2 / fan_in), biases 0.
    """

    def __init__(
        self, inputs: int, outputs: int, rng: np.random.Generator | None, *, size: int = 3, pool: bool = False
    ) -> None:
        self.weight = normal(rng, (outputs, size, size, inputs), (2 / (size * size * inputs)) ** 0.5)
        self.bias = zeros((outputs,))
        self.padding, self.pool = size // 2, pool

    def __call__(self, x: Tensor | ops.Pixels) -> Tensor:
        if isinstance(x, ops.Pixels):
            if not self.pool and self.weight.shape[1:3] == (3, 3):
                return shown(self, ops.conv2d_first(x, self.weight, self.bias, relu=True))
            x = x.normalised()
        return shown(self, ops.conv2d(x, self.weight, self.bias, padding=self.padding, relu=True, pool=self.pool))


class Linear(Module):
    """[M,I] -> [M,O], with ReLU where `relu`.

    Initialisation: He's for ReLU layers, else U(-1/sqrt(I), 1/sqrt(I)); biases 0.
    """

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator | None, *, relu: bool = False) -> None:
        if relu:
            self.weight = normal(rng, (outputs, inputs), (2 / inputs) ** 0.5)
        else:
            self.weight = uniform(rng, (outputs, inputs), inputs**-0.5)
        self.bias = zeros((outputs,))
        self.relu = relu

    def __call__(self, x: Tensor) -> Tensor:
        return shown(self, ops.linear(x, self.weight, self.bias, relu=self.relu))


class Embedding(Module):
    """A table of `count` rows of `size` numbers, N(0, 1); int32 ids [...] -> [..., size]. trusted: see `ops.embedding`."""

    def __init__(self, count: int, size: int, rng: np.random.Generator | None) -> None:
        self.weight = normal(rng, (count, size), 1.0)

    def __call__(self, ids: Any, *, trusted: bool = False) -> Tensor:
        return ops.embedding(self.weight, ids, trusted=trusted)


class LSTM(Module):
    """An LSTM layer: [T,N,I] -> [T,N,H].

    Weights U(-1/sqrt(H), 1/sqrt(H)); biases 0 but for the forget gates' 1, so that a new cell remembers (Jozefowicz et
    al. 2015).
    """

    def __init__(self, inputs: int, hidden: int, rng: np.random.Generator | None) -> None:
        self.weight_x = uniform(rng, (4 * hidden, inputs), hidden**-0.5)
        self.weight_h = uniform(rng, (4 * hidden, hidden), hidden**-0.5)
        self.bias = zeros((4 * hidden,))
        self.bias.data[hidden : 2 * hidden] = 1
        self.hidden = hidden

    def __call__(
        self, x: Tensor, h0: Tensor | None = None, c0: Tensor | None = None, mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        return ops.lstm(x, self.weight_x, self.weight_h, self.bias, h0, c0, mask)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x [N,I], h and c [N,H] -> the new (h, c)."""
        return ops.lstm_cell(x, h, c, self.weight_x, self.weight_h, self.bias)


class Dropout(Module):
    """Dropout in training mode, the identity in evaluation mode.

    Before each training step `place` says which seed to use and which rows of the whole batch the coming rows are, so that
    a batch worked off in micro-batches drops the same elements as one worked off at once.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self.place(0, 0, 1, 1)

    def place(self, seed: Any, first: int, count: int, total: int) -> None:
        """seed: as `ops.dropout` takes it. The coming rows belong to images first..first+count of a batch of `total`."""
        self.seed, self.first, self.count, self.total = seed, first, count, total

    def __call__(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rows, remainder = divmod(x.shape[-2], self.count)  # rows an image: one, or its captions
        if remainder:
            raise ValueError(
                f"dropout: {x.shape[-2]} rows do not belong to {self.count} images in equal parts; call place()"
            )
        return ops.dropout(x, self.p, self.seed, total=self.total * rows, offset=self.first * rows)


def dropout_layers(model: Module) -> list[Dropout]:
    """Every Dropout of a model, in the order in which they get their seeds."""
    return [m for m in model.modules() if isinstance(m, Dropout)]


def dropout_seeds(model: Module, seed: int) -> np.ndarray:
    """A seed for every Dropout of a model, drawn from `seed`: uint32 [layers, 2] on the host, low and high halves."""
    count = len(dropout_layers(model))
    drawn = np.random.SeedSequence(seed).generate_state(max(count, 1), np.uint64)[:count]
    return np.stack([drawn & np.uint64(0xFFFFFFFF), drawn >> np.uint64(32)], 1).astype(np.uint32)


def place_dropout(model: Module, seed: Any, first: int, count: int, total: int) -> None:
    """Tell every Dropout of a model its place in the batch, each with a seed of its own.

    seed: an int, from which the layers' are drawn (`dropout_seeds`); or those themselves, uint32 [layers, 2], of which row i is
    read where it lies, on the device as it may be, when layer i runs. Raises ValueError for another number of rows.
    """
    layers = dropout_layers(model)
    if isinstance(seed, Integral):
        drawn = [int(low) | int(high) << 32 for low, high in dropout_seeds(model, int(seed)).tolist()]
    elif len(seed) == len(layers):
        drawn = [seed[i] for i in range(len(layers))]
    else:
        raise ValueError(f"place_dropout: {len(seed)} seeds for {len(layers)} layers; dropout_seeds draws them")
    for layer, own in zip(layers, drawn, strict=True):
        layer.place(own, first, count, total)
