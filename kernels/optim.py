"""Update rules over lists of arrays, one launch a list, and the gradients' norm.

The arrays are named by a table [1 + lists, n] of 64-bit words in device memory: a row of sizes, then a row of addresses a
list. `plan` [programs, 2] has for each program its array and its block of that.

What changes from step to step comes as arguments or, for a step that is recorded once and replayed, from device memory:
`rates` holds lr, bias1 and bias2, `factor` what gradients are multiplied by. Where `factor` is not finite, nothing is changed.

ALIGNED: every array lies at a multiple of 16 bytes and has a multiple of four elements, so that a lane loads 16 bytes at once.
"""

import triton
import triton.language as tl


@triton.jit
def _place(plan, table, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """This program's array, its elements, and how many the array has."""
    array = tl.load(plan + 2 * tl.program_id(0))
    block = tl.load(plan + 2 * tl.program_id(0) + 1)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(table + array)
    if ALIGNED:
        size = tl.multiple_of(size, 4)
    return array, at, size


@triton.jit
def _floats(table, arrays, number, array, ALIGNED: tl.constexpr):
    """Where the array of list `number` lies."""
    pointer = tl.load(table + number * arrays + array).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _effective(gradient, parameter, grad_scale, clip, weight_decay):
    """clip(gradient * grad_scale, +-clip) + weight_decay * parameter; NaN stays NaN."""
    gradient *= grad_scale
    if clip != 0:
        gradient = tl.where(gradient > clip, clip, tl.where(gradient < -clip, -clip, gradient))
    if weight_decay != 0:
        gradient += weight_decay * parameter
    return gradient


@triton.jit
def _write(table, arrays, copies, array, at, inside, parameter, ALIGNED: tl.constexpr):
    """The parameter, and its copy in bfloat16 where list number `copies` has an address."""
    tl.store(_floats(table, arrays, 1, array, ALIGNED) + at, parameter, mask=inside)
    copy = tl.load(table + copies * arrays + array)
    if copy != 0:
        pointer = copy.to(tl.pointer_type(tl.bfloat16))
        if ALIGNED:
            pointer = tl.multiple_of(pointer, 16)
        tl.store(pointer + at, parameter.to(tl.bfloat16), mask=inside)


@triton.jit
def sgd(
    table,  # [5, arrays]: sizes, parameters, gradients, momenta, copies
    plan,  # [programs, 2]
    rates,  # [3] or null
    factor,  # [1] or null
    arrays,
    lr,
    momentum,
    weight_decay,
    grad_scale,
    clip,
    has_rates,
    has_factor,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """m = momentum * m + g; p -= lr * m."""
    array, at, size = _place(plan, table, ALIGNED, BLOCK)
    if has_rates != 0:
        lr = tl.load(rates)
    if has_factor != 0:
        grad_scale = tl.load(factor)
        size = tl.where(grad_scale - grad_scale == 0.0, size, 0)
    inside = at < size
    p = tl.load(_floats(table, arrays, 1, array, ALIGNED) + at, mask=inside, other=0.0)
    g = tl.load(_floats(table, arrays, 2, array, ALIGNED) + at, mask=inside, other=0.0)
    momenta = _floats(table, arrays, 3, array, ALIGNED) + at
    m = momentum * tl.load(momenta, mask=inside, other=0.0) + _effective(g, p, grad_scale, clip, weight_decay)
    tl.store(momenta, m, mask=inside)
    _write(table, arrays, 4, array, at, inside, p - lr * m, ALIGNED)


@triton.jit
def rmsprop(
    table,  # [5, arrays]: sizes, parameters, gradients, squares, copies
    plan,  # [programs, 2]
    rates,  # [3] or null
    factor,  # [1] or null
    arrays,
    lr,
    alpha,
    rest,  # 1 - alpha
    eps,
    weight_decay,
    grad_scale,
    clip,
    has_rates,
    has_factor,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """v = alpha * v + (1 - alpha) * g^2; p -= lr * g / (sqrt(v) + eps)."""
    array, at, size = _place(plan, table, ALIGNED, BLOCK)
    if has_rates != 0:
        lr = tl.load(rates)
    if has_factor != 0:
        grad_scale = tl.load(factor)
        size = tl.where(grad_scale - grad_scale == 0.0, size, 0)
    inside = at < size
    p = tl.load(_floats(table, arrays, 1, array, ALIGNED) + at, mask=inside, other=0.0)
    g = tl.load(_floats(table, arrays, 2, array, ALIGNED) + at, mask=inside, other=0.0)
    g = _effective(g, p, grad_scale, clip, weight_decay)
    squares = _floats(table, arrays, 3, array, ALIGNED) + at
    v = alpha * tl.load(squares, mask=inside, other=0.0) + rest * g * g
    tl.store(squares, v, mask=inside)
    _write(table, arrays, 4, array, at, inside, p - lr * g / (tl.sqrt_rn(v) + eps), ALIGNED)


@triton.jit
def adam(
    table,  # [6, arrays]: sizes, parameters, gradients, first and second moments, copies
    plan,  # [programs, 2]
    rates,  # [3] or null
    factor,  # [1] or null
    arrays,
    lr,
    bias1,  # 1 - beta1**step
    bias2,  # 1 - beta2**step
    beta1,
    rest1,  # 1 - beta1
    beta2,
    rest2,  # 1 - beta2
    eps,
    weight_decay,
    grad_scale,
    clip,
    has_rates,
    has_factor,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2; p -= lr/bias1 * m / (sqrt(v/bias2) + eps)."""
    array, at, size = _place(plan, table, ALIGNED, BLOCK)
    if has_rates != 0:
        lr, bias1, bias2 = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2)
    if has_factor != 0:
        grad_scale = tl.load(factor)
        size = tl.where(grad_scale - grad_scale == 0.0, size, 0)
    inside = at < size
    p = tl.load(_floats(table, arrays, 1, array, ALIGNED) + at, mask=inside, other=0.0)
    g = tl.load(_floats(table, arrays, 2, array, ALIGNED) + at, mask=inside, other=0.0)
    g = _effective(g, p, grad_scale, clip, weight_decay)
    first, second = _floats(table, arrays, 3, array, ALIGNED) + at, _floats(table, arrays, 4, array, ALIGNED) + at
    m = beta1 * tl.load(first, mask=inside, other=0.0) + rest1 * g
    v = beta2 * tl.load(second, mask=inside, other=0.0) + rest2 * g * g
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)
    _write(table, arrays, 5, array, at, inside, p - lr / bias1 * m / (tl.sqrt_rn(v / bias2) + eps), ALIGNED)


@triton.jit
def sum_squares(
    partials,  # [programs], float64
    table,  # [2, arrays]: sizes, arrays
    plan,  # [programs, 2]: blocks of CHUNK
    arrays,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program's part of the sum of squares, in float64: float32 would overflow from 2e19 on."""
    array = tl.load(plan + 2 * tl.program_id(0))
    start = tl.load(plan + 2 * tl.program_id(0) + 1).to(tl.int64) * CHUNK
    size = tl.load(table + array)
    if ALIGNED:
        size = tl.multiple_of(size, 4)
    stop = tl.minimum(size, start + CHUNK)
    pointer = _floats(table, arrays, 1, array, ALIGNED)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, CHUNK, BLOCK):
        at = start + first + tl.arange(0, BLOCK)
        value = tl.load(pointer + at, mask=at < stop, other=0.0).to(tl.float64)
        total += value * value
    tl.store(partials + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def total(
    out,  # [1]
    x,  # [count]
    count,
    beta,
    BLOCK: tl.constexpr,
):
    """out = beta * out + the sum of x, in float64 and in an order that depends on nothing but count. One program."""
    sums = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(x + at, mask=at < count, other=0.0).to(tl.float64)
    value = tl.sum(sums, 0)
    if beta != 0:
        value += beta * tl.load(out).to(tl.float64)
    tl.store(out, value.to(out.dtype.element_ty))


@triton.jit
def clip_factors(
    factors,  # [groups]
    squares,  # [groups], float64: sums of squares
    max_norms,  # [groups]
    loss,  # [1], float64, or null
    failed,  # [1]
    groups,
    scale,
    has_loss,
    BLOCK: tl.constexpr,
):
    """factors = scale * min(1, max_norm / norm), norm being that of the scaled gradients; max_norm 0: any norm.

    Once failed is not 0, or the loss or a norm is not finite, all factors are NaN and failed is 1. One program.
    """
    bad = tl.load(failed) != 0
    if has_loss != 0:
        value = tl.load(loss)
        bad |= value - value != 0.0
    for first in range(0, groups, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(squares + at, mask=at < groups, other=0.0)
        bad |= tl.max((value - value != 0.0).to(tl.int32), 0) != 0
    for first in range(0, groups, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < groups
        norm = tl.abs(tl.sqrt(tl.load(squares + at, mask=inside, other=0.0)) * scale)
        most = tl.load(max_norms + at, mask=inside, other=0.0).to(tl.float64)
        above = (most > 0) & (norm > most)
        factor = tl.where(above, scale * (most / tl.where(above, norm, 1.0)), scale)
        tl.store(factors + at, tl.where(bad, float("nan"), factor).to(tl.float32), mask=inside)
    tl.store(failed, bad.to(tl.int32))
