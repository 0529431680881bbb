"""Module: a tree of parameters with names, a training mode and a place in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pycap import device, memory
from pycap.autograd import Tensor
from pycap.backends import weights_changed


class Module:
    """Holds parameters (`Tensor` attributes) and other modules; names follow the attributes, joined by dots.

    Attributes keep the order in which they were set, and so do the names.
    """

    training: bool = True

    def children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[Module]:
        """This module and all below it, in the order of their names' definition."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> dict[str, Tensor]:
        """Every parameter by its dotted name."""
        found = {prefix + name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name, child in self.children():
            found.update(child.named_parameters(f"{prefix}{name}."))
        return found

    def parameter_count(self) -> int:
        return sum(t.data.size for t in self.named_parameters().values())

    def train(self, mode: bool = True) -> None:
        """Training mode (dropout acts) or, with False, evaluation mode."""
        for module in self.modules():
            module.training = mode

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this, evaluation mode; afterwards each module is in the mode that it was in (a frozen CNN has its own)."""
        modes = [(module, module.training) for module in self.modules()]
        self.train(False)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or resume) learning: frozen parameters get no gradient and no backward runs for them alone."""
        for parameter in self.named_parameters().values():
            parameter.requires_grad = not frozen

    def state_arrays(self) -> dict[str, Any]:
        """Every parameter's array by name, not copied."""
        return {name: t.data for name, t in self.named_parameters().items()}

    def load_arrays(self, arrays: dict[str, Any], *, copy: bool = True) -> None:
        """Copy arrays into the parameters or, with copy False, let the arrays themselves be the parameters' values.

        Arrays of the host are copied to a model on a GPU in any case. Raises ValueError that names every missing, extra or
        misshapen one.
        """
        parameters = self.named_parameters()
        wrong = [f"{n}: lacks" for n in parameters if n not in arrays] + [
            f"{n}: unknown" for n in arrays if n not in parameters
        ]
        wrong += [
            f"{n}: shape {arrays[n].shape}, expected {t.shape}"
            for n, t in parameters.items()
            if n in arrays and arrays[n].shape != t.shape
        ]
        if wrong:
            raise ValueError(
                f"the weights do not fit the model: {'; '.join(wrong[:8])}{' ...' if len(wrong) > 8 else ''}"
            )
        for name, parameter in parameters.items():
            array = arrays[name]
            kept = device.array_module(array) is device.array_module(parameter.data) and array.dtype == parameter.dtype
            if copy or not kept:
                device.assign(parameter.data, array)
            else:
                parameter.data = array
        weights_changed()


# Initial values are drawn on the host: a seed gives the same model on every device.


def uniform(rng: np.random.Generator | None, shape: tuple[int, ...], bound: float) -> Tensor:
    """A parameter drawn from U(-bound, bound), float32; without rng its values are left open, for `load_arrays`."""
    if rng is None:
        return _open(shape)
    return Tensor(device.to_device(rng.uniform(-bound, bound, shape).astype(np.float32)), True)


def normal(rng: np.random.Generator | None, shape: tuple[int, ...], std: float) -> Tensor:
    """A parameter drawn from N(0, std^2), float32; without rng its values are left open, for `load_arrays`."""
    if rng is None:
        return _open(shape)
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(std)
    return Tensor(device.to_device(values), True)


def orthogonal(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """A tall matrix [M,N], M >= N, with orthonormal columns, uniform among those (Saxe et al. 2014), float32."""
    columns, triangle = np.linalg.qr(rng.standard_normal(shape))
    columns *= np.sign(np.diag(triangle))  # else the signs would be the algorithm's, not random
    return Tensor(device.to_device(columns.astype(np.float32)), True)


def zeros(shape: tuple[int, ...]) -> Tensor:
    """A parameter of zeros, float32."""
    return Tensor(memory.zeros(shape), True)


def _open(shape: tuple[int, ...]) -> Tensor:
    """Not from the pool of activations: on the CPU its memory is never touched where mapped weights take its place."""
    return Tensor(device.module().empty(shape, np.float32), True)
