"""Runs a primitive of a backend beside the reference and applies the rule of two.

A backend in float32 may err, against the reference in float64 on the same numbers, twice as much as the reference in
float32 does, plus a few units in the last place (flash-attention's rule): err <= 2 * err(reference float32) + TINY *
scale. The error of an array is its largest absolute error, and `scale` its largest exact value: so an error in a single
element shows, and elements that cancel to almost nothing ask for no more than float32 holds. `Case.slack` comes on top
for algorithms that err more by nature, with its reason where it is defined.

In bfloat16 the activations are rounded for everybody, the exact reference included; the parameters are not. There two
roundings to nearest already stand as far apart as the rule allows, so a result that is merely truncated would pass it:
therefore the root mean square of an array's errors is held as well, to `SPREAD` times the reference's.

Every call is watched: outputs are NaN before (with beta 0 nothing may read them), lie unaligned between guard words;
inputs are compared bit by bit afterwards; a gradient passed as None must not disturb the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pycap import backends, memory, ops
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.device import bfloat16, is_bfloat16
from pycap.testing.arguments import Beta, Case, Double, Grad, InOut, Keyword, Out, Parameter, Role

TINY = 8 * float(np.finfo(np.float32).eps)
TINY_BFLOAT16 = 2.0**-8  # half a unit in the last place of a bfloat16
SPREAD = 1.25
GUARD = 16  # elements before and after every array that may be written
_CANARY = 0xA5


class ComparisonError(AssertionError):
    """A backend's primitive breaks the contract, or errs more than the rule of two allows."""


