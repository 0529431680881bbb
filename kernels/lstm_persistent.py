"""LSTM: all steps of a sequence in one cooperative launch, the recurrent weights held on the chip (docs/math/lstm.md).

A program owns BLOCK_H hidden units of BLOCK_N sequences: its slice of w_h is loaded once, before the loop over steps, and
its part of the state stays in registers. h, or on the way back the gradients of the gates, goes to the other programs of
the same sequences through global memory. `arrived` counts, for each batch tile, the programs that finished a step: each
waits there for the others, so that all of them must run at once. T is as in lstm.py.
"""

import triton
import triton.language as tl

from ._device import accumulate, cell_gradients, dot, sigmoid, split_gates, tanh


@triton.jit
def _arrive(counter):
    """Tell the other programs of the batch tile that all threads of this one have written their part of a step."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def _wait(counter, target):
    """Until so many arrivals were counted; what those programs wrote may be read then."""
    while tl.atomic_add(counter, 0, sem="acquire") < target:
        pass
    tl.debug_barrier()


@triton.jit
def forward(
    h,  # [T, N, H]
    c,  # [T, N, H]
    gates,  # [T, N, 4H]; holds x w_x^T + b before
    h0,  # [N, H]
    c0,  # [N, H] or absent
    w_h,  # [4H, H]
    mask,  # [T, N] or absent
    arrived,  # [batch tiles], zero before
    steps,
    n,
    hidden,
    has_c,
    masked,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """h, c and the activated gates of all steps. CHUNKS blocks of BLOCK_K numbers cover H, which is a multiple of BLOCK_K."""
    first = tl.program_id(1).to(tl.int64) * BLOCK_N
    counter = arrived + tl.program_id(1)
    programs = tl.num_programs(0)
    row = tl.arange(0, BLOCK_N)
    present = first + row < n
    units = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    at = row[:, None] * hidden + units[None, :]
    inside = present[:, None] & (units < hidden)[None, :]
    column = tl.arange(0, 4 * BLOCK_H)
    column_unit = tl.program_id(0) * BLOCK_H + column // 4
    gate_rows = (column % 4) * hidden + column_unit
    ks = tl.arange(0, BLOCK_K)
    weights = ()
    for chunk in tl.static_range(CHUNKS):
        known = (column_unit < hidden)[None, :] & (chunk * BLOCK_K + ks < hidden)[:, None]
        at_w = gate_rows[None, :] * hidden + (chunk * BLOCK_K + ks)[:, None]
        weights = weights + (tl.load(w_h + at_w, mask=known, other=0.0),)
    # Rows and blocks past the ends read the last ones again: they need no masks, and the weights there are zero.
    from_h = tl.minimum(row, n - 1 - first)[:, None] * hidden + ks[None, :]
    h_before = h0 + first * hidden
    state = tl.load(c0 + first * hidden + at, mask=inside & (units < hidden * has_c)[None, :], other=0.0)
    kept = tl.load(h_before + at, mask=inside, other=0.0).to(tl.float32)
    for step in tl.range(0, steps, num_stages=1):
        now = n.to(tl.int64) * step + first  # the first row of this program
        gate = gates + now * (4 * hidden) + row[:, None] * (4 * hidden) + units[None, :]
        xi = tl.load(gate, mask=inside, other=0.0)
        xf = tl.load(gate + hidden, mask=inside, other=0.0)
        xg = tl.load(gate + 2 * hidden, mask=inside, other=0.0)
        xo = tl.load(gate + 3 * hidden, mask=inside, other=0.0)
        if step > 0:
            _wait(counter, step * programs)
        acc = tl.zeros([BLOCK_N, 4 * BLOCK_H], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            left = tl.load(h_before + tl.minimum(chunk * BLOCK_K, hidden - BLOCK_K) + from_h)
            acc = dot(left, weights[chunk], acc, PRECISION)
        zi, zf, zg, zo = split_gates(acc, BLOCK_N, BLOCK_H)
        gi, gf, gg, go = sigmoid(zi + xi), sigmoid(zf + xf), tanh(zg + xg), sigmoid(zo + xo)
        new_c = gf * state + gi * gg
        new_h = (go * tanh(new_c)).to(h.dtype.element_ty).to(tl.float32)
        if masked != 0:  # x may be anything there
            runs = (tl.load(mask + now + row, mask=present, other=0) != 0)[:, None]
            new_c, new_h = tl.where(runs, new_c, state), tl.where(runs, new_h, kept)
            gi, gf = tl.where(runs, gi, 0.0), tl.where(runs, gf, 0.0)
            gg, go = tl.where(runs, gg, 0.0), tl.where(runs, go, 0.0)
        state, kept = new_c, new_h
        tl.store(h + now * hidden + at, new_h.to(h.dtype.element_ty), mask=inside)
        _arrive(counter)
        tl.store(c + now * hidden + at, new_c, mask=inside)
        tl.store(gate, gi, mask=inside)
        tl.store(gate + hidden, gf, mask=inside)
        tl.store(gate + 2 * hidden, gg, mask=inside)
        tl.store(gate + 3 * hidden, go, mask=inside)
        h_before = h + now * hidden


@triton.jit
def backward(
    gates,  # [T, N, 4H]: activated before, the gradients of the pre-activations after
    dh0,  # [N, H] or absent
    dc0,  # [N, H] or absent
    dh,  # [T, N, H] or absent
    dc_n,  # [N, H] or absent
    c,  # [T, N, H]
    c0,  # [N, H] or absent
    w_h,  # [4H, H]
    mask,  # [T, N] or absent
    arrived,  # [batch tiles], zero before
    steps,
    n,
    hidden,
    has_dh,
    has_dc,
    has_c,
    masked,
    wants_h,
    wants_c,
    beta_h,
    beta_c,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The gradients of all pre-activations and, where wanted, of the initial state. CHUNKS blocks of BLOCK_K numbers cover
    4H, which is a multiple of BLOCK_K."""
    first = tl.program_id(1).to(tl.int64) * BLOCK_N
    counter = arrived + tl.program_id(1)
    programs = tl.num_programs(0)
    row = tl.arange(0, BLOCK_N)
    present = first + row < n
    units = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    at = row[:, None] * hidden + units[None, :]
    inside = present[:, None] & (units < hidden)[None, :]
    k = 4 * hidden
    ks = tl.arange(0, BLOCK_K)
    weights = ()
    for chunk in tl.static_range(CHUNKS):
        known = (chunk * BLOCK_K + ks < k)[:, None] & (units < hidden)[None, :]
        at_w = (chunk * BLOCK_K + ks)[:, None] * hidden + units[None, :]
        weights = weights + (tl.load(w_h + at_w, mask=known, other=0.0),)
    # As in `forward`: no masks.
    from_dz = tl.minimum(row, n - 1 - first)[:, None] * k + ks[None, :]
    past = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)  # what reaches h past a masked step
    into_h = past
    into_c = tl.load(dc_n + first * hidden + at, mask=inside & (units < hidden * has_dc)[None, :], other=0.0)
    for done in tl.range(1, steps + 1, num_stages=1):
        step = steps - done
        now = n.to(tl.int64) * step + first  # the first row of this program
        if has_dh != 0:
            into_h += tl.load(dh + now * hidden + at, mask=inside, other=0.0).to(tl.float32)
        c_before, has_before = c0 + first * hidden, has_c
        if step > 0:
            c_before, has_before = c + (now - n) * hidden, 1
        gate = gates + now * k + row[:, None] * k + units[None, :]
        gi = tl.load(gate, mask=inside, other=0.0)
        gf = tl.load(gate + hidden, mask=inside, other=0.0)
        gg = tl.load(gate + 2 * hidden, mask=inside, other=0.0)
        go = tl.load(gate + 3 * hidden, mask=inside, other=0.0)
        state = tl.load(c + now * hidden + at, mask=inside, other=0.0)
        state_before = tl.load(c_before + at, mask=inside & (units < hidden * has_before)[None, :], other=0.0)
        di, df, dg, do, dc = cell_gradients(gi, gf, gg, go, state, state_before, into_h, into_c)
        if masked != 0:
            runs = (tl.load(mask + now + row, mask=present, other=0) != 0)[:, None]
            di, df = tl.where(runs, di, 0.0), tl.where(runs, df, 0.0)
            dg, do = tl.where(runs, dg, 0.0), tl.where(runs, do, 0.0)
            dc = tl.where(runs, dc, into_c)
            past = tl.where(runs, 0.0, into_h)
        into_c = dc
        tl.store(gate, di, mask=inside)
        tl.store(gate + hidden, df, mask=inside)
        tl.store(gate + 2 * hidden, dg, mask=inside)
        tl.store(gate + 3 * hidden, do, mask=inside)
        _arrive(counter)
        _wait(counter, done * programs)
        into_h = past
        dz = gates + now * k
        for chunk in tl.static_range(CHUNKS):
            left = tl.load(dz + tl.minimum(chunk * BLOCK_K, k - BLOCK_K) + from_dz)
            into_h = dot(left.to(w_h.dtype.element_ty), weights[chunk], into_h, PRECISION)
    if wants_h != 0:
        accumulate(dh0 + first * hidden + at, into_h, beta_h, inside)
    if wants_c != 0:
        accumulate(dc0 + first * hidden + at, into_c, beta_c, inside)
