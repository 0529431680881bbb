"""Gather and scatter of rows in the Triton backend."""

from __future__ import annotations

import numpy as np

from pycap.backends.triton.launching import ELEMENTS, Array, Kernel, blocks, expect, row

_forward = Kernel("embedding.forward", "y:*T table:*T ids:*i32 m:i32 e:i32/16 v:i32", variants=ELEMENTS)
_clear = Kernel("embedding.clear", "dtable:*T stale:*i32 e:i32/16 v:i32", variants=ELEMENTS)
_backward = Kernel(
    "embedding.backward",
    "dtable:*T dy:*T ids:*i32 m:i32 e:i32/16 v:i32 every_row:i32 beta:fp32",
    variants=ELEMENTS,
)


def embedding_forward(y: Array, table: Array, ids: Array) -> None:
    m, (v, e) = ids.size, table.shape
    expect("embedding_forward", y=(y, (m, e)), ids=(ids, (m,)))
    how = row(_forward, table, e=e)
    grid = (blocks(m, how.blocks["BLOCK_M"]), blocks(e, how.blocks["BLOCK_E"]), 1)
    _forward(grid, how, y, table, ids, m, e, v)


def embedding_backward(dtable: Array, dy: Array, ids: Array, stale: Array, beta: float) -> None:
    m, (v, e) = ids.size, dtable.shape
    expect("embedding_backward", dy=(dy, (m, e)), ids=(ids, (m,)))
    if beta == 0 and stale is not None:
        expect("embedding_backward", stale=(stale, (stale.size,)))
        if stale.dtype != np.int32:
            raise TypeError(f"embedding_backward: stale must be int32, got {stale.dtype}")
        how = row(_clear, dtable, e=e)
        _clear((stale.size, blocks(e, how.blocks["BLOCK_E"]), 1), how, dtable, stale, e, v)
    # Rows without an id change too where they are scaled, or hold anything: then each row of the table is written.
    every_row = beta not in (0, 1) or (beta == 0 and stale is None)
    how = row(_backward, dtable, e=e)
    grid = (v if every_row else m, blocks(e, how.blocks["BLOCK_E"]), 1)
    _backward(grid, how, dtable, dy, ids, m, e, v, int(every_row), beta)
