"""The CPU backend in C++: gives each primitive of `pycap.backends` its kernel in `pycap._cpu`, with scratch memory.

Signatures and meanings stand in `pycap.backends`; a wrong dtype, shape or layout raises and names the
argument. What is arithmetic on a few numbers (`total`, `clip_factors`, `beam_select`) is the reference's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pycap.backends.weights import weight_cache
from pycap.device import is_bfloat16
from pycap.memory import empty, workspace

Array = np.ndarray


def _preload_openblas() -> None:
    """Load the OpenBLAS of the scipy-openblas32 wheel, so that `_cpu` finds it wherever the wheel is installed."""
    spec = find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise ImportError("pycap._cpu needs OpenBLAS: pip install scipy-openblas32")
    folder = Path(spec.origin).parent / "lib"
    libraries = sorted(path for path in folder.glob("*openblas*") if path.suffix in {".so", ".dylib", ".dll"})
    if not libraries:
        raise ImportError(f"{folder} holds no OpenBLAS library: reinstall scipy-openblas32")
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_GLOBAL)


_preload_openblas()

from pycap import _cpu  # noqa: E402  (needs the library loaded above)
from pycap.backends import cpp_bf16, cpp_optim, reference  # noqa: E402

maxpool_forward = _cpu.maxpool_forward
maxpool_backward = _cpu.maxpool_backward
embedding_forward = _cpu.embedding_forward
linear_xent_backward = _cpu.linear_xent_backward
log_softmax_topk = _cpu.log_softmax_topk
preprocess = _cpu.preprocess
cast = _cpu.cast
# No primitive: pycap.data.resize calls it. None on CPUs without AVX2.
squash = getattr(_cpu, "squash", None)
sgd_step = cpp_optim.sgd_step
rmsprop_step = cpp_optim.rmsprop_step
adam_step = cpp_optim.adam_step
sum_squares_into = cpp_optim.sum_squares_into
sum_squares = cpp_optim.sum_squares
total = reference.total
clip_factors = reference.clip_factors
beam_select = reference.beam_select

set_num_threads = _cpu.set_num_threads
get_num_threads = _cpu.get_num_threads
isa = _cpu.isa
info = _cpu.info


def _filters(x: Array, w: Array, stride: int, padding: int) -> Array | None:
    """The form of w that convolutions read fastest, where w is promised to stay as it is."""
    cache = weight_cache()
    floats = _cpu.conv2d_filter_floats(x.shape, w.shape, stride, padding) if cache is not None else 0
    if cache is None or not floats:
        return None

    def make() -> Array:
        form = empty((floats,))
        _cpu.conv2d_prepare_filters(form, w, x.shape, stride, padding)
        return form

    return cache.get(w, "taps", make)


def conv2d_forward(y: Array, x: Array, w: Array, b: Array | None, stride: int, padding: int, relu: bool) -> None:
    if is_bfloat16(x):
        cpp_bf16.conv2d_forward(y, None, x, w, b, stride, padding, relu, conv2d_forward)
        return
    ws = workspace(_cpu.conv2d_forward_workspace(x.shape, w.shape, stride, padding, False))
    _cpu.conv2d_forward(y, x, w, _filters(x, w, stride, padding), b, stride, padding, relu, ws)


def conv2d_pool_forward(
    y: Array, argmax: Array, x: Array, w: Array, b: Array | None, stride: int, padding: int
) -> None:
    if is_bfloat16(x):
        cpp_bf16.conv2d_forward(y, argmax, x, w, b, stride, padding, True, conv2d_pool_forward)
        return
    ws = workspace(_cpu.conv2d_forward_workspace(x.shape, w.shape, stride, padding, True))
    _cpu.conv2d_pool_forward(y, argmax, x, w, _filters(x, w, stride, padding), b, stride, padding, ws)


def conv2d_backward_data(
    dx: Array, dy: Array, w: Array, y: Array | None, argmax: Array | None, stride: int, padding: int, beta: float
) -> None:
    if is_bfloat16(dy):
        cpp_bf16.conv2d_backward_data(dx, dy, w, y, argmax, stride, padding, beta, conv2d_backward_data)
        return
    masked = y is not None or argmax is not None
    ws = workspace(_cpu.conv2d_backward_data_workspace(dx.shape, w.shape, stride, padding, masked))
    _cpu.conv2d_backward_data(dx, dy, w, y, argmax, stride, padding, beta, ws)


def conv2d_backward_weight(
    dw: Array, db: Array | None, dy: Array, x: Array, y: Array | None, argmax: Array | None, stride: int, padding: int,
    beta_w: float, beta_b: float,
) -> None:  # fmt: skip
    if is_bfloat16(dy):
        how = (stride, padding, beta_w, beta_b)
        cpp_bf16.conv2d_backward_weight(dw, db, dy, x, y, argmax, *how, conv2d_backward_weight)
        return
    masked = y is not None or argmax is not None
    ws = workspace(_cpu.conv2d_backward_weight_workspace(x.shape, dw.shape, stride, padding, masked))
    _cpu.conv2d_backward_weight(dw, db, dy, x, y, argmax, stride, padding, beta_w, beta_b, ws)


def linear_forward(y: Array, x: Array, w: Array, b: Array | None, relu: bool) -> None:
    if is_bfloat16(x):
        cpp_bf16.linear_forward(y, x, w, b, relu, linear_forward)
    else:
        _cpu.linear_forward(y, x, w, b, relu)


def linear_backward_data(dx: Array, dy: Array, w: Array, y: Array | None, beta: float) -> None:
    if is_bfloat16(dy):
        cpp_bf16.linear_backward_data(dx, dy, w, y, beta, linear_backward_data)
        return
    ws = workspace(_cpu.linear_backward_workspace(dy.shape[0], w.shape[1], w.shape[0], y is not None))
    _cpu.linear_backward_data(dx, dy, w, y, beta, ws)


def linear_backward_weight(
    dw: Array | None, db: Array | None, dy: Array, x: Array, y: Array | None, beta_w: float, beta_b: float
) -> None:
    if is_bfloat16(dy):
        cpp_bf16.linear_backward_weight(dw, db, dy, x, y, beta_w, beta_b, linear_backward_weight)
        return
    ws = workspace(_cpu.linear_backward_workspace(x.shape[0], x.shape[1], dy.shape[1], y is not None))
    _cpu.linear_backward_weight(dw, db, dy, x, y, beta_w, beta_b, ws)


def dropout(y: Array, x: Array, p: float, seed: int | Array, total: int, offset: int, beta: float) -> None:
    if not isinstance(seed, int):
        if seed.dtype != np.uint32:
            raise TypeError(f"dropout: seed must be uint32, got {seed.dtype}")
        if seed.shape != (2,):
            raise ValueError(f"dropout: seed has shape {seed.shape}, expected (2,)")
        seed = int(seed[0]) | int(seed[1]) << 32
    _cpu.dropout(y, x, p, seed, total, offset, beta)


def embedding_backward(dtable: Array, dy: Array, ids: Array, stale: Array | None, beta: float) -> None:
    ws = workspace(_cpu.embedding_backward_workspace(ids.size, dtable.shape[0], is_bfloat16(dy)))
    _cpu.embedding_backward(dtable, dy, ids, stale, beta, ws)


def lstm_forward(
    h: Array, c: Array, gates: Array, x: Array, h0: Array | None, c0: Array | None, w_x: Array, w_h: Array, b: Array,
    mask: Array | None,
) -> None:  # fmt: skip
    ws = workspace(_cpu.lstm_workspace(*x.shape, w_h.shape[1], False))
    _cpu.lstm_forward(h, c, gates, x, h0, c0, w_x, w_h, b, mask, ws)


def lstm_backward(
    dx: Array | None, dw_x: Array | None, dw_h: Array | None, db: Array | None, dh0: Array | None, dc0: Array | None,
    gates: Array, dh: Array | None, dc_n: Array | None, x: Array, h: Array, c: Array, h0: Array | None,
    c0: Array | None, w_x: Array, w_h: Array, mask: Array | None, betas: Sequence[float],
) -> None:  # fmt: skip
    ws = workspace(_cpu.lstm_workspace(*x.shape, w_h.shape[1], True))
    _cpu.lstm_backward(dx, dw_x, dw_h, db, dh0, dc0, gates, dh, dc_n, x, h, c, h0, c0, w_x, w_h, mask, tuple(betas), ws)


def lstm_cell_forward(
    h: Array, c: Array, gates: Array, x: Array, h_prev: Array, c_prev: Array, w_x: Array, w_h: Array, b: Array
) -> None:
    lstm_forward(h[None], c[None], gates[None], x[None], h_prev, c_prev, w_x, w_h, b, None)


def lstm_cell_backward(
    dx: Array | None, dw_x: Array | None, dw_h: Array | None, db: Array | None, dh_prev: Array | None,
    dc_prev: Array | None, gates: Array, dh: Array | None, dc: Array | None, x: Array, c: Array, h_prev: Array,
    c_prev: Array, w_x: Array, w_h: Array, betas: Sequence[float],
) -> None:  # fmt: skip
    ws = workspace(_cpu.lstm_workspace(1, *x.shape, w_h.shape[1], True))
    _cpu.lstm_backward(
        None if dx is None else dx[None], dw_x, dw_h, db, dh_prev, dc_prev, gates[None],
        None if dh is None else dh[None], dc, x[None], None, c[None], h_prev, c_prev, w_x, w_h, None, tuple(betas), ws,
    )  # fmt: skip


def linear_xent_forward(
    loss: Array, dlogits: Array, h: Array, w: Array, b: Array, targets: Array, weights: Array | None
) -> None:
    _cpu.linear_xent_forward(loss, dlogits, h, w, b, targets)
    if weights is None:
        return
    if weights.dtype != np.float32:
        raise TypeError(f"linear_xent_forward: weights must be float32, got {weights.dtype}")
    if weights.shape != loss.shape:
        raise ValueError(f"linear_xent_forward: weights has shape {weights.shape}, expected {loss.shape}")
    reference.weigh_rows(loss, dlogits, weights)
