"""SGD, RMSprop and Adam over parameter groups, with gradient clipping."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Tensor
from pycap.backends import kernels, weights_changed
from pycap.device import assign
from pycap.schedules import Schedule


class OptimizerStateError(ValueError):
    """Saved optimiser state that does not belong to these parameters or to this update rule."""


class NonFiniteGradient(FloatingPointError):
    """A gradient holds NaN or infinity; nothing has been changed by the step that raised it."""


@dataclass
class ParamGroup:
    """Parameters that share their settings.

    params: by unique name. lr: the rate of the next step; `initial_lr` keeps the first one for schedules.
    clip: 0 is off; `clip_mode` "value" limits each element of the scaled gradient to +-clip, "norm" scales the group's
    gradients so that their common L2 norm is at most clip.
    """

    name: str
    params: Mapping[str, Tensor]
    lr: float
    weight_decay: float = 0.0
    clip: float = 0.0
    clip_mode: str = "value"
    initial_lr: float = field(init=False)

    def __post_init__(self) -> None:
        if self.clip_mode not in ("value", "norm"):
            raise ValueError(f"group {self.name}: clip_mode {self.clip_mode!r} is unknown; use value or norm")
        self.initial_lr = self.lr


@dataclass
class _Update:
    """Arguments of one multi-tensor step; slots: for each of the rule's slots, one array a parameter."""

    params: list[Any]
    grads: list[Any]
    slots: list[list[Any]]
    step: int
    grad_scale: Any  # a number, or an array of the device
    clip: float


@dataclass(frozen=True, eq=False)
class Part:
    """Parameters of a group that have made equally many steps, and are updated in one launch by their optimiser."""

    group: ParamGroup
    optimizer: Optimizer
    names: tuple[str, ...]

    def arrays(self) -> list[Any]:
        """All that the update reads and writes: parameters, gradients, state."""
        data, grads, slots = self.optimizer.arrays(self.names)
        return [*data, *grads, *(array for slot in slots for array in slot)]


