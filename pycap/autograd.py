"""Reverse-mode automatic differentiation over operations that bring their own backward.

A `Function` is one operation, and its instance is the node of the graph: `forward` keeps on `self` what `backward`
needs. Gradients are written as in GEMM, ``buffer = beta * buffer + gradient``: the first write of a step has beta 0, so
nothing is ever zeroed first, and there is no separate add. The graph is walked with a heap on creation order (no
recursion: a chain of 20,000 nodes is fine), and a node's saved arrays are let go as soon as its backward has run.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pycap import memory

_ids = itertools.count()
_grad_enabled = True


@contextmanager
def no_grad() -> Iterator[None]:
    """Within this, operations record no graph and keep nothing for a backward."""
    global _grad_enabled
    before, _grad_enabled = _grad_enabled, False
    try:
        yield
    finally:
        _grad_enabled = before


class Tensor:
    """An array with, perhaps, a gradient.

    `data`: the array. `requires_grad`: whether gradients flow to it. `grad`: for a leaf (a parameter), the buffer of
    its gradient, kept between steps; `fresh` says that it holds this step's value (else the next write uses beta 0).
    `rows`: the only rows of `grad` that may be other than zero (a host array), or None for any (set by Embedding, so that
    a step touches just the rows it used).
    """

    __slots__ = ("__weakref__", "data", "fresh", "grad", "index", "node", "requires_grad", "rows")
    __array_priority__ = 100  # NumPy's operators defer to ours

    def __init__(self, data: Any, requires_grad: bool = False, node: Function | None = None, index: int = 0) -> None:
        self.data = data if hasattr(data, "dtype") else memory.asarray(data)
        self.requires_grad, self.node, self.index = requires_grad, node, index
        self.grad: Any = None
        self.fresh = False
        self.rows: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def detach(self) -> Tensor:
        """The same array, cut off from the graph."""
        return Tensor(self.data)

    def item(self) -> float:
        """The value of a one-element tensor as a Python number."""
        return self.data.item()

    def backward(self, seed: Any = None, after: Callable[[tuple[Any, ...]], None] | None = None) -> None:
        """Write the gradient of this tensor into the `grad` of every leaf it depends on.

        seed: this tensor's own gradient, of its shape; ones by default. after: called with a node's parents once its backward
        has run. A `fresh` leaf gets the new gradient added. RuntimeError where there is no graph, or it has been used up.
        """
        if not self.requires_grad:
            raise RuntimeError("backward on a tensor that requires no gradient: was it made under no_grad()?")
        if self.node is None:
            raise RuntimeError("backward on a leaf: only the result of an operation has a graph behind it")
        if self.node.done:
            raise _used_up(self.node)
        if seed is None:
            seed = memory.filled_like(self.data, 1)
        elif getattr(seed, "shape", None) != self.shape:
            raise ValueError(f"backward seed has shape {getattr(seed, 'shape', None)}, the tensor has {self.shape}")
        self.node.douts[self.index] = seed
        _walk(self.node, after)


class Function:
    """One differentiable operation. Subclasses define

    * ``forward(self, *arrays, **attributes)``: takes raw arrays, returns one array or a tuple of them;
    * ``backward(self, *douts)``: takes the outputs' gradients (None for an output that nobody used) and either writes
      each parent's gradient through `grad_into`, or returns it: one or a tuple, None where written or not needed, each
      an array of its own (or an output's gradient itself): never one that the node saved, nor the same for two parents.

    ``self.needs[i]`` says whether parent i wants a gradient (`any(self.needs)` is false under no_grad: keep nothing).
    """

    done = False  # becomes True once backward has run: what it needs is gone then
    consumers = 0  # how many times an output became the parent of a node
    needs: list[bool]
    id: int
    parents: tuple[Any, ...]
    douts: list[Any]
    owned: list[bool]

    def forward(self, *arrays: Any, **attributes: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def backward(self, *douts: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no backward")

    @classmethod
    def apply(cls, *parents: Any, **attributes: Any) -> Any:
        """Run the operation on tensors (or arrays, or None); returns a Tensor, or a tuple of them."""
        node = cls()
        node.needs = [_grad_enabled and isinstance(p, Tensor) and p.requires_grad for p in parents]
        outputs = node.forward(*[p.data if isinstance(p, Tensor) else p for p in parents], **attributes)
        many = isinstance(outputs, tuple)
        arrays = outputs if many else (outputs,)
        if any(node.needs):
            node.id, node.parents = next(_ids), parents
            for lower in (p.node for p, need in zip(parents, node.needs, strict=True) if need and p.node is not None):
                lower.consumers += 1
            node.douts = [None] * len(arrays)
            node.owned = [False] * len(arrays)  # owned: nobody else holds this gradient's array, so it may be added to
            tensors = tuple(Tensor(a, True, node, i) for i, a in enumerate(arrays))
        else:
            tensors = tuple(Tensor(a) for a in arrays)
        return tensors if many else tensors[0]

    def grad_into(self, i: int) -> tuple[Any, float]:
        """Where parent i's gradient goes: (buffer, beta); write ``buffer = beta * buffer + gradient``.

        (None, 0.0) where parent i wants none.
        """
        if not self.needs[i]:
            return None, 0.0
        parent = self.parents[i]
        if parent.node is None:
            if parent.grad is None:
                parent.grad = memory.empty_like(parent.data)
            beta, parent.fresh, parent.rows = float(parent.fresh), True, None
            return parent.grad, beta
        douts, owned, k = parent.node.douts, parent.node.owned, parent.index
        if owned[k]:
            return douts[k], 1.0
        borrowed, douts[k], owned[k] = douts[k], memory.empty_like(parent.data), True
        if borrowed is not None:
            douts[k][...] = borrowed
        return douts[k], float(borrowed is not None)

    def _accept(self, i: int, gradient: Any, douts: list[Any]) -> None:
        """Take a gradient that backward returned rather than wrote."""
        parent = self.parents[i]
        compact = gradient.ndim and gradient.flags.c_contiguous  # what kernels take, and what can be added into
        if parent.node is None or parent.node.douts[parent.index] is not None or not compact:
            buffer, beta = self.grad_into(i)
            if beta:
                buffer += gradient
            else:
                buffer[...] = gradient
        else:  # the first contribution to an activation: keep the array itself
            shared = gradient.base is not None or any(gradient is d for d in douts)
            parent.node.douts[parent.index], parent.node.owned[parent.index] = gradient, not shared


def _walk(root: Function, after: Callable[[tuple[Any, ...]], None] | None) -> None:
    heap, seen = [(-root.id, root)], {root.id}
    while heap:
        _, node = heapq.heappop(heap)  # creation order is a topological order: all of the node's consumers are done
        above = [p.node for p, need in zip(node.parents, node.needs, strict=True) if need and p.node is not None]
        if spent := next((lower for lower in above if lower.done), None):
            raise _used_up(spent)
        gradients = node.backward(*node.douts) if any(d is not None for d in node.douts) else ()
        for i, gradient in enumerate(gradients if isinstance(gradients, tuple) else (gradients,)):
            if gradient is not None and node.needs[i]:
                node._accept(i, gradient, node.douts)
        if after is not None:
            after(node.parents)
        for lower in above:
            if lower.id not in seen:
                seen.add(lower.id)
                heapq.heappush(heap, (-lower.id, lower))
        node.__dict__.clear()  # saved arrays and gradients die here
        node.done = True


def _used_up(node: Function) -> RuntimeError:
    return RuntimeError(
        f"backward a second time through {type(node).__name__}: its saved arrays were freed by the first; "
        "run the forward again, or add the losses and call backward once"
    )
