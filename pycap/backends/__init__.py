"""Backends: the list of primitives, the chain tried for each device, and which backend serves which primitive.

A backend is a module of functions on raw arrays (NumPy on the CPU, CuPy on a GPU), all named and called as below.
Rules that every primitive keeps:

* outputs first, then inputs, then dimensions; nothing is returned unless said; primitives never keep an array;
* arrays are C-contiguous; `None` stands for an array that is absent where the text says "or None";
* a gradient is written as in GEMM, ``buf = beta * buf + grad``; with ``beta == 0`` the old contents are not read
  (they may be NaN); a gradient output of None is not wanted and not computed;
* what changes from one training step to the next may lie on the device, where the text says so (`seed`, `weights`, `rates`,
  `grad_scale`, ...): no primitive reads an array back (but for `sum_squares`, which says so), nor decides by what one holds
  what to launch. So a step can be recorded in a CUDA graph and replayed;
* a primitive keeps nothing between calls, but for prepared forms of weights in the `weight_cache()` of the moment, where
  the caller has promised by `constant_weights(cache)` that they do not change;
* inputs are left unmodified (the one exception is named: ``lstm_backward`` turns ``gates`` into their gradients);
* floats are float32 (the reference also serves float64), or bfloat16 as the next paragraph says;
* images and activations are NHWC, convolution weights ``[K, R, S, C]``, linear weights ``[out, in]``, LSTM gates
  i, f, g, o stacked in ``[4H, in]``, sequences time-major ``[T, N, ...]``; ids and targets are int32.

bfloat16 (docs/decisions/0009-bfloat16.md). The primitives of `BFLOAT16` take their activations and the activations'
gradients all in ml_dtypes.bfloat16. Parameters and their gradients (w, b, dw, db; scale, shift) stay float32: the master
weights. Products are of w rounded to bfloat16 (or of w as it is, where that is faster), sums are float32, and each result
is rounded once, when it is stored: to nearest, ties to even. A bfloat16 gradient with beta is widened,
``beta*old + new``, and rounded once. A fused pooling may choose its winner among the sums before or after rounding.

Convolution (ops/conv2d.py). ``P, Q`` are the output's height and width, ``(H + 2*padding - R) // stride + 1``.

* ``conv2d_forward(y, x, w, b, stride, padding, relu)``: y [N,P,Q,K], x [N,H,W,C], w [K,R,S,C], b [K] or None.
* ``conv2d_pool_forward(y, argmax, x, w, b, stride, padding)``: bias, ReLU and a 2x2/2 max-pool fused.
  y [N,P//2,Q//2,K]; argmax uint8 [N,P//2,Q//2,ceil(K/4)]: channel k's winner (2*row + column, the first of equals) in
  bits 2*(k%4) of byte k//4.
* ``conv2d_backward_data(dx, dy, w, y, argmax, stride, padding, beta)``: dx [N,H,W,C]. y: the forward's output, whose
  zeros mask dy (ReLU), or None where there was no ReLU. argmax: as above, dy and y then being pooled maps, or None.
* ``conv2d_backward_weight(dw, db, dy, x, y, argmax, stride, padding, beta_w, beta_b)``: dw [K,R,S,C], db [K] or None.

Pooling (ops/pool.py), 2x2 windows, stride 2, an odd last row or column dropped.

* ``maxpool_forward(y, argmax, x)``: y [N,H//2,W//2,C], argmax as above, x [N,H,W,C].
* ``maxpool_backward(dx, dy, argmax, beta)``: dx [N,H,W,C].

Linear (ops/linear.py).

* ``linear_forward(y, x, w, b, relu)``: y [M,O], x [M,I], w [O,I], b [O] or None.
* ``linear_backward_data(dx, dy, w, y, beta)``: dx [M,I]; y: the forward's output (ReLU mask) or None.
* ``linear_backward_weight(dw, db, dy, x, y, beta_w, beta_b)``: dw [O,I], db [O] or None.

Dropout (ops/dropout.py): counter-based, the mask is never stored, its own backward.

* ``dropout(y, x, p, seed, total, offset, beta)``: x [T,n,F]; element (t, i, f) has the 32-bit counter
  ``(t*total + offset + i)*F + f`` (wrapping); it is dropped where ``hash32(counter, seed) < floor(p * 2**32)``, else
  scaled by 1/(1-p). ``hash32(k, seed) = mix(mix(k + lo) ^ hi)`` with lo, hi the halves of the 64-bit seed and ``mix``
  being ``x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16`` on uint32. seed: an int, or an
  array of its halves, uint32 [2]: lo, hi.

Embedding (ops/embedding.py), also the gather and scatter of rows. An id of -1 stands for no row: y gets zeros for it, and dy
is not read.

* ``embedding_forward(y, table, ids)``: y [M,E] = table[ids], table [V,E], ids int32 [M].
* ``embedding_backward(dtable, dy, ids, stale, beta)``: dtable [V,E] = beta*dtable + scatter-add of dy [M,E]. With beta 0
  only the rows ``stale`` (int32, or None for all rows) hold anything and are cleared: the other rows are zero already.

LSTM (ops/lstm.py): ``i,f,o = sigmoid, g = tanh; c = f*c_prev + i*g; h = o*tanh(c)``.

* ``lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, mask)``: h, c [T,N,H], gates [T,N,4H] (activated i,f,g,o), x [T,N,I],
  h0, c0 [N,H] or None (zeros), w_x [4H,I], w_h [4H,H], b [4H], mask uint8 [T,N] or None; where mask is 0 the state is
  carried over unchanged, x may be anything (NaN too), and gates hold anything finite.
* ``lstm_backward(dx, dw_x, dw_h, db, dh0, dc0, gates, dh, dc_n, x, h, c, h0, c0, w_x, w_h, mask, betas)``: dh [T,N,H] or None,
  dc_n [N,H] (gradient of c[T-1]) or None; gates are overwritten by the pre-activations' gradients (0 where masked);
  betas: six numbers, for dx, dw_x, dw_h, db, dh0, dc0.
* ``lstm_cell_forward(h, c, gates, x, h_prev, c_prev, w_x, w_h, b)``: one step on [N,...] arrays.
* ``lstm_cell_backward(dx, dw_x, dw_h, db, dh_prev, dc_prev, gates, dh, dc, x, c, h_prev, c_prev, w_x, w_h, betas)``: dh, dc may
  be None; gates are overwritten as above.

Vocabulary loss (ops/softmax_xent.py): projection, softmax and cross-entropy.

* ``linear_xent_forward(loss, dlogits, h, w, b, targets, weights)``: loss [M] = -log softmax(h w^T + b)[target], dlogits [M,V]
  = softmax - onehot(target), h [M,H], w [V,H], b [V], targets int32 [M]. weights float32 [M] or None: what a row's loss and
  dlogits are multiplied by; a row of weight 0 gives 0 in both, whatever h holds there.
* ``linear_xent_backward(dh, dw, db, dlogits, h, w, scale, betas)``: gradients of ``scale * sum(loss)``; betas for dh, dw, db.
* ``log_softmax_topk(values, indices, logits, suppress)``: values [M,k] (log-probabilities, descending), indices int32
  [M,k], logits [M,V], suppress: a tuple of ids whose probability is 0 (before normalisation); equal values in order of id.

Beam search (decode/device.py): a step of N images with k beams each (docs/math/beam.md).

* ``beam_select(words, parents, scores, steps, done, finished, origins, history, values, indices, penalties, end)``.
  Read and written: scores float64 [N,k], the beams' log-probabilities, best first, -inf where there is no beam; steps int32
  [N], the words that an image's beams have; done uint8 [N]; finished float64 [2,N,k], (score, log-probability) of an image's
  best ended sentences, best first, -inf where there is none; origins int32 [2,N,k], (words, beam) where those ended; history
  int32 [2,T,N,k]. Written: words int32 [N*k]; parents int32 [N*k], the rows that the beams go on from.
  An image's candidates are its beams, each with j <= k+1 next words, values float32 and indices int32 [N*k,j] as of
  ``log_softmax_topk``. They rank by score + value, in float64; equal ones by beam, then by place; -inf and NaN are none.
  Candidates of word ``end`` among the k first are finished, with score log-probability / penalties[steps] (float64 [T+1],
  positive); the k best are kept, of equal ones the earlier. The k best others become words, parents and scores, and
  history[:,steps] = (beam gone on from, word); where there are fewer, the first stands in, with score -inf; steps += 1.
  Where there is none, or the best one's log-probability / penalties[T] is at most the k-th finished score, done = 1 instead.
  An image that is done, or has made T steps, keeps what it has; each of its rows is its own parent.

Images (ops/preprocess.py).

* ``preprocess(y, x, crops, scale, shift)``: y [N,P,Q,3] = x*scale + shift from x uint8 [N,H,W,3]; crops int32 [N,3] =
  (top, left, flip); scale, shift [3].

Precision (ops/cast.py).

* ``cast(y, x, beta)``: y = beta*y + x, equally shaped, each in float32 or bfloat16; its own backward.

Fusions (`FUSIONS`) are no primitives: a backend may offer them, and in `kernels` they are None where the backend that serves
the primitive which they extend does not. What they compute is what the primitives do one after the other; between those,
nothing is stored.

* ``conv2d_backward_data_relu(dz_below, db_below, dy, w, y, argmax, x, stride, padding, beta_b)``: the data gradient through
  the ReLU of the layer below, and that layer's bias gradient. x [N,H,W,C]: this layer's input, the output of that ReLU.
  dz_below [N,H,W,C] is written: what ``conv2d_backward_data`` gives, where x > 0, else 0. db_below [C] = beta_b * db_below +
  the sum of dz_below, before it is rounded, over all pixels; or None.
* ``conv2d_first_forward(y, x, crops, scale, shift, w, b, relu)``: ``preprocess``, then ``conv2d_forward`` with 3x3 filters,
  stride 1 and padding 1 (of the window, in normalised space). y [N,P,Q,K], w [K,3,3,3].
* ``conv2d_first_backward_weight(dw, db, dy, y, x, crops, scale, shift, beta_w, beta_b)``: its dw and db (or None); y: the
  forward's output where there was a ReLU and dy is not masked yet, else None.

Optimisers (optim.py), multi-tensor: lists of equally shaped arrays; g = clip(grad*grad_scale, +-clip) + weight_decay*param
(clip 0: none). grad_scale: a float, or float32 [1]: where that is not finite, nothing is changed. Keywords of each step, None
where not given: copies, a list of bfloat16 arrays (or None), one a parameter, that get the new parameters, rounded; rates,
float32 [3] = (lr, 1-beta1**step, 1-beta2**step), in place of lr and step.

* ``sgd_step(params, grads, momenta, lr, momentum, weight_decay, grad_scale, clip)``
* ``rmsprop_step(params, grads, squares, lr, alpha, eps, weight_decay, grad_scale, clip)``: p -= lr*g/(sqrt(v)+eps)
* ``adam_step(params, grads, ms, vs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, clip)``: step counts from 1;
  p -= lr/(1-beta1**step) * m / (sqrt(v/(1-beta2**step)) + eps)
* ``total(out, x, beta)``: out [1] = beta*out + the sum of x, each float32 or float64, added in float64 and in an order that
  depends on x's size alone.
* ``sum_squares_into(out, arrays)``: out float64 [1] = the sum of the arrays' squares, accumulated in float64.
* ``sum_squares(arrays)``: the same, returned as a Python float: it waits for the device.
* ``clip_factors(factors, squares, max_norms, loss, failed, scale)``: for each group of parameters what its gradients are to be
  multiplied by, scale and clipping by the norm: factors [G] = scale * min(1, max_norms / (abs(scale) * sqrt(squares))),
  squares float64 [G], max_norms float32 [G], 0 for any norm. loss: float64 [1] or None. failed: int32 [1], read and
  written: where it was not 0, or the loss or any of squares is not finite, it becomes 1 and all factors NaN; else it is 0.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pycap import device as devices
from pycap.backends.weights import (
    WeightCache,
    constant_weights,
    rounded_weights,
    weight_cache,
    weights_changed,
    weights_version,
)

__all__ = [
    "CHAINS",
    "COMPANIONS",
    "FUSIONS",
    "PRIMITIVES",
    "BackendError",
    "Choice",
    "WeightCache",
    "available",
    "choose",
    "constant_weights",
    "explain",
    "float32_products",
    "kernels",
    "named",
    "no_gpu",
    "resolve",
    "rounded_weights",
    "select",
    "set_float32_products",
    "set_threads",
    "use",
    "weight_cache",
    "weights_changed",
    "weights_version",
]

PRIMITIVES = (
    "conv2d_forward",
    "conv2d_pool_forward",
    "conv2d_backward_data",
    "conv2d_backward_weight",
    "maxpool_forward",
    "maxpool_backward",
    "linear_forward",
    "linear_backward_data",
    "linear_backward_weight",
    "dropout",
    "embedding_forward",
    "embedding_backward",
    "lstm_forward",
    "lstm_backward",
    "lstm_cell_forward",
    "lstm_cell_backward",
    "linear_xent_forward",
    "linear_xent_backward",
    "log_softmax_topk",
    "beam_select",
    "preprocess",
    "cast",
    "sgd_step",
    "rmsprop_step",
    "adam_step",
    "total",
    "sum_squares_into",
    "sum_squares",
    "clip_factors",
)

#: What a backend may offer beyond the primitives -> the primitive that it extends, whose backend is asked for it.
FUSIONS = {
    "conv2d_backward_data_relu": "conv2d_backward_data",
    "conv2d_first_forward": "conv2d_forward",
    "conv2d_first_backward_weight": "conv2d_backward_weight",
}

#: The primitives that take activations in bfloat16 too (and so do the fusions that extend them).
BFLOAT16 = (
    "conv2d_forward",
    "conv2d_pool_forward",
    "conv2d_backward_data",
    "conv2d_backward_weight",
    "maxpool_forward",
    "maxpool_backward",
    "linear_forward",
    "linear_backward_data",
    "linear_backward_weight",
    "dropout",
    "embedding_forward",
    "embedding_backward",
    "preprocess",
    "cast",
)

#: For each device, the backends in the order they are tried.
CHAINS = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}

#: For each device, backends that serve it only where they are asked for by name: Triton's interpreter, CUDA's emulation.
BY_NAME: dict[str, tuple[str, ...]] = {"cpu": ("triton", "cuda"), "cuda": ()}

#: Which backend does what one that was asked for by name lacks.
COMPANIONS = {"cuda": "triton"}


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve."""


