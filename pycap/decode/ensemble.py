"""Ensembles: several models that write one caption together, by the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pycap import ops
from pycap.autograd import Tensor
from pycap.device import array_module, to_device
from pycap.nn import Module


class Views:
    """The same images as each member sees them: its own pixels, of its own size and normalisation."""

    def __init__(self, images: Iterable[Tensor | ops.Pixels]) -> None:
        self.images = tuple(images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first member's images: [N,S,S,3]."""
        return self.images[0].shape


class States:
    """The states of all members [N, ...]."""

    def __init__(self, states: Iterable[Any]) -> None:
        self.states = tuple(states)

    def rows(self, index: Any) -> States:
        """The states of the rows `index` (int array of the host)."""
        return States(state.rows(index) for state in self.states)

    def rows_into(self, target: States, index: Any) -> None:
        """Write the states of the rows `index` (int32, on the device) into the arrays of `target`."""
        for mine, its in zip(self.states, target.states, strict=True):
            mine.rows_into(its, index)


class Ensemble(Module):
    """Decoders as one: the next word's probability is the arithmetic mean of theirs, softmax over all ids.

    Its logits are the logarithms of those means, so whatever decodes one model decodes several, on the host or on a GPU, where
    nothing of it is read back. models: as `Decoder`. ids: for each model, or None where they are the first's, its own id
    int32 [V] of each id of the first model: members may number the same words differently.
    """

    def __init__(self, models: Sequence[Any], ids: Sequence[np.ndarray | None] | None = None) -> None:
        self._members = tuple(models)
        for number, model in enumerate(self._members):
            setattr(self, f"member{number}", model)  # so that a Module finds them
        self._ids = tuple(None if i is None else to_device(i) for i in ids or [None] * len(self._members))

    def begin(self, images: Views | Tensor | ops.Pixels) -> States:
        """The members' states after the images: each one's own, or the same for all."""
        views = images.images if isinstance(images, Views) else [images] * len(self._members)
        return States(model.begin(view) for model, view in zip(self._members, views, strict=True))

    def advance(self, state: States, words: Any) -> tuple[Any, States]:
        """Feed one word (the first member's id, int32 [N]) to each row: the logarithm of the next word's mean probability
        [N,V], of the dtype of the first member's logits, and the new states.

        Means are of float64: a word's log-probability is -inf only where it is below -700 for all members.
        """
        mean, states, dtype = None, [], None
        for model, own, ids in zip(self._members, state.states, self._ids, strict=True):
            logits, after = model.advance(own, words if ids is None else ids[words])
            probabilities = _softmax(logits if ids is None else logits[:, ids]) / len(self._members)
            mean = probabilities if mean is None else mean + probabilities
            dtype = dtype or logits.dtype
            states.append(after)
        return array_module(mean).log(mean).astype(dtype), States(states)


def _softmax(logits: Any) -> Any:
    """float64, along the last axis."""
    xp = array_module(logits)
    z = logits.astype(xp.float64)
    mass = xp.exp(z - z.max(1, keepdims=True))
    return mass / mass.sum(1, keepdims=True)
