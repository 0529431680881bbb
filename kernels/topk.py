"""The k largest log-probabilities of each row, for beam search."""

import triton
import triton.language as tl

_NONE: tl.constexpr = tl.constexpr(2**31 - 1)  # larger than every id


@triton.jit
def _logits(logits, ids, suppressed, v, count):
    """float32, with -inf for suppressed ids and those past the end."""
    allowed = ids < v
    for number in range(count):
        allowed &= ids != tl.load(suppressed + number)
    return tl.load(logits + ids, mask=allowed, other=-float("inf")).to(tl.float32)


@triton.jit
def forward(
    values,  # [m, k]
    indices,  # [m, k]
    logits,  # [m, v]
    suppressed,  # [count] or null
    v,
    k,
    count,
    BLOCK: tl.constexpr,
):
    """values, indices = the k largest of log softmax(logits), suppressed ids left out of the sum; equal ones by id.

    One program a row. Pass j looks for the largest that comes after the one of pass j - 1 in this order: no list of those
    taken is needed. A row with NaN gives NaN for the ids 0, 1, ...
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * v
    lane = tl.arange(0, BLOCK)
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    for first in range(0, v, BLOCK):
        highest = tl.maximum(highest, _logits(logits, first + lane, suppressed, v, count))
    top = tl.max(highest, 0)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, v, BLOCK):
        total += tl.exp(_logits(logits, first + lane, suppressed, v, count) - top)
    log_total = tl.log(tl.sum(total, 0))

    last, last_id = float("inf"), -1
    for j in range(k):
        best = tl.full((BLOCK,), -float("inf"), tl.float32)
        best_id = tl.full((BLOCK,), _NONE, tl.int32)
        for first in range(0, v, BLOCK):
            ids = first + lane
            value = _logits(logits, ids, suppressed, v, count) - top - log_total
            value = tl.where(value != value, -float("inf"), value)
            after = (value < last) | ((value == last) & (ids > last_id))
            better = (ids < v) & after & ((value > best) | (best_id == _NONE))
            best, best_id = tl.where(better, value, best), tl.where(better, ids, best_id)
        last = tl.max(best, 0)
        last_id = tl.min(tl.where(best == last, best_id, _NONE), 0)
        tl.store(values + row * k + j, tl.where(log_total != log_total, log_total, last))
        tl.store(indices + row * k + j, last_id)
