"""pycap's side of the GPU cases: its primitives, as the ops call them, on preallocated arrays."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.gpu_cases import Arrays
from benchmarks.sides import Work
from pycap import backends


def prepare(case: Case, a: Arrays, xp: ModuleType, primitives: Any) -> Work:
    """The work of a case on arrays `a` of the array module `xp`. primitives: a backend's module."""
    backends.set_float32_products("tf32" if case.dtype == "tf32" else "fp32")
    builder: Callable[..., Work] = globals()[f"_{case.op}"]
    return builder(case, a, xp, primitives)


def _conv2d(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    x, w, b, dy = a["x"], a["w"], a["b"], a["dy"]
    n, h, c, k = (case.shape[name] for name in "NHCK")
    if case.mode == "forward":
        y = xp.empty((n, h, h, k), x.dtype)
        return Work(lambda: kernels.conv2d_forward(y, x, w, None, 1, 1, False), lambda _: {"y": y})
    if case.mode == "block" and case.shape["pool"]:
        y = xp.empty((n, h // 2, h // 2, k), x.dtype)
        argmax = xp.empty((n, h // 2, h // 2, -(-k // 4)), np.uint8)
        return Work(lambda: kernels.conv2d_pool_forward(y, argmax, x, w, b, 1, 1), lambda _: {"y": y})
    if case.mode == "block":
        y = xp.empty((n, h, h, k), x.dtype)
        return Work(lambda: kernels.conv2d_forward(y, x, w, b, 1, 1, True), lambda _: {"y": y})
    if case.mode == "backward-data":
        dx = xp.empty((n, h, h, c), x.dtype)
        return Work(lambda: kernels.conv2d_backward_data(dx, dy, w, None, None, 1, 1, 0.0), lambda _: {"dx": dx})
    dw, db = xp.empty_like(w), xp.empty_like(b)
    run = lambda: kernels.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 0.0, 0.0)  # noqa: E731
    return Work(run, lambda _: {"dw": dw, "db": db})


def _linear(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    x, w, b, dy = a["x"], a["w"], a["b"], a["dy"]
    if case.mode == "forward":
        y = xp.empty_like(dy)
        return Work(lambda: kernels.linear_forward(y, x, w, b, True), lambda _: {"y": y})
    if case.mode == "backward-data":
        dx = xp.empty_like(x)
        return Work(lambda: kernels.linear_backward_data(dx, dy, w, None, 0.0), lambda _: {"dx": dx})
    dw, db = xp.empty_like(w), xp.empty_like(b)
    run = lambda: kernels.linear_backward_weight(dw, db, dy, x, None, 0.0, 0.0)  # noqa: E731
    return Work(run, lambda _: {"dw": dw, "db": db})


def _softmax_xent(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    h, w, b, targets = a["h"], a["w"], a["b"], a["targets"]
    m, v = case.shape["M"], case.shape["V"]
    loss, dlogits = xp.empty((m,), np.float32), xp.empty((m, v), h.dtype)
    dh, dw, db = xp.empty_like(h), xp.empty_like(w), xp.empty_like(b)

    def run() -> None:
        kernels.linear_xent_forward(loss, dlogits, h, w, b, targets, None)
        kernels.linear_xent_backward(dh, dw, db, dlogits, h, w, 1.0 / m, (0.0, 0.0, 0.0))

    return Work(run, lambda _: {"loss": loss.mean(keepdims=True), "dh": dh, "dw": dw, "db": db})


def _topk(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    shape = case.shape["M"], case.shape["k"]
    values, indices = xp.empty(shape, np.float32), xp.empty(shape, np.int32)
    return Work(lambda: kernels.log_softmax_topk(values, indices, a["logits"], ()), lambda _: {"values": values})


def _lstm(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    t, n, hidden = case.shape["T"], case.shape["N"], case.shape["H"]
    x, w_x, w_h, b, dy = (a[name] for name in ("x", "w_x", "w_h", "b", "dy"))
    mask = a.get("mask")
    h, c = xp.empty((t, n, hidden), x.dtype), xp.empty((t, n, hidden), np.float32)
    gates = xp.empty((t, n, 4 * hidden), np.float32)
    gradients = {"dx": xp.empty_like(x)}
    gradients |= {f"d{name}": xp.empty(a[name].shape, np.float32) for name in ("w_x", "w_h", "b")}
    learns = case.mode != "forward"

    def run() -> None:
        kernels.lstm_forward(h, c, gates, x, None, None, w_x, w_h, b, mask)
        if learns:
            into = (*gradients.values(), None, None)
            kernels.lstm_backward(*into, gates, dy, None, x, h, c, None, None, w_x, w_h, mask, (0.0,) * 6)

    def outputs(_: Any) -> dict[str, Any]:
        """PyTorch's padding is zeros, pycap's the state carried over."""
        shown = h if mask is None else h * mask[:, :, None].astype(h.dtype)
        return {"h": shown, **(gradients if learns else {})}

    return Work(run, outputs)


def _embedding(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    table, ids, dy = a["table"], a["ids"], a["dy"]
    if case.mode == "forward":
        y = xp.empty_like(dy)
        return Work(lambda: kernels.embedding_forward(y, table, ids), lambda _: {"y": y})
    dtable = xp.zeros_like(table)
    return Work(lambda: kernels.embedding_backward(dtable, dy, ids, None, 0.0), lambda _: {"dtable": dtable})


def _pool(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    x, dy = a["x"], a["dy"]
    n, h, _, c = x.shape
    y, dx = xp.empty_like(dy), xp.empty_like(x)
    argmax = xp.empty((n, h // 2, h // 2, -(-c // 4)), np.uint8)
    kernels.maxpool_forward(y, argmax, x)
    if case.mode == "forward":
        return Work(lambda: kernels.maxpool_forward(y, argmax, x), lambda _: {"y": y})
    return Work(lambda: kernels.maxpool_backward(dx, dy, argmax, 0.0), lambda _: {"dx": dx})


def _adam(case: Case, a: Arrays, xp: ModuleType, kernels: Any) -> Work:
    p, g, m, v = a["p"].copy(), a["g"], xp.zeros_like(a["p"]), xp.zeros_like(a["p"])
    held = a["p"]
    run = lambda: kernels.adam_step([p], [g], [m], [v], 1e-4, 0.9, 0.999, 1e-8, 0.0, 1, 1.0, 0.0)  # noqa: E731

    def outputs(_: Any) -> dict[str, Any]:
        """One step from the beginning, whatever was timed before."""
        p[...], m[...], v[...] = held, 0, 0
        run()
        return {"p": p}

    return Work(run, outputs)