def _guarded(initial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `initial` inside a larger buffer of canaries: (the whole buffer as bytes, the copy)."""
    item = initial.itemsize
    raw = np.full(initial.nbytes + 2 * GUARD * item, _CANARY, np.uint8)
    start = GUARD * item + (item if item > 1 else 0)  # aligned to the item, not to a vector
    raw = np.concatenate([raw, raw[:item]])
    view = raw[start : start + initial.nbytes].view(initial.dtype).reshape(initial.shape)
    view[...] = initial
    return raw, view


class _Run:
    """One call of one implementation, with activations that were rounded to `dtype`: in that dtype or, `exact`, float64."""

    def __init__(
        self, arguments: list[Any], dtype: np.dtype, exact: bool, betas: dict[str, float], absent: str | None
    ) -> None:
        self.rounding, self.betas, self.absent = dtype, betas, absent
        double, single = np.dtype(np.float64), np.dtype(np.float32)
        self.dtypes: dict[Role, np.dtype] = {
            "activation": double if exact else dtype,
            "parameter": double if exact else single,
        }
        self.rng = np.random.default_rng(7)  # the old contents of gradients: the same for every implementation
        self.outputs: dict[str, np.ndarray] = {}
        self.guards: dict[str, tuple[np.ndarray, int, int]] = {}
        self.inputs: list[tuple[np.ndarray, np.ndarray]] = []
        self.arguments = [self._make(a) for a in arguments if not isinstance(a, Keyword)]
        self.named = {a.name: self._make(a.value) for a in arguments if isinstance(a, Keyword)}

    def _cast(self, array: np.ndarray, role: Role = "activation") -> np.ndarray:
        if array.dtype.kind != "f":
            return array.copy()
        return (array.astype(self.rounding) if role == "activation" else array).astype(self.dtypes[role])

    def _input(self, made: np.ndarray) -> np.ndarray:
        self.inputs.append((made, made.copy()))
        return made

    def _writable(self, name: str, initial: np.ndarray) -> np.ndarray:
        raw, view = _guarded(initial)
        start = view.__array_interface__["data"][0] - raw.__array_interface__["data"][0]
        self.guards[name] = (raw, start, start + view.nbytes)
        self.outputs[name] = view
        return view

    def _make(self, argument: Any) -> Any:
        if isinstance(argument, list):
            return [self._make(a) for a in argument]
        if isinstance(argument, Out):
            if argument.dtype == "float":
                dtype = self.dtypes[argument.role]
            else:
                dtype = bfloat16() if argument.dtype == "bfloat16" else np.dtype(argument.dtype)
            return self._writable(argument.name, np.full(argument.shape, np.nan if dtype.kind in "fV" else 99, dtype))
        if isinstance(argument, Grad):
            old = self._cast(self.rng.standard_normal(argument.shape).astype(np.float32), argument.role)
            if not self.betas[argument.name]:
                if argument.stale is None:
                    old[...] = np.nan
                else:
                    old[...] = 0
                    old[argument.stale] = np.nan
            return None if argument.name == self.absent else self._writable(argument.name, old)
        if isinstance(argument, InOut):
            double = argument.array.dtype == np.float64
            return self._writable(argument.name, argument.array if double else self._cast(argument.array))
        if isinstance(argument, Beta):
            names = argument.names
            return self.betas[names] if isinstance(names, str) else tuple(self.betas[n] for n in names)
        if isinstance(argument, Parameter):
            return self._input(self._cast(argument.array, "parameter"))
        if isinstance(argument, Double):
            return self._input(argument.array.astype(np.float64))
        return self._input(self._cast(argument)) if isinstance(argument, np.ndarray) else argument

    def call(self, function: Callable[..., Any]) -> dict[str, np.ndarray]:
        with memory.poisoned():  # the workspace too
            returned = function(*self.arguments, **self.named)
        if returned is not None:
            self.outputs["returned"] = np.asarray(returned)
        for number, (array, held) in enumerate(self.inputs):
            if array.tobytes() != held.tobytes():
                raise ComparisonError(f"input array {number} {array.shape} was modified")
        for name, (raw, start, stop) in self.guards.items():
            if (raw[:start] != _CANARY).any() or (raw[stop:] != _CANARY).any():
                raise ComparisonError(f"{name}: written outside the array")
        return self.outputs


def _markers(arguments: Any) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, Keyword):
            yield from _markers([argument.value])
        elif isinstance(argument, list):
            yield from _markers(argument)
        elif isinstance(argument, (Out, Grad, InOut)):
            yield argument


def _modes(gradients: list[Grad]) -> Iterator[tuple[dict[str, float], str | None]]:
    """(betas, name of the gradient passed as None): all 0, all 1, all 0.5, alternating, each optional one absent."""
    names = [g.name for g in gradients]
    yield dict.fromkeys(names, 0.0), None
    if names:
        yield dict.fromkeys(names, 1.0), None
        yield dict.fromkeys(names, 0.5), None
    if len(names) > 1:
        yield {name: float(i % 2) for i, name in enumerate(names)}, None
        for gradient in gradients:
            if gradient.optional:
                yield dict.fromkeys(names, 0.0), gradient.name


def _largest(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0.0))


def _judge(marker: Any, got: np.ndarray, plain: np.ndarray, truth: np.ndarray, slack: float, dtype: np.dtype) -> str:
    """What is wrong with one output of a run with activations of `dtype`, or ""."""
    if getattr(marker, "judge", None) is not None:
        return marker.judge(got, dtype)
    if got.dtype.kind not in "fV":
        return "" if np.array_equal(got, plain) else f"{np.sum(got != plain)} of {got.size} integers differ"
    if not np.isfinite(got).all():
        return (
            f"{np.sum(~np.isfinite(got))} of {got.size} values are not finite (read while poisoned, or never written)"
        )
    where = getattr(marker, "where", None)
    keep = np.ones(got.shape, bool) if where is None else np.broadcast_to(where, got.shape)
    errors = np.where(keep, np.abs(got.astype(np.float64) - truth), 0)
    own_errors = np.where(keep, plain.astype(np.float64) - truth, 0)
    own, scale = _largest(own_errors), _largest(np.where(keep, truth, 0))
    narrow = is_bfloat16(got)
    allowed = 2 * own + ((TINY_BFLOAT16 if narrow else TINY) + slack) * scale
    if _largest(errors) <= allowed:
        if not narrow or got.size < 64:
            return ""
        spread, own_spread = (float(np.sqrt(np.mean(e**2))) for e in (errors, own_errors))
        return (
            f"the errors' root mean square is {spread:.3g}, the reference's {own_spread:.3g}: truncated, or rounded twice?"
            if spread > SPREAD * own_spread + TINY * scale
            else ""
        )
    worst = np.unravel_index(int(errors.argmax()), errors.shape) if errors.ndim else ()
    return (
        f"error {_largest(errors):.3g} at {tuple(map(int, worst))} (got {got[worst]:.7g}, exact {truth[worst]:.7g}); "
        f"allowed {allowed:.3g}: the reference errs by {own:.3g}, the largest value is {scale:.3g}"
    )


def compare(case: Case, backend: Any, dtype: DTypeLike = np.float32) -> None:
    """Run `case` on `backend` (a module, or anything with the primitive as an attribute).

    dtype: of the activations, float32 or bfloat16 (parameters are float32 in both). Raises ComparisonError that names the
    case, the mode (betas, absent gradients), the output and the worst element; ValueError for a primitive without
    bfloat16.
    """
    dtype = np.dtype(dtype)
    if dtype != np.float32 and case.primitive not in backends.BFLOAT16:
        raise ValueError(f"{case.primitive} takes no {dtype}; pycap.backends.BFLOAT16 lists the primitives that do")
    arguments = case.arguments()
    markers = {m.name: m for m in _markers(arguments)}
    gradients = [m for m in markers.values() if isinstance(m, Grad)]
    for betas, absent in _modes(gradients):
        mode = f"{case.primitive}[{case.name}] {dtype} betas {betas} absent {absent}"
        oracle = getattr(reference, case.primitive)
        exact = _Run(arguments, dtype, True, betas, absent).call(oracle)
        plain = _Run(arguments, dtype, False, betas, absent).call(oracle)
        try:
            got = _Run(arguments, dtype, False, betas, absent).call(getattr(backend, case.primitive))
        except ComparisonError as error:
            raise ComparisonError(f"{mode}: {error}") from None
        for name, array in got.items():
            problem = _judge(markers.get(name), array, plain[name], exact[name], case.slack, dtype)
            if problem:
                raise ComparisonError(f"{mode}: {name} {array.shape}: {problem}")


def _forward_and_backward(
    function: Callable[..., Any], arrays: tuple[np.ndarray, ...], dtype: type, backend: str
) -> dict[str, np.ndarray]:
    with backends.use(backend), memory.poisoned():
        leaves = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        result = function(*leaves)
        outputs = result if isinstance(result, tuple) else (result,)
        rng = np.random.default_rng(11)
        pieces = [ops.sum(ops.mul(y, rng.uniform(-1, 1, y.shape).astype(np.float32).astype(dtype))) for y in outputs]
        total = pieces[0]
        for piece in pieces[1:]:
            total = ops.add(total, piece)
        total.backward()
    made = {f"output {i}": y.data for i, y in enumerate(outputs)}
    made.update({f"gradient of input {i}": leaf.grad for i, leaf in enumerate(leaves)})
    return made


def compare_op(function: Callable[..., Any], *arrays: np.ndarray, backend: str, slack: float = 0.0) -> None:
    """The rule of two for a whole op, or several: outputs and gradients of `function` (Tensors -> Tensor or a tuple).

    arrays: the inputs, each of which gets a gradient; rounded to float32 first. backend: its name. slack: as in `Case`.
    Raises ComparisonError that names the output or gradient and the worst element.
    """
    arrays = tuple(a.astype(np.float32) for a in arrays)
    exact = _forward_and_backward(function, arrays, np.float64, "reference")
    plain = _forward_and_backward(function, arrays, np.float32, "reference")
    for name, array in _forward_and_backward(function, arrays, np.float32, backend).items():
        if array.dtype != np.float32 or array.shape != exact[name].shape:
            raise ComparisonError(f"{name}: {array.shape} {array.dtype} instead of {exact[name].shape} float32")
        problem = _judge(None, array, plain[name], exact[name], slack, array.dtype)
        if problem:
            raise ComparisonError(f"{backend}: {name} {array.shape}: {problem}")
