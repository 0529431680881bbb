"""Device functions that several kernels share."""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. PRECISION: of float32 products, "tf32", "tf32x3" or "ieee"; "interpreter" in the interpreter."""
    if PRECISION == "interpreter":  # which takes bfloat16 for integers in a product
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def accumulate(pointer, value, beta, mask):
    """pointer = beta * pointer + value, rounded once; with beta 0 the old contents are not read."""
    if beta != 0.0:
        value += beta * tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def mix(x):
    """A bijection of 32-bit words that spreads every bit over all (Wellons's lowbias32). x: uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_keep(counter, seed_low, seed_high, threshold):
    """Whether dropout keeps the elements of these counters (`dropout` in pycap.backends); all modulo 2**32.

    counter: integers, of which the low 32 bits count. seed_low, seed_high: the halves of the seed. threshold: p * 2**32.
    """
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    return mix(mix(counter.to(tl.uint32) + low) ^ high) >= threshold.to(tl.uint32)


@triton.jit
def tile(tall, wide):
    """(row, column) of this program's tile among tall x wide: eight rows down, then the next column, so that programs which
    run together share what they read."""
    program = tl.program_id(0)
    band = program // (8 * wide)
    height = tl.minimum(tall - 8 * band, 8)
    within = program - band * 8 * wide
    return 8 * band + within % height, within // height


@triton.jit
def rows_product(
    x,  # [m, k]
    w,  # [n, k]
    m,
    n,
    k,
    tile_m,
    tile_n,
    start,
    stop,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile [BLOCK_M, BLOCK_N] of x w^T in float32, over start <= k < stop (stop: start plus a multiple of BLOCK_K, or k).

    w is converted to x's type. Rows and columns past the ends hold anything.
    """
    # They read the last row or column, and need no mask.
    row = tl.minimum(tl.arange(0, BLOCK_M), m - 1 - tile_m * BLOCK_M)
    column = tl.minimum(tl.arange(0, BLOCK_N), n - 1 - tile_n * BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    left = row[:, None] * k + inner[None, :]
    right = inner[:, None] + column[None, :] * k
    x += tile_m.to(tl.int64) * BLOCK_M * k
    w += tile_n.to(tl.int64) * BLOCK_N * k
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(start, stop, BLOCK_K):
        inside = at + inner < k
        a = tl.load(x + at + left, mask=inside[None, :], other=0.0)
        c = tl.load(w + at + right, mask=inside[:, None], other=0.0)
        value = dot(a, c.to(a.dtype), value, PRECISION)
    return value


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) in float32; exp may overflow to infinity, which gives 0."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh in float32, within a few units in the last place at any size.

    Near 0, where the form in exp(-2|x|) would cancel, an odd polynomial: a Chebyshev fit of (tanh(x)/x - 1)/x**2 on
    |x| < 0.55, whose own error is below float32's rounding.
    """
    square = x * x
    series = -0.006615746766328812 * square + 0.021312739700078964
    series = series * square - 0.053910065442323685
    series = series * square + 0.13333117961883545
    series = series * square - 0.3333333134651184
    power = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - power) / (1.0 + power)
    return tl.where(tl.abs(x) < 0.55, x + x * square * series, tl.where(x < 0.0, -far, far))


@triton.jit
def split_gates(z, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """(i, f, g, o), each [ROWS, UNITS], of z [ROWS, 4 * UNITS], whose column 4*unit + k holds gate k."""
    even, odd = tl.split(tl.reshape(z, [ROWS, UNITS, 2, 2]))
    i, g = tl.split(even)
    f, o = tl.split(odd)
    return i, f, g, o


@triton.jit
def cell_gradients(i, f, g, o, c, c_before, dh, dc):
    """The gradients of one LSTM step's pre-activations i, f, g, o, and of the cell state before it (docs/math/lstm.md)."""
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    return (
        dc * g * i * (1.0 - i),
        dc * c_before * f * (1.0 - f),
        dc * i * (1.0 - g * g),
        dh * tanh_c * o * (1.0 - o),
        dc * f,
    )


@triton.jit
def store_rows(y, value, tile_m, tile_n, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store a tile [BLOCK_M, BLOCK_N] of y [m, n]."""
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside = (row < m - tile_m * BLOCK_M)[:, None] & (column < n - tile_n * BLOCK_N)[None, :]
    y += tile_m.to(tl.int64) * BLOCK_M * n + tile_n * BLOCK_N
    tl.store(y + row[:, None] * n + column[None, :], value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def store_tile(y, value, tile_m, tile_n, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """`store_rows`, by 16 bytes at a time where n is a multiple of 16 (and y aligned)."""
    if n % 16 == 0:
        store_rows(y, value, tile_m, tile_n, m, n // 16 * 16, BLOCK_M, BLOCK_N)  # a multiple that the compiler sees
    else:
        store_rows(y, value, tile_m, tile_n, m, n, BLOCK_M, BLOCK_N)
