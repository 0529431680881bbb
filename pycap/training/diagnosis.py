"""Why a step's loss or gradients were not finite: the step is made again, piece by piece, and each piece is looked at.

Nothing watches while training goes well. After a failure the weights are those from before the step, and the batch and the
dropout's seed are kept, so that the same numbers come again. The graph that a forward leaves behind holds what every operation
put out, and `Tensor.backward` tells of each node that it is done with: where the first number that is not finite stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pycap.autograd import Function, Tensor
from pycap.device import to_host
from pycap.training.trainer import Attempt, Trainer

_AT_ONCE = (
    8  # images a pass: few, since also what is frozen leaves a graph, and the images that are to blame are told apart
)
_LARGE = 1e4  # activations, weights and gradients of a model that learns are smaller


@dataclass(frozen=True)
class Array:
    """What is to know of an array: where it stands, its largest finite magnitude, how many of its numbers are not finite."""

    name: str
    largest: float
    bad: int
    of: int

    def __str__(self) -> str:
        return f"{self.bad:,} of {self.of:,} numbers" if self.bad else f"up to {self.largest:.3g}"


@dataclass
class Finding:
    """Where the first number that is not finite stood. kind: one of `KINDS`. where: a sentence; layer: the module's name.
    images: files, as far as it is known. arrays: those that are not finite; inputs: what the layer was given. state: arrays of
    the optimiser that are not finite. activations: of all layers in order; gradients: in the order of backward."""

    kind: str
    where: str
    layer: str = ""
    images: list[str] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    inputs: list[Array] = field(default_factory=list)
    activations: list[Array] = field(default_factory=list)
    gradients: list[Array] = field(default_factory=list)
    state: list[Array] = field(default_factory=list)


#: Where it may have begun, the first cause first: what one of them spoils is not finite in those behind it.
KINDS = ("weights", "input", "forward", "backward", "none")


def find(trainer: Trainer, attempt: Attempt) -> Finding:
    """Make the step of this rank again, without updating anything, and say where it went wrong. Slow: for failures only."""
    weights = [look(name, tensor.data) for name, tensor in trainer.model.named_parameters().items()]
    state = [look(name, a) for name, a in trainer.optimizer.state_arrays().items() if not name.endswith(".step")]
    given = _input(attempt)
    found = Finding("none", "the same step, made again, is finite")
    if len(attempt.batch):
        try:
            with borrowed_gradients(trainer, everything=True):
                for most in (min(_AT_ONCE, trainer.config.micro_batch or _AT_ONCE), 0):  # 0: the passes that failed
                    found = _repeat(trainer, attempt, most)
                    if found.kind != "none":
                        break
        except MemoryError as error:  # the reason that is looked for is another
            found = Finding("none", f"the step cannot be made again to look at it: out of memory ({error})")
    found.state = [array for array in state if array.bad]
    if bad := [array for array in weights if array.bad]:
        found.kind, found.arrays, found.layer, found.images = "weights", bad, _layer(bad[0].name), []
        were = "were" if len(bad) > 1 else "was"
        found.where = f"{_listed([array.name for array in bad])} {were} not finite before the step ({bad[0]})"
    elif given is not None:
        found.kind, found.layer = "input", ""
        found.where, found.images = given
    return found


def look(name: str, array: Any) -> Array:
    """Waits for the device."""
    host = to_host(array)
    finite = np.isfinite(host)
    kept = host if finite.all() else host[finite]
    return Array(
        name, float(np.abs(kept).max(initial=0)) if kept.size else 0.0, int(host.size - finite.sum()), host.size
    )


@contextmanager
def borrowed_gradients(trainer: Trainer, everything: bool = False) -> Iterator[None]:
    """Within this, gradients go to buffers of their own; those of the training come back afterwards, as they were.
    everything: frozen parameters get one too."""
    parameters = trainer.model.named_parameters().values()
    kept = [(t, t.grad, t.fresh, t.rows, t.requires_grad) for t in parameters]
    try:
        for tensor in parameters:
            tensor.grad, tensor.fresh, tensor.rows = None, False, None
            tensor.requires_grad = tensor.requires_grad or everything
        yield
    finally:
        for tensor, *own in kept:
            tensor.grad, tensor.fresh, tensor.rows, tensor.requires_grad = own


def _input(attempt: Attempt) -> tuple[str, list[str]] | None:
    """What is wrong with the numbers that the model is given: (what, files)."""
    batch = attempt.batch
    if batch.images.ndim == 2:
        rows = ~np.isfinite(to_host(batch.images)).all(1)
        if rows.any():
            files = [name for name, bad in zip(batch.file_names, rows, strict=True) if bad]
            return f"the stored features of {_listed(files)} are not finite", files
    if attempt.factors is not None and not np.isfinite(attempt.factors).all():
        return "the rewards of the drawn captions are not finite", []
    return None


def _repeat(trainer: Trainer, attempt: Attempt, most: int) -> Finding:
    """Forward and backward, looked at. most: images a pass."""
    first, size = 0, most or trainer.config.micro_batch or len(attempt.batch)
    names = {id(t): name for name, t in trainer.model.named_parameters().items()}
    for tensor in trainer.model.named_parameters().values():
        tensor.fresh = False
    activations: dict[str, Array] = {}
    gradients: dict[str, Array] = {}
    for forward in trainer.passes(attempt, most):
        files = attempt.batch.file_names[first : first + size]
        first += size
        loss = forward()
        graph = _Graph(loss, names)
        bad = graph.first_bad(activations, files)
        if bad is not None:
            bad.activations = list(activations.values())
            return bad
        bad = graph.backward(gradients)
        if bad is not None:
            bad.activations, bad.gradients = list(activations.values()), list(gradients.values())
            return bad
    return Finding(
        "none",
        "the same step, made again, is finite",
        activations=list(activations.values()),
        gradients=list(gradients.values()),
    )


class _Graph:
    """What one forward left behind."""

    def __init__(self, loss: Tensor, parameters: dict[int, str]) -> None:
        self._loss, self._parameters = loss, parameters
        self._outputs: dict[int, list[Tensor]] = {}
        self._nodes: dict[int, Function] = {}
        waiting = [loss]
        while waiting:
            tensor = waiting.pop()
            node = tensor.node
            if node is None:
                continue
            own = self._outputs.setdefault(node.id, [])
            if not any(tensor is other for other in own):
                own.append(tensor)
            if node.id not in self._nodes:
                self._nodes[node.id] = node
                waiting += [parent for parent in node.parents if isinstance(parent, Tensor)]
        self._names: dict[int, str] = {}
        for number in sorted(self._nodes):
            self._names[number] = self._named(self._nodes[number])
        self._by_parents = {id(node.parents): node for node in self._nodes.values()}

    def _named(self, node: Function) -> str:
        """The layer whose parameters it takes, else the operation and the layer that its input is from."""
        own = [self._parameters[id(p)] for p in node.parents if id(p) in self._parameters]
        operation = type(node).__name__.lower()
        if own:
            layer = _layer(own[0])
            return f"{layer} (softmax and loss)" if operation == "linearcrossentropy" else layer
        above = next((p.node for p in node.parents if isinstance(p, Tensor) and p.node is not None), None)
        return operation if above is None else f"{operation} after {self._names[above.id].split(' after ')[-1]}"

    def first_bad(self, activations: dict[str, Array], files: tuple[str, ...]) -> Finding | None:
        """The first operation, in the order of the forward, with an output that is not finite. activations: what each put out
        is noted there."""
        for number, name in self._names.items():
            node = self._nodes[number]
            for tensor in self._outputs[number]:
                seen = look(name, tensor.data)
                _note(activations, seen)
                if seen.bad:
                    given = [p for p in node.parents if isinstance(p, Tensor)]
                    inputs = [look(self._told(p), p.data) for p in given]
                    place, images = _place(tensor.data, files)
                    where = f"{name}{place} is the first to put out what is not finite: {seen}"
                    return Finding("forward", where, name, images, [seen], inputs)
        return None

    def backward(self, gradients: dict[str, Array]) -> Finding | None:
        """The first gradient, in the order of the backward, that is not finite. gradients: all are noted there."""
        found: list[Finding] = []

        def after(parents: tuple[Any, ...]) -> None:
            node = self._by_parents[id(parents)]
            name = self._names[node.id]
            for needed, parent in zip(node.needs, parents, strict=True):
                if not needed:
                    continue
                gradient = parent.grad if parent.node is None else parent.node.douts[parent.index]
                if gradient is None:
                    continue
                told = self._told(parent)
                what = f"gradient of {told}" if parent.node is None else f"gradient that {name} hands to {told}"
                seen = look(what, gradient)
                _note(gradients, seen)
                if seen.bad and not found:
                    data = [look(self._told(p), p.data) for p in parents if isinstance(p, Tensor)]
                    where = f"the {seen.name} is the first in backward that is not finite: {seen}"
                    found.append(Finding("backward", where, name, [], [seen], data))

        self._loss.backward(np.float32(1), after)
        return found[0] if found else None

    def _told(self, tensor: Tensor) -> str:
        """A parameter's name, else whose output it is."""
        own = self._parameters.get(id(tensor))
        if own is not None:
            return own
        return "the input" if tensor.node is None else self._names[tensor.node.id]