@dataclass(frozen=True)
class Choice:
    """Which backend serves a primitive, and why not an earlier one of the chain."""

    primitive: str
    backend: str
    reason: str


class _Kernels:
    """The flat namespace of resolved primitives, and of fusions or None; the first use resolves the default (environment or
    automatic) choice."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in PRIMITIVES and name not in FUSIONS:
            raise AttributeError(f"no primitive is called {name!r}; pycap.backends.PRIMITIVES lists them")
        select()
        return self.__dict__[name]


kernels = _Kernels()
_choices: list[Choice] = []
_no_gpu = ""
_named = "auto"


def _load(name: str) -> ModuleType:
    """Import one backend's module; ImportError says why it cannot serve."""
    module = importlib.import_module(f"pycap.backends.{name}")
    if hasattr(module, "check"):  # it imports anywhere, but does not run everywhere
        module.check()
    return module


def available(name: str, device: str = "cpu") -> str:
    """An empty string where the backend `name` can serve on `device`, else the reason why it cannot."""
    reason = (devices.obstacle() if device == "cuda" else "") or _unfit(name, device)
    if reason:
        return reason
    try:
        _load(name)
    except ImportError as error:
        return str(error)
    return ""


def _unfit(name: str, device: str) -> str:
    """Why a GPU's kernels, compiled or interpreted as the environment has it, cannot take arrays of `device`."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # as Triton reads it
    if name in ("triton", "cuda") and interpreted != (device == "cpu"):
        if interpreted:
            return "TRITON_INTERPRET=1 has kernels interpreted on the CPU: unset it"
        if name == "cuda":
            return "on the CPU, CUDA's kernels only run emulated, for tests: set TRITON_INTERPRET=1"
        return "on the CPU, Triton's kernels only run interpreted, for tests: set TRITON_INTERPRET=1"
    return ""


def resolve(device: str | None = None, backend: str | None = None) -> tuple[str, str]:
    """(the device that `select` with these arguments takes, why it is not the GPU that "auto" would have preferred).

    "auto" takes a GPU where CUDA, CuPy and a backend other than the reference can serve on it.
    """
    if device in (None, "auto"):
        device = os.environ.get("PYCAP_DEVICE") or device or "cpu"
    backend = _asked(backend)
    if device != "auto":
        return device, ""
    fast = [name for name in CHAINS["cuda"] if name != "reference" and backend in (name, "auto")]
    if not fast:
        return "cpu", f"backend {backend} was asked for"
    reasons = {name: available(name, "cuda") for name in fast}
    return ("cuda", "") if "" in reasons.values() else ("cpu", "; ".join(dict.fromkeys(reasons.values())))


def _asked(backend: str | None) -> str:
    """What was asked for on the command line, else in the environment."""
    return (os.environ.get("PYCAP_BACKEND") or "auto") if backend in (None, "auto") else backend


def select(device: str | None = None, backend: str | None = None) -> str:
    """Resolve every primitive once, and put new arrays on the same device; returns the device.

    device: "cpu", "cuda", "auto" (a GPU that can serve, else the CPU), or None for the CPU; $PYCAP_DEVICE says instead of
    the last two. backend: one of the device's, or "auto" or None for $PYCAP_BACKEND, else the chain. A named backend that
    cannot serve raises BackendError and a named device that cannot be used DeviceError, and nothing has changed then;
    "auto" falls through, and `explain` says why.
    """
    global _no_gpu, _named
    device, no_gpu = resolve(device, backend)
    backend = _asked(backend)
    devices.require(device)
    named = (*CHAINS[device], *BY_NAME[device])
    if backend not in (*named, "auto"):
        raise BackendError(f"backend {backend!r} is unknown on device {device!r}; choose from auto, {', '.join(named)}")
    choices = choose(device, backend, no_gpu)
    devices.set_device(device)
    serving = {choice.primitive: _load(choice.backend) for choice in choices}
    kernels.__dict__.update({primitive: getattr(module, primitive) for primitive, module in serving.items()})
    kernels.__dict__.update({name: getattr(serving[extended], name, None) for name, extended in FUSIONS.items()})
    _choices[:], _no_gpu, _named = choices, no_gpu, backend
    return device


def choose(device: str, backend: str = "auto", no_gpu: str = "") -> list[Choice]:
    """Which backend would serve each primitive on `device`; BackendError, with `no_gpu` as a further reason, where none can.

    The CUDA backend decides call by call between its kernels and Triton's: the reason says what the table prefers.
    """
    companion = COMPANIONS.get(backend)
    tried = CHAINS[device] if backend == "auto" else (backend, companion) if companion else (backend,)
    modules: list[tuple[str, ModuleType]] = []
    refusals: list[str] = []
    for name in tried:
        reason = available(name, device)
        if reason:
            refusals.append(f"{name}: {reason}")
        else:
            modules.append((name, _load(name)))
    choices = []
    for primitive in PRIMITIVES:
        serving = next((name for name, module in modules if hasattr(module, primitive)), None)
        if serving is None or (backend != "auto" and modules[0][0] != backend):
            reasons = "; ".join((*refusals, *([f"no GPU: {no_gpu}"] if no_gpu else []))) or "not implemented"
            remedy = "build pycap with `make dev`, or choose" if backend == "cpp" else "choose"
            raise BackendError(
                f"backend {backend!r} cannot serve {primitive} on {device!r} ({reasons}); {remedy} --backend auto"
            )
        lacking = [f"{name}: lacks it" for name, module in modules if not hasattr(module, primitive)]
        first = "first of the chain" if backend == "auto" else "asked for"
        note = getattr(dict(modules)[serving], "note", None) if backend == "auto" else None
        said = [*refusals, *lacking] or [first]
        choices.append(Choice(primitive, serving, "; ".join([*said, note(primitive)] if note else said)))
    return choices


@contextmanager
def use(backend: str, device: str = "cpu") -> Iterator[None]:
    """Within this, `backend` serves every primitive, and new arrays lie on `device`."""
    global _no_gpu, _named
    held, choices, before, said = dict(kernels.__dict__), list(_choices), devices.current(), (_no_gpu, _named)
    select(device, backend)
    try:
        yield
    finally:
        kernels.__dict__.clear()
        kernels.__dict__.update(held)
        _choices[:], (_no_gpu, _named) = choices, said
        devices.set_device(before)


def named() -> str:
    """The backend that was asked for by name, or "auto"."""
    return _named


def no_gpu() -> str:
    """Why the device "auto" came to be the CPU; empty where a device was named, or it is a GPU."""
    return _no_gpu


def choices() -> list[Choice]:
    """Which backend serves each primitive now, and why."""
    if not _choices:
        select()
    return list(_choices)


def explain() -> list[Choice]:
    """Print the device, which backend serves each primitive and why, and the fusions; returns the choices as a list."""
    chosen = choices()
    print(f"device {devices.current()}{f' ({_no_gpu})' if _no_gpu else ''}")
    for choice in chosen:
        print(f"{choice.primitive:24} {choice.backend:10} {choice.reason}")
    print(f"fusions: {', '.join(name for name in FUSIONS if getattr(kernels, name) is not None) or 'none'}")
    return chosen


def bfloat16_unit() -> str:
    """What multiplies bfloat16 matrices: "amx" (the CPU's tiles), "tensor cores", or "float32" after widening, at its speed."""
    serving = {choice.primitive: choice.backend for choice in choices()}.get("conv2d_forward")
    if serving == "cpp":
        return cpp_info()["bf16"]
    return "tensor cores" if serving in ("cuda", "triton") and devices.current() == "cuda" else "float32"


def cpp_info() -> dict[str, Any]:
    """What the C++ backend says of itself: `isa`, `threads`, `bf16`, `openblas`, `compiler`, ... BackendError without it."""
    if reason := available("cpp"):
        raise BackendError(f"backend 'cpp': {reason}")
    return dict(_load("cpp").info())


_float32_products = "fp32"


def set_float32_products(mode: str) -> None:
    """How a GPU multiplies float32 matrices from now on, convolutions included; a CPU always multiplies in float32.

    "fp32": each factor is split into two TensorFloat-32 numbers and three products are summed, which errs as float32
    does. "tf32": one TensorFloat-32 product (10 bits of mantissa), summed in float32. ValueError for others.
    """
    global _float32_products
    if mode not in ("fp32", "tf32"):
        raise ValueError(f"float32 products {mode!r}: choose from fp32, tf32")
    _float32_products = mode


def float32_products() -> str:
    """What `set_float32_products` said last: "fp32" (at the start) or "tf32"."""
    return _float32_products


def set_threads(count: int) -> None:
    """How many threads the C++ kernels use from now on (the reference has no say over NumPy's)."""
    if devices.current() == "cpu" and not available("cpp"):
        _load("cpp").set_num_threads(count)
