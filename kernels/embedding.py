"""Gather of rows of a table, and its transpose, the scatter-add: in a fixed order, without atomics (docs/math/embedding.md)."""

import triton
import triton.language as tl

from ._device import accumulate


@triton.jit
def forward(
    y,  # [M, E]
    table,  # [V, E]
    ids,  # [M]
    m,
    e,
    v,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """y = table[ids]; zeros for ids outside the table: -1 stands for no row."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    row_ids = tl.load(ids + rows, mask=rows < m, other=0)
    inside = (rows < m)[:, None] & (columns < e)[None, :]
    known = inside & ((row_ids >= 0) & (row_ids < v))[:, None]
    value = tl.load(table + row_ids.to(tl.int64)[:, None] * e + columns[None, :], mask=known, other=0.0)
    tl.store(y + rows[:, None] * e + columns[None, :], value, mask=inside)


@triton.jit
def clear(
    dtable,  # [V, E]
    stale,  # [M]
    e,
    v,
    BLOCK_E: tl.constexpr,
):
    """dtable[stale] = 0. A program: a block of one row; a row that is named twice is cleared twice."""
    row = tl.load(stale + tl.program_id(0)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    if (row >= 0) & (row < v):
        nothing = tl.zeros([BLOCK_E], tl.float32).to(dtable.dtype.element_ty)
        tl.store(dtable + row * e + columns, nothing, mask=columns < e)


@triton.jit
def _equal(ids, at, stop, row):
    """Which of the ids at these places, before `stop`, are `row`."""
    return (tl.load(ids + at, mask=at < stop, other=-1) == row) & (at < stop)


@triton.jit
def backward(
    dtable,  # [V, E]
    dy,  # [M, E]
    ids,  # [M]
    m,
    e,
    v,
    every_row,
    beta,
    SCAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """dtable = beta * dtable + the sum of the rows of dy that an id names, in order, rounded once.

    A program: a block of one row's columns. every_row: program i owns the table's row i, so that all rows are written.
    Else it owns the row that ids[i] names, if no earlier id names it, and rows that are never named are not touched; where
    ids[i] names no row (-1) it ends at once.
    """
    number = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    row = number
    first = 0
    owned = 1
    if every_row == 0:
        row = tl.load(ids + number)
        first = number
        for start in range(0, tl.where((row >= 0) & (row < v), number, 0), SCAN):
            earlier = _equal(ids, start + tl.arange(0, SCAN), number, row)
            owned = tl.where(tl.max(earlier.to(tl.int32), 0) > 0, 0, owned)
    if (owned != 0) & (row >= 0) & (row < v):
        total = tl.zeros([BLOCK_E], tl.float32)
        for start in range(first, m, SCAN):
            anywhere = _equal(ids, start + tl.arange(0, SCAN), m, row)
            if tl.max(anywhere.to(tl.int32), 0) > 0:  # seldom, and then in few parts of it
                for part in range(start, tl.minimum(start + SCAN, m), BLOCK_M):
                    at = part + tl.arange(0, BLOCK_M)
                    same = _equal(ids, at, m, row)
                    if tl.max(same.to(tl.int32), 0) > 0:
                        where = dy + at.to(tl.int64)[:, None] * e + columns[None, :]
                        taken = tl.load(where, mask=same[:, None] & (columns < e)[None, :], other=0.0)
                        total += tl.sum(taken.to(tl.float32), 0)
        accumulate(dtable + row.to(tl.int64) * e + columns, total, beta, columns < e)
