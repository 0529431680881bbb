"""The k most probable words of each row, for decoding; no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.backends import kernels


def log_softmax_topk(logits: Any, k: int, suppress: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """(log-probabilities [M,k] in descending order, ids int32 [M,k]) of raw logits [M,V].

    suppress: ids whose probability is taken to be zero; the others' probabilities sum to one. Equal values come in
    order of id. Raises ValueError where fewer than k ids are left.
    """
    rows, vocabulary = logits.shape
    if not 1 <= k <= vocabulary - len(set(suppress)):
        raise ValueError(f"top-k: k = {k} of {vocabulary} ids, {len(set(suppress))} of them suppressed")
    values, ids = memory.empty((rows, k), logits.dtype), memory.empty((rows, k), np.int32)
    kernels.log_softmax_topk(values, ids, logits, suppress)
    return values, ids
