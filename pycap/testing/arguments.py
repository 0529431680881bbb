"""How a case describes the arguments of a primitive: markers for what is written, and the case itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Rng = np.random.Generator

#: In a run in bfloat16 activations (and their gradients) are bfloat16, parameters (and their gradients) float32.
Role = Literal["activation", "parameter"]


@dataclass(frozen=True)
class Out:
    """An array that is written in full.

    dtype: "float" is the precision of the run. judge(array, dtype of the activations): replaces the comparison with the
    reference; returns what is wrong, or "". where (bool, broadcast): only there is it compared, elsewhere anything finite
    will do.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float"
    judge: Callable[[np.ndarray, np.dtype], str] | None = None
    where: np.ndarray | None = None
    role: Role = "activation"


@dataclass(frozen=True)
class Grad:
    """A gradient, written as beta * old + new.

    optional: None may be passed for it. stale: with beta 0 only these rows of the old hold anything (None: all do).
    """

    name: str
    shape: tuple[int, ...]
    optional: bool = True
    stale: np.ndarray | None = None
    role: Role = "activation"


@dataclass(frozen=True)
class InOut:
    """An array that is read and then overwritten; `judge` and `where` as in Out. One of float64 is float64 in every run."""

    name: str
    array: np.ndarray
    where: np.ndarray | None = None
    judge: Callable[[np.ndarray, np.dtype], str] | None = None


@dataclass(frozen=True)
class Parameter:
    """An input that is a parameter; inputs without a marker are activations."""

    array: np.ndarray


@dataclass(frozen=True)
class Double:
    """An input that is float64 in every run."""

    array: np.ndarray


@dataclass(frozen=True)
class Keyword:
    """An argument that is passed by name; value: as an argument by place."""

    name: str
    value: Any


@dataclass(frozen=True)
class Beta:
    """Stands for the beta of one Grad, or for a tuple of the betas of several."""

    names: str | tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """`build(rng)` gives the arguments: markers, arrays (inputs), lists of either, other values as they are.

    slack: error allowed on top of the rule of two, relative to the largest exact value (Winograd convolution).
    """

    primitive: str
    name: str
    build: Callable[[Rng], list[Any]]
    slack: float = 0.0

    def arguments(self) -> list[Any]:
        """The arguments, the same on every call."""
        return self.build(np.random.default_rng(sum(map(ord, self.primitive + self.name))))


def normal(rng: Rng, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)