class Optimizer(ABC):
    """What the update rules share: which parameters are stepped, clipping, and state by parameter.

    A parameter is stepped where `fresh` says that its gradient is this step's. Its state is made, and its steps are
    counted, from its own first step on: a CNN that joins late starts its moments and bias correction then.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, groups: Sequence[ParamGroup]) -> None:
        self.groups = list(groups)
        self.tensors: dict[str, Tensor] = {}
        for group in self.groups:
            for name, tensor in group.params.items():
                if name in self.tensors or any(tensor is other for other in self.tensors.values()):
                    raise ValueError(f"group {group.name}: parameter {name} is in the optimiser already; list it once")
                self.tensors[name] = tensor
        self._state: dict[str, dict[str, Any]] = {}
        self._steps: dict[str, int] = {}

    def step(self, grad_scale: float = 1.0) -> dict[str, float]:
        """Update every parameter whose gradient is fresh; afterwards none is.

        Args:
            grad_scale: what gradients are multiplied by first (1/n for the mean of a sum over n).
        Returns:
            For each group with fresh gradients, the L2 norm of the scaled gradients before clipping.
        Raises:
            NonFiniteGradient: names the parameters; nothing has been changed.
        """
        norms = self.norms(grad_scale)
        self.apply(norms, grad_scale)
        return norms

    def norms(self, grad_scale: float = 1.0) -> dict[str, float]:
        """The first half of `step`: gradient norms by group, or NonFiniteGradient."""
        norms = {}
        for group in self.groups:
            grads = {name: t.grad for name, t in group.params.items() if t.fresh}
            if not grads:
                continue
            norm = abs(grad_scale) * math.sqrt(kernels.sum_squares(list(grads.values())))
            if not math.isfinite(norm):
                bad = [name for name, g in grads.items() if not math.isfinite(kernels.sum_squares([g]))]
                raise NonFiniteGradient(
                    f"group {group.name}: the gradient of {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''} "
                    f"({len(bad)} of {len(grads)} parameters) holds NaN or infinity; "
                    f"lower learning_rate ({group.lr:g}) or set grad_clip"
                )
            norms[group.name] = norm
        return norms

    def apply(self, norms: Mapping[str, float], grad_scale: float = 1.0) -> None:
        """The second half of `step`: the update, given what `norms` returned."""
        for group in self.groups:
            if group.name not in norms:
                continue
            scale, clip = grad_scale, group.clip
            if group.clip_mode == "norm":
                if 0 < clip < norms[group.name]:
                    scale *= clip / norms[group.name]
                clip = 0.0
            by_step: dict[int, list[str]] = {}
            for name, tensor in group.params.items():
                if tensor.fresh:
                    by_step.setdefault(self._steps.get(name, 0) + 1, []).append(name)
            for step, names in by_step.items():
                for name in names:
                    self._begin_state(name)
                    self._steps[name] = step
                self._update(group, _Update(*self.arrays(names), step, scale, clip))
        for tensor in self.tensors.values():
            tensor.fresh = False
        weights_changed()

    def _begin_state(self, name: str) -> None:
        if name not in self._state:
            tensor = self.tensors[name]
            self._state[name] = {slot: memory.zeros(tensor.shape, tensor.dtype) for slot in self.slots}

    def arrays(self, names: Iterable[str]) -> tuple[list[Any], list[Any], list[list[Any]]]:
        """Parameters, gradients, and for each slot the state."""
        tensors = [self.tensors[name] for name in names]
        slots = [[self._state[name][slot] for name in names] for slot in self.slots]
        return [t.data for t in tensors], [t.grad for t in tensors], slots

    @abstractmethod
    def _update(self, group: ParamGroup, u: _Update, **on_device: Any) -> None:
        """One multi-tensor step, in place. on_device: the kernels' `rates` and `copies`."""

    # Without waiting for the device ---------------------------------------------------------------------------------

    def parts(self, names: Collection[str]) -> list[Part]:
        """The updates of a step that changes the parameters `names`, in the order of the groups.

        They stay the same while the same parameters are stepped. Their state is made here, if they have none yet.
        """
        found: list[Part] = []
        for group in self.groups:
            by_step: dict[int, list[str]] = {}
            for name in group.params:
                if name in names:
                    self._begin_state(name)
                    by_step.setdefault(self._steps.get(name, 0), []).append(name)
            found += [Part(group, self, tuple(part)) for part in by_step.values()]
        return found

    def advance(self, part: Part, count: int = 1) -> tuple[float, float, float]:
        """Count a step of these parameters (count -1: take it back); returns what it reads as `rates`: the learning rate,
        and the bias corrections of the two moments, 1 where the rule has none."""
        for name in part.names:
            self._steps[name] = self._steps.get(name, 0) + count
        return self._rates(part.group, self._steps[part.names[0]])

    def _rates(self, group: ParamGroup, step: int) -> tuple[float, float, float]:
        return group.lr, 1.0, 1.0

    def launch(self, part: Part, rates: Any, factor: Any, copies: Mapping[str, Any]) -> None:
        """Update on the device, which nobody waits for: what `apply` does for these parameters.

        rates: float32 [3] on the device, what `advance` returned. factor: float32 [1] on the device, of `clip_factors`;
        where it is not finite, nothing changes. copies: by name, bfloat16 arrays that get the new values, rounded.
        """
        group = part.group
        clip = group.clip if group.clip_mode == "value" else 0.0
        data, grads, slots = self.arrays(part.names)
        rounded = [copies.get(name) for name in part.names] if copies else None
        how: dict[str, Any] = {"rates": rates, "copies": rounded}
        self._update(group, _Update(data, grads, slots, 1, factor, clip), **how)
        for name in part.names:
            self.tensors[name].fresh = False

    def set_lr(self, schedule: Schedule, step: int) -> None:
        """Give every group the rate that `schedule` has for `step` (steps made so far, from 0)."""
        for group in self.groups:
            group.lr = schedule.lr(group.initial_lr, step)

    def state_arrays(self) -> dict[str, Any]:
        """The state as arrays, keyed NAME.SLOT and NAME.step (int64, on the host), of parameters stepped so far.

        The arrays are the live ones (no copies), where the parameters are: write them out before the next step.
        """
        arrays: dict[str, Any] = {}
        for name, slots in self._state.items():
            arrays.update({f"{name}.{slot}": array for slot, array in slots.items()})
            arrays[f"{name}.step"] = np.array(self._steps.get(name, 0), np.int64)
        return arrays

    def load_state_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Take up what `state_arrays` gave, exactly, from host or device; parameters it lacks start afresh.

        Raises:
            OptimizerStateError: a name, slot or shape does not fit; the state is then as before.
        """
        found: dict[str, dict[str, Any]] = {}
        for key, array in arrays.items():
            name, _, slot = key.rpartition(".")
            if name not in self.tensors:
                raise OptimizerStateError(f"optimiser state {key} belongs to no parameter of this model")
            found.setdefault(name, {})[slot] = array
        wanted = {*self.slots, "step"}
        for name, slots in found.items():
            if slots.keys() != wanted:
                raise OptimizerStateError(
                    f"optimiser state of {name} holds {', '.join(sorted(slots))} but {type(self).__name__} keeps "
                    f"{', '.join(sorted(wanted))}: it was saved by another update rule; resume with the same optimizer"
                )
            shape = self.tensors[name].data.shape
            for slot in self.slots:
                if slots[slot].shape != shape:
                    raise OptimizerStateError(
                        f"optimiser state {name}.{slot} has shape {slots[slot].shape}, the parameter {shape}"
                    )
        self._state, self._steps = {}, {}
        for name, slots in found.items():
            data = self.tensors[name].data
            self._steps[name] = int(slots["step"])
            self._state[name] = {slot: memory.zeros(data.shape, data.dtype) for slot in self.slots}
            for slot, array in self._state[name].items():
                assign(array, slots[slot])


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: m = momentum*m + g; p -= lr*m."""

    slots = ("momentum",)

    def __init__(self, groups: Sequence[ParamGroup], momentum: float = 0.9) -> None:
        super().__init__(groups)
        self.momentum = momentum

    def _update(self, group: ParamGroup, u: _Update, **on_device: Any) -> None:
        own = (self.momentum, group.weight_decay)
        kernels.sgd_step(u.params, u.grads, *u.slots, group.lr, *own, u.grad_scale, u.clip, **on_device)


