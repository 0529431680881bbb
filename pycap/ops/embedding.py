"""Embedding: gather rows of a table, scatter gradients to the rows that were used (docs/math/embedding.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.backends import kernels
from pycap.device import array_module, to_device


class Embedding(Function):
    def forward(self, table: Any, ids: Any, *, trusted: bool) -> Any:
        if ids.dtype != np.int32:
            raise TypeError(f"embedding: ids have dtype {ids.dtype}, not int32")
        self.host_ids: Any = None
        if not trusted and array_module(ids) is np:
            self.host_ids = ids.reshape(-1)
            if ids.size and not (0 <= int(ids.min()) and int(ids.max()) < table.shape[0]):
                bad = int(ids.max()) if int(ids.min()) >= 0 else int(ids.min())
                raise IndexError(f"embedding: id {bad} is outside the table of {table.shape[0]} rows")
        self.ids = to_device(ids.reshape(-1))
        y = memory.empty((*ids.shape, table.shape[1]), table.dtype)
        kernels.embedding_forward(y.reshape(-1, table.shape[1]), table, self.ids)
        return y

    def backward(self, dy: Any) -> None:
        table = self.parents[0]
        ids = self.host_ids
        stale = table.rows if ids is not None and table.grad is not None else None
        added = table.fresh
        buffer, beta = self.grad_into(0)  # resets table.rows: any other writer, and trusted ids, may fill any row
        cleared = None if stale is None else to_device(stale)
        kernels.embedding_backward(buffer, dy.reshape(-1, dy.shape[-1]), self.ids, cleared, beta)
        if table.node is None and ids is not None:
            used = np.unique(ids)
            if not added:
                table.rows = used
            elif stale is not None:
                table.rows = np.union1d(stale, used)


def embedding(table: Tensor, ids: Any, *, trusted: bool = False) -> Tensor:
    """Rows of a table: table [V,E], ids int32 of any shape -> [*ids.shape, E].

    Also the way to gather, or to repeat, rows of an activation. trusted: whoever made the ids has checked them, as is taken
    for granted of ids that lie on a GPU, which are not read back; -1 is allowed among them, and stands for no row: zeros, and
    no gradient. Raises TypeError for other id dtypes and IndexError for ids of the host outside the table that are not trusted.
    """
    return Embedding.apply(table, ids, trusted=trusted)
