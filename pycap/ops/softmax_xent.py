"""Cross-entropy over the vocabulary, fused with the projection that makes the logits (docs/math/softmax_xent.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.device import to_device, to_host


class LinearCrossEntropy(Function):
    def forward(self, h: Any, w: Any, b: Any, *, targets: Any, ignore: int, normalizer: float | None) -> Any:
        if h.ndim != 2 or w.shape[1] != h.shape[1] or targets.shape != h.shape[:1] or targets.dtype != np.int32:
            raise ValueError(
                f"linear_cross_entropy: h {h.shape}, w {w.shape}, targets {targets.shape} {targets.dtype} are not "
                "[M,H], [V,H], [M] int32"
            )
        if b.shape != w.shape[:1]:
            raise ValueError(f"linear_cross_entropy: b {b.shape} is not [V] = {w.shape[:1]}")
        targets = to_host(targets)
        rows = np.flatnonzero(targets != ignore).astype(np.int32)
        self.compacted = len(rows) != len(targets)
        if self.compacted:  # padding never reaches the vocabulary-sized work
            self.rows = to_device(rows)
            kept = memory.empty((len(rows), h.shape[1]), h.dtype)
            kernels.embedding_forward(kept, h, self.rows)
            h, targets = kept, targets[rows]
        if targets.size and not (0 <= int(targets.min()) and int(targets.max()) < w.shape[0]):
            bad = int(targets.max()) if int(targets.min()) >= 0 else int(targets.min())
            raise IndexError(f"linear_cross_entropy: target {bad} is outside the vocabulary of {w.shape[0]}")
        losses = memory.empty((len(targets),), h.dtype)
        dlogits = memory.empty((len(targets), w.shape[0]), h.dtype)
        kernels.linear_xent_forward(losses, dlogits, h, w, b, to_device(targets), None)
        self.scale = 1.0 / (len(targets) if normalizer is None else normalizer) if len(targets) else 0.0
        if any(self.needs):
            self.h, self.w, self.dlogits = h, w, dlogits
        return (losses.sum(dtype=np.float64) * self.scale).astype(h.dtype).reshape(())

    def backward(self, dy: Any) -> None:
        dh, beta = self.grad_into(0)
        dw, beta_w = self.grad_into(1)
        db, beta_b = self.grad_into(2)
        scale = float(dy) * self.scale
        if dh is None or not self.compacted:
            kernels.linear_xent_backward(dh, dw, db, self.dlogits, self.h, self.w, scale, (beta, beta_w, beta_b))
            return
        kept = memory.empty_like(self.h)
        kernels.linear_xent_backward(kept, dw, db, self.dlogits, self.h, self.w, scale, (0.0, beta_w, beta_b))
        kernels.embedding_backward(dh, kept, self.rows, None, beta)


def linear_cross_entropy(
    h: Tensor, w: Tensor, b: Tensor, targets: Any, *, ignore: int = 0, normalizer: float | None = None
) -> Tensor:
    """The mean of -log softmax(h w^T + b)[target], in nats, over the positions whose target is not `ignore`.

    h [M,H], w [V,H], b [V], targets int32 [M], an array of the host. normalizer: divide by this instead of by the number of
    positions that count (the whole batch's count, when a batch is worked off in pieces). Returns a scalar, 0 where no
    position counts. Raises ValueError for other shapes, IndexError for a target outside the vocabulary.
    """
    return LinearCrossEntropy.apply(h, w, b, targets=targets, ignore=ignore, normalizer=normalizer)
