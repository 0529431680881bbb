"""LSTM: one launch a step, forward and backward, and the gradients of the weights over all steps (docs/math/lstm.md).

T is the type of x, h, their gradients and the weights as they are multiplied; c, the gates, b and all sums are float32.
"""

import triton
import triton.language as tl

from ._device import accumulate, cell_gradients, dot, sigmoid, split_gates, tanh


@triton.jit
def _add_product(
    acc, a, w, inside, gate_rows, known, k, stride, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr
):
    """acc + a[:ROWS, :k] @ w[gate_rows, :k]^T, of rows of `stride` numbers; rows that are not `inside` (`known`) count as 0."""
    ks = tl.arange(0, BLOCK_K)
    from_a = tl.arange(0, ROWS)[:, None] * stride + ks[None, :]
    from_w = gate_rows[None, :] * stride + ks[:, None]
    for start in range(0, k, BLOCK_K):
        left = tl.load(a + from_a, mask=inside[:, None] & (ks < k - start)[None, :], other=0.0)
        right = tl.load(w + from_w, mask=known[None, :] & (ks < k - start)[:, None], other=0.0)
        acc = dot(left, right, acc, PRECISION)
        a += BLOCK_K
        w += BLOCK_K
    return acc


@triton.jit
def cell_forward(
    h,  # [T, N, H]
    c,  # [T, N, H]
    gates,  # [T, N, 4H]; unless FUSED it holds x w_x^T + b before
    x,  # [T, N, I], where FUSED
    h0,  # [N, H] or absent
    c0,  # [N, H] or absent
    w_x,  # [4H, I], where FUSED
    w_h,  # [4H, H]
    b,  # [4H], where FUSED
    mask,  # [T, N] or absent
    step,
    n,
    i,
    hidden,
    has_h,
    has_c,
    masked,
    FUSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step: h, c and the activated gates of BLOCK_H hidden units of BLOCK_N sequences.

    The product has the four gates of a unit in neighbouring columns, so that a program holds all that a unit needs.
    has_h, has_c: whether there is a state before this step.
    """
    first = tl.program_id(1).to(tl.int64) * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    present = first + row < n
    units = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.arange(0, 4 * BLOCK_H)
    column_unit = tl.program_id(0) * BLOCK_H + column // 4
    gate_rows = (column % 4) * hidden + column_unit
    known = column_unit < hidden
    now = step.to(tl.int64) * n + first  # the first row of this program
    h_before, c_before = h0 + first * hidden, c0 + first * hidden
    if step > 0:
        h_before, c_before = h + (now - n) * hidden, c + (now - n) * hidden
    acc = tl.zeros([BLOCK_N, 4 * BLOCK_H], tl.float32)
    if FUSED:
        acc = _add_product(acc, x + now * i, w_x, present, gate_rows, known, i, i, BLOCK_N, BLOCK_K, PRECISION)
    acc = _add_product(
        acc, h_before, w_h, present, gate_rows, known, hidden * has_h, hidden, BLOCK_N, BLOCK_K, PRECISION
    )
    zi, zf, zg, zo = split_gates(acc, BLOCK_N, BLOCK_H)

    at = row[:, None] * hidden + units[None, :]
    inside = present[:, None] & (units < hidden)[None, :]
    gate = gates + now * (4 * hidden) + row[:, None] * (4 * hidden) + units[None, :]
    if FUSED:
        zi += tl.load(b + units, mask=units < hidden, other=0.0)[None, :]
        zf += tl.load(b + hidden + units, mask=units < hidden, other=0.0)[None, :]
        zg += tl.load(b + 2 * hidden + units, mask=units < hidden, other=0.0)[None, :]
        zo += tl.load(b + 3 * hidden + units, mask=units < hidden, other=0.0)[None, :]
    else:
        zi += tl.load(gate, mask=inside, other=0.0)
        zf += tl.load(gate + hidden, mask=inside, other=0.0)
        zg += tl.load(gate + 2 * hidden, mask=inside, other=0.0)
        zo += tl.load(gate + 3 * hidden, mask=inside, other=0.0)
    gi, gf, gg, go = sigmoid(zi), sigmoid(zf), tanh(zg), sigmoid(zo)
    state = tl.load(c_before + at, mask=inside & (units < hidden * has_c)[None, :], other=0.0)
    new_c = gf * state + gi * gg
    new_h = go * tanh(new_c)
    if masked != 0:  # x may be anything there
        runs = (tl.load(mask + now + row, mask=present, other=0) != 0)[:, None]
        kept = tl.load(h_before + at, mask=inside & (units < hidden * has_h)[None, :], other=0.0).to(tl.float32)
        new_c, new_h = tl.where(runs, new_c, state), tl.where(runs, new_h, kept)
        gi, gf = tl.where(runs, gi, 0.0), tl.where(runs, gf, 0.0)
        gg, go = tl.where(runs, gg, 0.0), tl.where(runs, go, 0.0)
    tl.store(h + now * hidden + at, new_h.to(h.dtype.element_ty), mask=inside)
    tl.store(c + now * hidden + at, new_c, mask=inside)
    tl.store(gate, gi, mask=inside)
    tl.store(gate + hidden, gf, mask=inside)
    tl.store(gate + 2 * hidden, gg, mask=inside)
    tl.store(gate + 3 * hidden, go, mask=inside)


@triton.jit
def cell_backward(
    gates,  # [T, N, 4H]: activated up to `step`, gradients of the pre-activations after it
    carry_h,  # [N, H]: scratch: what reaches h past a masked step
    carry_c,  # [N, H]: scratch: the gradient of the cell state
    dh0,  # [N, H] or absent
    dc0,  # [N, H] or absent
    dh,  # [T, N, H] or absent
    dc_n,  # [N, H] or absent
    c,  # [T, N, H]
    c0,  # [N, H] or absent
    w_h,  # [4H, H]
    mask,  # [T, N] or absent
    step,
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
):
    """One step back, for BLOCK_H hidden units of BLOCK_N sequences: the gates become their pre-activations' gradients.

    The product that carries the gradients of the step after (steps - 1 has none) to this step's h comes first, in the
    same launch. step -1 stands for the initial state: dh0 and dc0 are written, each with its beta, where wanted.
    """
    first = tl.program_id(1).to(tl.int64) * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    present = first + row < n
    units = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    at = row[:, None] * hidden + units[None, :]
    state_at = first * hidden + at
    inside = present[:, None] & (units < hidden)[None, :]
    now = step.to(tl.int64) * n + first  # the first row of this program
    k = 4 * hidden
    later, dc_from, has_dc_from = 1, carry_c, 1
    if step + 1 == steps:
        later, dc_from, has_dc_from = 0, dc_n, has_dc
    ks = tl.arange(0, BLOCK_K)
    dz, w = gates + (now + n) * k, w_h
    from_dz = row[:, None] * k + ks[None, :]
    from_w = ks[:, None] * hidden + units[None, :]
    into_h = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    for start in range(0, k * later * wants_h, BLOCK_K):
        left = tl.load(dz + from_dz, mask=present[:, None] & (ks < k - start)[None, :], other=0.0)
        right = tl.load(w + from_w, mask=(ks < k - start)[:, None] & (units < hidden)[None, :], other=0.0)
        into_h = dot(left.to(w_h.dtype.element_ty), right, into_h, PRECISION)
        dz += BLOCK_K
        w += BLOCK_K * hidden
    if masked != 0:
        into_h += tl.load(carry_h + state_at, mask=inside & (units < hidden * later)[None, :], other=0.0)
    into_c = tl.load(dc_from + state_at, mask=inside & (units < hidden * has_dc_from)[None, :], other=0.0)
    if step < 0:
        accumulate(dh0 + state_at, into_h, beta_h, inside & (units < hidden * wants_h)[None, :])
        accumulate(dc0 + state_at, into_c, beta_c, inside & (units < hidden * wants_c)[None, :])
    else:
        if has_dh != 0:
            into_h += tl.load(dh + now * hidden + at, mask=inside, other=0.0).to(tl.float32)
        c_before = c0 + first * hidden
        if step > 0:
            c_before = c + (now - n) * hidden
        gate = gates + now * k + row[:, None] * k + units[None, :]
        gi = tl.load(gate, mask=inside, other=0.0)
        gf = tl.load(gate + hidden, mask=inside, other=0.0)
        gg = tl.load(gate + 2 * hidden, mask=inside, other=0.0)
        go = tl.load(gate + 3 * hidden, mask=inside, other=0.0)
        state = tl.load(c + now * hidden + at, mask=inside, other=0.0)
        state_before = tl.load(c_before + at, mask=inside & (units < hidden * has_c)[None, :], other=0.0)
        di, df, dg, do, dc = cell_gradients(gi, gf, gg, go, state, state_before, into_h, into_c)
        if masked != 0:
            runs = (tl.load(mask + now + row, mask=present, other=0) != 0)[:, None]
            di, df = tl.where(runs, di, 0.0), tl.where(runs, df, 0.0)
            dg, do = tl.where(runs, dg, 0.0), tl.where(runs, do, 0.0)
            dc = tl.where(runs, dc, into_c)
            tl.store(carry_h + state_at, tl.where(runs, 0.0, into_h), mask=inside)
        tl.store(gate, di, mask=inside)
        tl.store(gate + hidden, df, mask=inside)
        tl.store(gate + 2 * hidden, dg, mask=inside)
        tl.store(gate + 3 * hidden, do, mask=inside)
        tl.store(carry_c + state_at, dc, mask=inside)


@triton.jit
def backward_weight(
    dw,  # [G, I]
    dz,  # [M, G]
    first,  # [shift, I] or absent
    rest,  # [M - shift, I]
    mask,  # [M] or absent
    m,
    g,
    i,
    shift,
    has_first,
    masked,
    beta,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dw = beta * dw + dz^T [first; rest], all steps' rows at once; rows that are masked may hold anything.

    For w_h `rest` is h and `first` the initial state (zeros, where it is absent), so that each row stands one step late.
    """
    at_g = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    at_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    at_m = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_G, BLOCK_I], tl.float32)
    for start in range(0, shift * has_first, BLOCK_M):
        rows = (start + at_m).to(tl.int64)
        left = tl.load(
            dz + rows[None, :] * g + at_g[:, None], mask=(at_g < g)[:, None] & (rows < shift)[None, :], other=0.0
        )
        right = tl.load(
            first + rows[:, None] * i + at_i[None, :], mask=(rows < shift)[:, None] & (at_i < i)[None, :], other=0.0
        )
        acc = dot(left.to(rest.dtype.element_ty), right, acc, PRECISION)
    for start in range(shift, m, BLOCK_M):
        rows = (start + at_m).to(tl.int64)
        left = tl.load(
            dz + rows[None, :] * g + at_g[:, None], mask=(at_g < g)[:, None] & (rows < m)[None, :], other=0.0
        )
        runs = rows < m
        if masked != 0:
            runs = tl.load(mask + rows, mask=rows < m, other=0) != 0
        right = tl.load(
            rest + (rows - shift)[:, None] * i + at_i[None, :], mask=runs[:, None] & (at_i < i)[None, :], other=0.0
        )
        acc = dot(left.to(rest.dtype.element_ty), right, acc, PRECISION)
    at = at_g.to(tl.int64)[:, None] * i + at_i[None, :]
    accumulate(dw + at, acc, beta, (at_g < g)[:, None] & (at_i < i)[None, :])


@triton.jit
def backward_bias(
    db,  # [G]
    dz,  # [M, G]
    m,
    g,
    beta,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """db = beta * db + the column sums of dz."""
    at_g = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    total = tl.zeros([BLOCK_M, BLOCK_G], tl.float32)
    for start in range(0, m, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (rows < m)[:, None] & (at_g < g)[None, :]
        total += tl.load(dz + rows[:, None] * g + at_g[None, :], mask=inside, other=0.0)
    accumulate(db + at_g, tl.sum(total, 0), beta, at_g < g)