def _note(kept: dict[str, Array], seen: Array) -> None:
    """Of several passes, the worst."""
    before = kept.get(seen.name)
    if before is None:
        kept[seen.name] = seen
    else:
        kept[seen.name] = Array(
            seen.name, max(before.largest, seen.largest), before.bad + seen.bad, before.of + seen.of
        )


def _place(data: Any, files: tuple[str, ...]) -> tuple[str, list[str]]:
    """At which word of a sequence, and for which images, an output is not finite."""
    host = to_host(data)
    bad = ~np.isfinite(host)
    place = ""
    if host.ndim == 3:  # [T,N,...]; of images there are four axes
        place = f" at step {int(np.argmax(bad.any((1, 2)))) + 1} of {len(host)}"
        bad = bad.any(0)
    rows = bad.reshape(len(bad), -1).any(1) if bad.ndim else bad.reshape(1)  # of the loss, one
    each, rest = divmod(len(rows), len(files))
    if (
        rest or bad.ndim == 0 or (each != 1 and host.ndim == 2)
    ):  # rows that stand for other things than images or captions
        return place, []
    which = [name for i, name in enumerate(files) if rows[i * each : (i + 1) * each].any()]
    return place, which


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def moderate(found: Finding) -> bool:
    """Whether what went into the first bad operation was finite, and of a size that no sum of it overflows."""
    return all(not a.bad and math.isfinite(a.largest) and a.largest < _LARGE for a in found.inputs)
