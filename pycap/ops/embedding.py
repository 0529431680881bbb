"""Embedding: gather rows of a table, scatter gradients to the rows that were used (docs/math/embedding.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.device import array_module


class Embedding(Function):
    def forward(self, table: Any, ids: Any) -> Any:
        if ids.dtype != np.int32:
            raise TypeError(f"embedding: ids have dtype {ids.dtype}, not int32")
        self.ids = ids.reshape(-1)
        if self.ids.size and not (0 <= int(self.ids.min()) and int(self.ids.max()) < table.shape[0]):
            bad = int(self.ids.max()) if int(self.ids.min()) >= 0 else int(self.ids.min())
            raise IndexError(f"embedding: id {bad} is outside the table of {table.shape[0]} rows")
        y = memory.empty((*ids.shape, table.shape[1]), table.dtype)
        kernels.embedding_forward(y.reshape(-1, table.shape[1]), table, self.ids)
        return y

    def backward(self, dy: Any) -> None:
        table = self.parents[0]
        stale = table.rows if table.grad is not None else None
        added = table.fresh
        buffer, beta = self.grad_into(0)  # resets table.rows: any other writer fills whole rows
        kernels.embedding_backward(buffer, dy.reshape(-1, dy.shape[-1]), self.ids, stale, beta)
        if table.node is None:
            used = array_module(self.ids).unique(self.ids)
            if not added:
                table.rows = used
            elif stale is not None:
                table.rows = array_module(used).union1d(stale, used)


def embedding(table: Tensor, ids: Any) -> Tensor:
    """Rows of a table: table [V,E], ids int32 of any shape -> [*ids.shape, E].

    Also the way to gather, or to repeat, rows of an activation. Raises TypeError for other id dtypes and IndexError for
    ids outside the table.
    """
    return Embedding.apply(table, ids)