class RMSprop(Optimizer):
    """Tieleman & Hinton 2012: v = alpha*v + (1-alpha)*g^2; p -= lr*g/(sqrt(v)+eps)."""

    slots = ("square",)

    def __init__(self, groups: Sequence[ParamGroup], alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__(groups)
        self.alpha, self.eps = alpha, eps

    def _update(self, group: ParamGroup, u: _Update, **on_device: Any) -> None:
        own = (self.alpha, self.eps, group.weight_decay)
        kernels.rmsprop_step(u.params, u.grads, *u.slots, group.lr, *own, u.grad_scale, u.clip, **on_device)


class Adam(Optimizer):
    """Kingma & Ba 2015, algorithm 1, with epsilon outside the corrected root as they have it."""

    slots = ("m", "v")

    def __init__(
        self, groups: Sequence[ParamGroup], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(groups)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _rates(self, group: ParamGroup, step: int) -> tuple[float, float, float]:
        return group.lr, 1 - self.beta1**step, 1 - self.beta2**step

    def _update(self, group: ParamGroup, u: _Update, **on_device: Any) -> None:
        own = (self.beta1, self.beta2, self.eps, group.weight_decay)
        kernels.adam_step(u.params, u.grads, *u.slots, group.lr, *own, u.step, u.grad_scale, u.clip, **on_device)


class Combined:
    """Several optimisers stepped as one, for a CNN whose update rule differs from the language model's."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self.groups = [group for o in self.optimizers for group in o.groups]

    def step(self, grad_scale: float = 1.0) -> dict[str, float]:
        """As Optimizer.step; a bad gradient in any of them leaves all of them unchanged."""
        norms = [o.norms(grad_scale) for o in self.optimizers]
        for o, own in zip(self.optimizers, norms, strict=True):
            o.apply(own, grad_scale)
        return {name: norm for own in norms for name, norm in own.items()}

    def parts(self, names: Collection[str]) -> list[Part]:
        """As Optimizer.parts; each part knows its optimiser."""
        return [part for o in self.optimizers for part in o.parts(names)]

    def set_lr(self, schedule: Schedule, step: int) -> None:
        """As Optimizer.set_lr."""
        for o in self.optimizers:
            o.set_lr(schedule, step)

    def state_arrays(self) -> dict[str, Any]:
        """As Optimizer.state_arrays."""
        return {key: array for o in self.optimizers for key, array in o.state_arrays().items()}

    def load_state_arrays(self, arrays: Mapping[str, Any]) -> None:
        """As Optimizer.load_state_arrays."""
        parts: list[dict[str, Any]] = [{} for _ in self.optimizers]
        for key, array in arrays.items():
            name = key.rpartition(".")[0]
            owner = next((i for i, o in enumerate(self.optimizers) if name in o.tensors), 0)
            parts[owner][key] = array
        for o, part in zip(self.optimizers, parts, strict=True):
            o.load_state_arrays(part)
