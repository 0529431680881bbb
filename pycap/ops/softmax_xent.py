"""Cross-entropy over the vocabulary, fused with the projection that makes the logits (docs/math/softmax_xent.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.device import to_device, to_host


class LinearCrossEntropy(Function):
    """rows: the positions that count, or None for all; places: of each position among them (-1: nowhere), or None where that is
    not known; targets, weights (or None): theirs. All arrays of the device."""

    def forward(
        self, h: Any, w: Any, b: Any, *, rows: Any, places: Any, targets: Any, weights: Any, scale: float
    ) -> Any:
        self.rows, self.places, self.scale = rows, places, scale
        if rows is not None:  # padding never reaches the vocabulary-sized work
            kept = memory.empty((len(rows), h.shape[1]), h.dtype)
            kernels.embedding_forward(kept, h, rows)
            h = kept
        losses = memory.empty((len(targets),), h.dtype)
        dlogits = memory.empty((len(targets), w.shape[0]), h.dtype)
        kernels.linear_xent_forward(losses, dlogits, h, w, b, targets, weights)
        if any(self.needs):
            self.h, self.w, self.dlogits = h, w, dlogits
        if scale == 1:
            loss = memory.empty((1,), h.dtype)
            kernels.total(loss, losses, 0.0)
            return loss.reshape(())
        loss = memory.empty((1,), np.float64)
        kernels.total(loss, losses, 0.0)
        return (loss * scale).astype(h.dtype).reshape(())

    def backward(self, dy: Any) -> None:
        dh, beta = self.grad_into(0)
        dw, beta_w = self.grad_into(1)
        db, beta_b = self.grad_into(2)
        scale = float(dy) * self.scale  # waits for the device, unless the seed is a number of the host
        if dh is None or self.rows is None:
            kernels.linear_xent_backward(dh, dw, db, self.dlogits, self.h, self.w, scale, (beta, beta_w, beta_b))
            return
        kept = memory.empty_like(self.h)
        kernels.linear_xent_backward(kept, dw, db, self.dlogits, self.h, self.w, scale, (0.0, beta_w, beta_b))
        if self.places is not None and beta == 0:
            kernels.embedding_forward(dh, kept, self.places)
        else:
            kernels.embedding_backward(dh, kept, self.rows, None, beta)


def linear_cross_entropy(
    h: Tensor, w: Tensor, b: Tensor, targets: Any, *, ignore: int = 0, normalizer: float | None = None
) -> Tensor:
    """The mean of -log softmax(h w^T + b)[target], in nats, over the positions whose target is not `ignore`.

    h [M,H], w [V,H], b [V], targets int32 [M], an array of the host. normalizer: divide by this instead of by the number of
    positions that count (the whole batch's count, when a batch is worked off in pieces). Returns a scalar, 0 where no
    position counts. Raises ValueError for other shapes, IndexError for a target outside the vocabulary.
    """
    _check("linear_cross_entropy", h, w, b)
    if targets.shape != h.shape[:1] or targets.dtype != np.int32:
        raise ValueError(
            f"linear_cross_entropy: targets {targets.shape} {targets.dtype} are not int32 [M] = {h.shape[:1]}"
        )
    targets = to_host(targets)
    rows = np.flatnonzero(targets != ignore).astype(np.int32)
    compacted = len(rows) != len(targets)
    if compacted:
        targets = targets[rows]
    if targets.size and not (0 <= int(targets.min()) and int(targets.max()) < w.shape[0]):
        bad = int(targets.max()) if int(targets.min()) >= 0 else int(targets.min())
        raise IndexError(f"linear_cross_entropy: target {bad} is outside the vocabulary of {w.shape[0]}")
    return LinearCrossEntropy.apply(
        h,
        w,
        b,
        rows=to_device(rows) if compacted else None,
        places=None,
        targets=to_device(targets),
        weights=None,
        scale=1.0 / (len(targets) if normalizer is None else normalizer) if len(targets) else 0.0,
    )


def weighted_cross_entropy(
    h: Tensor, w: Tensor, b: Tensor, targets: Any, weights: Any, rows: Any = None, places: Any = None
) -> Tensor:
    """The sum over k of -weights[k] * log softmax(h[rows[k]] w^T + b)[targets[k]], in nats.

    h [M,H], w [V,H], b [V]; targets int32 [K], weights float32 [K], rows int32 [K] (None: K = M, all rows in order), all
    arrays of the current device, which are not read back: whoever put them there has checked them. Where a weight is 0,
    neither loss nor gradient remains, so that such entries may fill a batch up to a fixed size. places int32 [M]: the inverse
    of rows that are all different, places[rows[k]] = k where weights[k] is not 0, and -1 elsewhere; with it the gradient of h
    is gathered, not scattered, which is faster and gives the same. Returns a scalar. `backward` on it waits for the device
    unless its seed is a number of the host: `loss.backward(np.float32(1))`. ValueError for other shapes.
    """
    _check("weighted_cross_entropy", h, w, b)
    count = h.shape[:1] if rows is None else rows.shape
    if targets.shape != count or weights.shape != count or len(count) != 1:
        raise ValueError(
            f"weighted_cross_entropy: targets {targets.shape} and weights {weights.shape} are not [K] = {count}"
        )
    if places is not None and rows is None:
        raise ValueError("weighted_cross_entropy: places are the inverse of rows: pass both, or neither")
    if places is not None and places.shape != h.shape[:1]:
        raise ValueError(f"weighted_cross_entropy: places {places.shape} are not [M] = {h.shape[:1]}")
    return LinearCrossEntropy.apply(h, w, b, rows=rows, places=places, targets=targets, weights=weights, scale=1.0)


def _check(op: str, h: Tensor, w: Tensor, b: Tensor) -> None:
    if len(h.shape) != 2 or len(w.shape) != 2 or w.shape[1] != h.shape[1]:
        raise ValueError(f"{op}: h {h.shape}, w {w.shape} are not [M,H], [V,H]")
    if b.shape != w.shape[:1]:
        raise ValueError(f"{op}: b {b.shape} is not [V] = {w.shape[:1]}")
