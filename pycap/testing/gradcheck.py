"""Compares hand-written gradients with finite differences in float64, along random directions.

For a function of arrays with outputs y_k, fixed random cotangents u_k make a number L = sum_k <u_k, y_k>. `backward`
gives its gradient g in each input; the slope of L along a random direction d must equal <g, d>. A dense direction
sees an error in any single element of g, so a few of them replace a loop over all elements (as Chainer does).

The slope is a central difference with one Richardson step, error O(h^4). Kinks (ReLU, max) are stepped around: the
slopes from steps h and h/2 agree where the function is smooth between x - h d and x + h d, and differ where a kink lies
in between, as the kink's share changes with h. Then h is made ten times smaller, and after the smallest h another
direction is drawn. This choice never looks at g, so it cannot hide a wrong gradient. A point exactly on a kink would go
unnoticed: draw inputs at random, without ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pycap import backends, memory
from pycap.autograd import Function, Tensor

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
SMOOTH = 1e-8  # slopes from h and h/2 that differ by less than this (relative) hold no kink worth the name
DRAWS = 8  # directions tried before the check gives up


class GradientError(AssertionError):
    """A gradient disagrees with finite differences, or could not be checked."""


class _Contract(Function):
    """L = sum_k <u_k, y_k>; written without ops, so that ops can be checked with it."""

    def forward(self, *outputs: Any, cotangents: list[np.ndarray]) -> Any:
        self.cotangents = cotangents
        return np.asarray(_dot(outputs, cotangents))

    def backward(self, dy: Any) -> Any:
        return tuple(u * dy for u in self.cotangents)


class _Alias(Function):
    """The identity, as an activation in front of the function under test."""

    def forward(self, x: Any) -> Any:
        return x.copy()

    def backward(self, dy: Any) -> Any:
        return dy


def _dot(outputs: Any, cotangents: list[np.ndarray]) -> float:
    return sum(float(np.vdot(u, y)) for u, y in zip(cotangents, outputs, strict=True))


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _slope(along: Callable[[float], float], scale: float) -> float | None:
    """The derivative of `along` at 0, or None where it is not smooth at any step of `STEPS`."""
    for h in STEPS:
        central = [(along(t) - along(-t)) / (2 * t) for t in (h, h / 2, h / 4)]
        coarse, fine = (4 * central[1] - central[0]) / 3, (4 * central[2] - central[1]) / 3
        rounding = 64 * np.finfo(np.float64).eps * abs(along(0.0)) / h
        if abs(coarse - fine) <= max(SMOOTH * max(abs(fine), scale), rounding):
            return fine
    return None


def gradcheck(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    *arrays: np.ndarray,
    directions: int = 2,
    seed: int = 0,
    rtol: float = 1e-6,
) -> None:
    """Check the gradients of `function` in every one of `arrays`.

    function: Tensors -> a Tensor or a tuple of Tensors; called many times, so it must be deterministic.
    arrays: float64, of any shape; what needs no gradient (ids, masks, options) belongs into a closure.
    directions: how many random directions for each input.
    rtol: allowed |slope - <g, d>| relative to the larger of |slope| and the norm of g (the typical size of <g, d>).

    The gradients must also add up where an input is an activation used twice or a fresh leaf, and overwrite a stale one.
    The reference backend serves the primitives: no other knows float64. New arrays are NaN-poisoned while the gradients
    are made. Raises GradientError where a gradient is wrong, missing, of another shape or dtype, not accumulated, or
    where `function` or its backward modified an input; ValueError for inputs that are not float64.
    """
    for array in arrays:
        if array.dtype != np.float64:
            raise ValueError(f"gradcheck: input of dtype {array.dtype}; finite differences need float64")
    with backends.use("reference"):
        _check(function, arrays, directions, np.random.default_rng(seed), rtol)


def _check_accumulation(function: Callable[..., Any], leaves: list[Tensor], cotangents: list[np.ndarray]) -> None:
    """With `grad` already right: does the function add where it must, and overwrite (NaN) where it must?

    Twice on activations, which adds up within one backward; then on leaves of which every other one is fresh.
    """
    if any(leaf.grad is None or not np.isfinite(leaf.grad).all() for leaf in leaves):
        return  # the caller reports it
    single = [leaf.grad.copy() for leaf in leaves]

    def expect(factors: list[float], what: str) -> None:
        for number, (leaf, g, factor) in enumerate(zip(leaves, single, factors, strict=True)):
            tolerance = 1e-11 * max(float(np.max(np.abs(g), initial=0.0)), 1e-300)
            if not np.allclose(leaf.grad, factor * g, rtol=1e-9, atol=tolerance, equal_nan=True):
                raise GradientError(f"input {number} {g.shape}: {what}: not {factor:g} times its gradient")
            leaf.grad[...] = g

    for leaf in leaves:
        leaf.fresh = False
        leaf.grad.fill(np.nan)
        leaf.rows = None
    aliases = [_Alias.apply(leaf) for leaf in leaves]
    both = _outputs(function(*aliases)) + _outputs(function(*aliases))
    _Contract.apply(*both, cotangents=cotangents * 2).backward()
    expect([2.0] * len(leaves), "used twice as an activation")
    for parity in range(2):
        for i, leaf in enumerate(leaves):
            leaf.fresh, leaf.rows = i % 2 == parity, None
            if not leaf.fresh:
                leaf.grad.fill(np.nan)
        _Contract.apply(*_outputs(function(*leaves)), cotangents=cotangents).backward()
        expect([1.0 + (i % 2 == parity) for i in range(len(leaves))], "accumulated onto a fresh or stale leaf")


def _check(
    function: Callable[..., Any], arrays: tuple[np.ndarray, ...], directions: int, rng: np.random.Generator, rtol: float
) -> None:
    leaves = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    with memory.poisoned():
        outputs = _outputs(function(*leaves))
        cotangents = [rng.uniform(-1, 1, y.shape) for y in outputs]
        _Contract.apply(*outputs, cotangents=cotangents).backward()
        _check_accumulation(function, leaves, cotangents)

    for number, (leaf, array) in enumerate(zip(leaves, arrays, strict=True)):
        g = leaf.grad
        if g is None:
            raise GradientError(f"input {number} {array.shape}: backward wrote no gradient")
        if g.shape != array.shape or g.dtype != array.dtype:
            raise GradientError(f"input {number} {array.shape}: gradient is {g.shape} {g.dtype}")
        if not np.array_equal(leaf.data, array):
            raise GradientError(f"input {number} {array.shape} was modified")
        if not np.isfinite(g).all():
            raise GradientError(f"input {number} {array.shape}: {np.sum(~np.isfinite(g))} gradients are not finite")
        norm = float(np.sqrt(np.vdot(g, g)))
        checked = 0
        for _ in range(DRAWS * directions):
            d = rng.standard_normal(array.shape)

            def along(t: float, number: int = number, array: np.ndarray = array, d: np.ndarray = d) -> float:
                moved = [Tensor(array + t * d if i == number else a) for i, a in enumerate(arrays)]
                return _dot([y.data for y in _outputs(function(*moved))], cotangents)

            slope = _slope(along, norm)
            if slope is None:
                continue
            expected = float(np.vdot(g, d))
            if not abs(slope - expected) <= rtol * max(abs(slope), norm):
                raise GradientError(
                    f"input {number} {array.shape}: slope {slope:.10g} by differences, {expected:.10g} by backward "
                    f"(gradient norm {norm:.4g}, allowed {rtol:g} relative)"
                )
            checked += 1
            if checked == directions:
                break
        else:
            raise GradientError(
                f"input {number} {array.shape}: not smooth along any of {DRAWS * directions} directions"
            )
