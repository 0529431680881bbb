"""Cases of the sequence and vocabulary primitives and of the optimisers; `cases.py` has the registry of all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pycap.backends import reference
from pycap.testing.arguments import Beta, Case, Double, Grad, InOut, Keyword, Out, Parameter, Rng, normal

# LSTM -----------------------------------------------------------------------------------------------------------------

# name: (T, N, I, H)
LSTMS = {
    "batch0": (3, 0, 5, 4), "one": (1, 1, 1, 1), "primes": (5, 3, 7, 11), "h17": (4, 2, 16, 17), "h31": (3, 5, 33, 31),
    "h64": (7, 4, 64, 64), "n17": (3, 17, 13, 16),
    "n40": (4, 40, 16, 32), "n37": (3, 37, 9, 31),
}  # fmt: skip
_GRADIENTS = ("dx", "dw_x", "dw_h", "db", "dh0", "dc0")


def _mask(rng: Rng, steps: int, n: int) -> np.ndarray:
    """Sequences of random length, one step masked in the middle, and one sequence that never runs."""
    lengths = rng.integers(1, steps + 1, n)
    mask = (np.arange(steps)[:, None] < lengths).astype(np.uint8)
    if steps > 2 and n > 1:
        mask[1, 0], mask[:, 1] = 0, 0
    return mask


def _lstm_inputs(dims: tuple[int, ...], state: bool, masked: bool, rng: Rng) -> tuple[Any, ...]:
    """x, h0, c0, w_x, w_h, b, mask."""
    t, n, i, hidden = dims
    h0, c0 = (normal(rng, n, hidden), normal(rng, n, hidden)) if state else (None, None)
    w_x, w_h = normal(rng, 4 * hidden, i, scale=i**-0.5), normal(rng, 4 * hidden, hidden, scale=hidden**-0.5)
    return normal(rng, t, n, i), h0, c0, w_x, w_h, normal(rng, 4 * hidden), _mask(rng, t, n) if masked else None


def lstm_forward(dims: tuple[int, ...], state: bool, masked: bool, rng: Rng) -> list[Any]:
    """The arguments of lstm_forward; dims: T, N, I, H."""
    t, n, _, hidden = dims
    inputs = _lstm_inputs(dims, state, masked, rng)
    runs = None if inputs[-1] is None else inputs[-1][..., None] != 0
    return [Out("h", (t, n, hidden)), Out("c", (t, n, hidden)), Out("gates", (t, n, 4 * hidden), where=runs), *inputs]


def lstm_backward(dims: tuple[int, ...], state: bool, masked: bool, upstream: str, rng: Rng) -> list[Any]:
    """The arguments of lstm_backward; dims: T, N, I, H; upstream: "h", "c" or "hc", which gradients arrive."""
    t, n, i, hidden = dims
    inputs = _lstm_inputs(dims, state, masked, rng)
    x, h0, c0, w_x, w_h, _, mask = inputs
    h, c, gates = (np.zeros((t, n, k * hidden), np.float32) for k in (1, 1, 4))
    reference.lstm_forward(h, c, gates, *inputs)
    if mask is not None:
        gates[mask == 0] = 3e4  # anything finite
    shapes = ((t, n, i), (4 * hidden, i), (4 * hidden, hidden), (4 * hidden,), (n, hidden), (n, hidden))
    dh = normal(rng, t, n, hidden) if "h" in upstream else None
    dc_n = normal(rng, n, hidden) if "c" in upstream else None
    gradients = [Grad(name, shape) for name, shape in zip(_GRADIENTS, shapes, strict=True)]
    return [*gradients, InOut("gates", gates), dh, dc_n, x, h, c, h0, c0, w_x, w_h, mask, Beta(_GRADIENTS)]


def lstm_cell_forward(dims: tuple[int, ...], rng: Rng) -> list[Any]:
    """The arguments for one step on dims (T, N, I, H), T being ignored."""
    _, n, _, hidden = dims
    x, h0, c0, w_x, w_h, b, _ = _lstm_inputs(dims, True, False, rng)
    return [Out("h", (n, hidden)), Out("c", (n, hidden)), Out("gates", (n, 4 * hidden)), x[0], h0, c0, w_x, w_h, b]


def lstm_cell_backward(dims: tuple[int, ...], upstream: str, rng: Rng) -> list[Any]:
    """The same; upstream: "h", "c" or "hc", which gradients arrive."""
    _, n, i, hidden = dims
    x, h0, c0, w_x, w_h, b, _ = _lstm_inputs(dims, True, False, rng)
    h, c, gates = (np.zeros((n, k * hidden), np.float32) for k in (1, 1, 4))
    reference.lstm_cell_forward(h, c, gates, x[0], h0, c0, w_x, w_h, b)
    names = ("dx", "dw_x", "dw_h", "db", "dh_prev", "dc_prev")
    shapes = ((n, i), (4 * hidden, i), (4 * hidden, hidden), (4 * hidden,), (n, hidden), (n, hidden))
    dh, dc = (normal(rng, n, hidden) if k in upstream else None for k in "hc")
    gradients = [Grad(name, shape) for name, shape in zip(names, shapes, strict=True)]
    return [*gradients, InOut("gates", gates), dh, dc, x[0], c, h0, c0, w_x, w_h, Beta(names)]


def _lstm_cases() -> Iterator[Case]:
    for name, dims in LSTMS.items():
        yield Case("lstm_cell_forward", name, partial(lstm_cell_forward, dims))
        for upstream in ("hc", "h", "c"):
            yield Case("lstm_cell_backward", f"{name}-d{upstream}", partial(lstm_cell_backward, dims, upstream))
        for state, masked in ((False, False), (True, False), (False, True), (True, True)):
            label = f"{name}{'-state' if state else ''}{'-mask' if masked else ''}"
            yield Case("lstm_forward", label, partial(lstm_forward, dims, state, masked))
            for upstream in ("hc", "h", "c") if state and masked else ("hc",):
                build = partial(lstm_backward, dims, state, masked, upstream)
                yield Case("lstm_backward", f"{label}-d{upstream}", build)


# Vocabulary loss and decoding ------------------------------------------------------------------------------------

# name: (M, H, V)
VOCABULARIES = {
    "no_rows": (0, 8, 5), "one": (1, 1, 1), "primes": (7, 11, 13), "v31": (5, 16, 31), "v33": (17, 33, 33),
    "wide": (3, 17, 1009), "tall": (67, 64, 65),
}  # fmt: skip


def _xent_forward(dims: tuple[int, int, int], scale: float, weighted: bool, rng: Rng) -> list[Any]:
    m, hidden, v = dims
    targets = rng.integers(0, v, m).astype(np.int32)
    outs = [Out("loss", (m,)), Out("dlogits", (m, v))]
    inputs = [normal(rng, m, hidden), normal(rng, v, hidden, scale=scale), normal(rng, v, scale=scale), targets]
    weights = rng.choice(np.array([0, 1, 0.25, -2], np.float32), m) if weighted else None
    return [*outs, *inputs, weights]


def _xent_backward(dims: tuple[int, int, int], rng: Rng) -> list[Any]:
    m, hidden, v = dims
    gradients = [Grad("dh", (m, hidden)), Grad("dw", (v, hidden)), Grad("db", (v,))]
    inputs = [normal(rng, m, v), normal(rng, m, hidden), normal(rng, v, hidden)]
    return [*gradients, *inputs, 0.37, Beta(("dh", "dw", "db"))]


def _topk(rows: int, v: int, k: int, suppress: tuple[int, ...], ties: bool, rng: Rng) -> list[Any]:
    """Logits a clear step apart, so that every precision ranks them alike; or with exact ties."""
    ladder = np.repeat(np.arange(-(-v // 3)), 3)[:v] if ties else np.arange(v)
    logits = np.stack([rng.permutation(ladder) for _ in range(rows)]) * (40.0 / v) if rows else np.zeros((0, v))
    return [Out("values", (rows, k)), Out("indices", (rows, k), "int32"), logits.astype(np.float32), suppress]


def _vocabulary_cases() -> Iterator[Case]:
    for name, dims in VOCABULARIES.items():
        yield Case("linear_xent_forward", name, partial(_xent_forward, dims, 1.0, False))
        yield Case("linear_xent_forward", f"{name}-weights", partial(_xent_forward, dims, 1.0, True))
        large = partial(_xent_forward, dims, 60.0, False)  # exp would overflow
        yield Case("linear_xent_forward", f"{name}-large", large)
        yield Case("linear_xent_backward", name, partial(_xent_backward, dims))
    for name, (rows, v, k, suppress) in {
        "no_rows": (0, 7, 3, ()), "one": (1, 1, 1, ()), "all": (3, 17, 17, ()), "greedy": (5, 31, 1, (0,)),
        "beam": (7, 1009, 5, (0, 3)), "rest": (2, 8, 5, (7, 0, 4)),
    }.items():  # fmt: skip
        for ties in (False, True):
            build = partial(_topk, rows, v, k, suppress, ties)
            yield Case("log_softmax_topk", f"{name}{'-ties' if ties else ''}", build)


# Optimisers -----------------------------------------------------------------------------------------------------------

_SHAPES = ((1,), (17,), (3, 31), (0,), (4, 3, 3, 5), (4099,))


def _parameters(rng: Rng, states: tuple[str, ...], shapes: tuple[Any, ...] = _SHAPES) -> list[Any]:
    """[params, grads, one list for each state]; a state whose name starts with v is not negative."""
    made: list[Any] = [
        [InOut(f"p{i}", normal(rng, *s)) for i, s in enumerate(shapes)],
        [normal(rng, *s) for s in shapes],
    ]
    for state in states:
        arrays = [normal(rng, *s, scale=0.1) for s in shapes]
        made.append([InOut(f"{state}{i}", a**2 if state[0] == "v" else a) for i, a in enumerate(arrays)])
    return made


def _step(states: tuple[str, ...], values: tuple[Any, ...], rng: Rng) -> list[Any]:
    return [*_parameters(rng, states), *values]


def _step_by_array(states: tuple[str, ...], values: tuple[Any, ...], rng: Rng) -> list[Any]:
    """The same with rates and the gradients' factor in arrays, `lr` being wrong, and with copies of the small parameters.

    In a large one some sum would lie where a unit in float32's last place decides how bfloat16 rounds it.
    """
    factor, rates = (Parameter(np.array(a, np.float32)) for a in ([0.3], [1e-3, 1 - 0.9**7, 1 - 0.999**7]))
    copies = [Out(f"copy{i}", s, "bfloat16") if math.prod(s) < 64 else None for i, s in enumerate(_SHAPES)]
    return [*_step(states, (*values, factor, 0.2), rng), Keyword("copies", copies), Keyword("rates", rates)]


def _sum_squares(shapes: tuple[Any, ...], rng: Rng) -> list[Any]:
    return [[normal(rng, *s, scale=10.0) for s in shapes]]


def _sum_squares_into(shapes: tuple[Any, ...], rng: Rng) -> list[Any]:
    return [Out("out", (1,), "float64"), *_sum_squares(shapes, rng)]


def _total(size: int, double: bool, rng: Rng) -> list[Any]:
    x = normal(rng, size, scale=10.0)
    return [Grad("out", (1,), optional=False), Double(x) if double else x, Beta("out")]


def _clip_factors(groups: int, loss: float | None, scale: float, rng: Rng) -> list[Any]:
    """Limits above and below the norms, and none."""
    squares = 10.0 ** rng.uniform(-6, 6, groups)
    norms = abs(scale) * np.sqrt(squares)
    limits = (norms * rng.choice([0, 0.1, 0.9, 1.1, 100], groups)).astype(np.float32)
    failed = InOut("failed", np.zeros(1, np.int32))
    given = None if loss is None else Double(np.array([loss]))
    return [Out("factors", (groups,)), Double(squares), Parameter(limits), given, failed, scale]


def _optimiser_cases() -> Iterator[Case]:
    yield Case("sgd_step", "arrays", partial(_step_by_array, ("m",), (9.0, 0.9, 5e-4)))
    yield Case("rmsprop_step", "arrays", partial(_step_by_array, ("v",), (9.0, 0.95, 1e-8, 5e-4)))
    yield Case("adam_step", "arrays", partial(_step_by_array, ("m", "v"), (9.0, 0.9, 0.999, 0.05, 5e-4, 1)))
    for label, (weight_decay, grad_scale, clip) in {
        "plain": (0.0, 1.0, 0.0), "decay": (0.01, 1.0, 0.0), "scale": (0.0, 0.125, 0.0), "all": (5e-4, 0.3, 0.2),
    }.items():  # fmt: skip
        last = (weight_decay, grad_scale, clip)
        yield Case("sgd_step", label, partial(_step, ("m",), (0.1, 0.9, *last)))
        yield Case("rmsprop_step", label, partial(_step, ("v",), (1e-2, 0.95, 1e-8, *last)))
        for step in (1, 2, 1000):
            values = (1e-3, 0.9, 0.999, 1e-8, weight_decay, step, grad_scale, clip)
            yield Case("adam_step", f"{label}-step{step}", partial(_step, ("m", "v"), values))
    for name, shapes in (("several", _SHAPES), ("none", ()), ("long", ((1_000_003,),))):
        yield Case("sum_squares", name, partial(_sum_squares, shapes))
        yield Case("sum_squares_into", name, partial(_sum_squares_into, shapes))
    for size in (0, 1, 17, 1024, 1025, 10_007):
        for double in (False, True):
            yield Case("total", f"{size}{'-double' if double else ''}", partial(_total, size, double))
    for groups in (1, 2, 3, 4, 5, 33):
        for name, loss in (("", None), ("-loss", 3.5)):
            yield Case("clip_factors", f"{groups}{name}", partial(_clip_factors, groups, loss, 0.37))
    yield Case("clip_factors", "negative", partial(_clip_factors, 17, 0.0, -8.0))


def sequence_cases() -> Iterator[Case]:
    """Cases of the LSTM, the vocabulary loss, decoding and the optimisers."""
    yield from _lstm_cases()
    yield from _vocabulary_cases()
    yield from _optimiser_cases()
