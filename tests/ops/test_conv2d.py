"""conv2d: definition, gradients in every variant, fused against unfused, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.device import bfloat16
from pycap.testing import compare_op, gradcheck
from pycap.testing.cases import unpack_winners, winograd_slack
from tests import naive
from tests.ops import winograd

KINDS = {"plain": {}, "relu": {"relu": True}, "pool": {"relu": True, "pool": True}}


def draw(n, h, w, c, k, r, s, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((n, h, w, c)), rng.standard_normal((k, r, s, c)) / (r * s * c) ** 0.5]
    return arrays + ([rng.standard_normal(k) * 0.5] if bias else [])


SHAPES = [
    (2, 5, 7, 3, 2, 3, 3, 1, 1), (1, 6, 5, 1, 3, 3, 3, 1, 0), (1, 5, 4, 2, 3, 3, 3, 1, 2), (2, 7, 6, 2, 3, 3, 3, 2, 1),
    (1, 4, 3, 3, 2, 1, 1, 1, 0), (1, 5, 6, 3, 2, 1, 1, 2, 0), (1, 7, 6, 2, 2, 5, 5, 1, 2), (1, 9, 8, 1, 2, 7, 7, 2, 3),
    (1, 7, 9, 2, 5, 1, 3, 1, 1), (1, 8, 8, 2, 1, 3, 3, 3, 0),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_reference_is_the_definition(shape, kind, bias):
    *dims, stride, padding = shape
    x, w, *b = draw(*dims, bias=bias)
    b = b[0] if bias else None
    full = naive.conv2d(x, w, b, stride, padding, kind != "plain")
    if kind == "pool":
        expected, winners = naive.maxpool(full)
        y, argmax = np.empty(expected.shape), np.empty(winners.shape, np.uint8)
        reference.conv2d_pool_forward(y, argmax, x, w, b, stride, padding)
        np.testing.assert_array_equal(argmax, winners)
    else:
        expected, y = full, np.empty(full.shape)
        reference.conv2d_forward(y, x, w, b, stride, padding, kind == "relu")
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


VARIANTS = [
    (r, stride, padding, kind) for r, stride, padding, kind in itertools.product((1, 3, 5, 7), (1, 2), (0, 1, 2), KINDS)
]


@pytest.mark.gradcheck
@pytest.mark.parametrize(("r", "stride", "padding", "kind"), VARIANTS)
def test_gradient(r, stride, padding, kind):
    arrays = draw(2, 11, 10, 2, 3, r, r, seed=r + 10 * stride + 100 * padding)
    gradcheck(lambda x, w, b: ops.conv2d(x, w, b, stride=stride, padding=padding, **KINDS[kind]), *arrays)


ODD = {
    "no_bias": ((2, 5, 7, 3, 5, 3, 3), 1, 1, False),
    "one_pixel": ((3, 1, 1, 4, 5, 3, 3), 1, 1, True),
    "wide_filter": ((2, 5, 7, 3, 2, 1, 3), 1, 1, True),
    "tall_filter": ((2, 7, 5, 2, 3, 3, 1), 2, 0, True),
    "five_channels_in_a_byte": ((1, 6, 5, 2, 5, 3, 3), 1, 1, True),
    "stride_leaves_a_rest": ((1, 9, 8, 2, 3, 3, 3), 3, 0, True),
    "tile_4n_plus_1": ((1, 9, 13, 3, 17, 3, 3), 1, 1, True),
}


@pytest.mark.gradcheck
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in ODD for k in KINDS if (n, k) != ("one_pixel", "pool")])
def test_gradient_of_odd_shapes(name, kind):
    dims, stride, padding, bias = ODD[name]
    gradcheck(lambda *t: ops.conv2d(*t, stride=stride, padding=padding, **KINDS[kind]), *draw(*dims, bias=bias))


@pytest.mark.gradcheck
def test_gradient_of_two_layers_with_shared_filters():
    x, w, b = draw(2, 6, 6, 3, 3, 3, 3)
    gradcheck(lambda x, w, b: ops.conv2d(ops.conv2d(x, w, b, relu=True), w, b, relu=True, pool=True), x, w, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("c", "k"), [(5, 17), (16, 32)])
@pytest.mark.parametrize(("r", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (7, 2, 3)])
def test_backend(backend, c, k, r, stride, padding, kind):
    slack = winograd_slack(32) if (r, stride) == (3, 1) else 0.0
    compare_op(
        lambda x, w, b: ops.conv2d(x, w, b, stride=stride, padding=padding, **KINDS[kind]),
        *draw(2, 13, 11, c, k, r, r),
        backend=backend,
        slack=slack,
    )


def test_backend_through_vgg_like_layers(backend):
    """Layers on top of each other, one of them used twice, pooled: forward and backward as a network runs them."""
    x, w1, b1 = draw(2, 11, 13, 3, 16, 3, 3)
    _, w2, b2 = draw(1, 1, 1, 16, 16, 3, 3, seed=1)
    _, w3, b3 = draw(1, 1, 1, 16, 17, 3, 3, seed=2)

    def network(x, w1, b1, w2, b2, w3, b3):
        h = ops.conv2d(x, w1, b1, relu=True)
        h = ops.conv2d(ops.conv2d(h, w2, b2, relu=True), w2, b2, relu=True, pool=True)
        return ops.conv2d(h, w3, b3, relu=True, pool=True)

    compare_op(network, x, w1, b1, w2, b2, w3, b3, backend=backend, slack=4 * winograd_slack(17))


@pytest.mark.parametrize(("c", "k"), [(3, 17), (16, 32), (3, 64)])
def test_fused_pool_is_convolution_then_pool(backend, c, k):
    arrays = [a.astype(np.float32) for a in draw(2, 9, 11, c, k, 3, 3)]
    results = []
    with backends.use(backend):
        for fused in (True, False):
            leaves = [Tensor(a, requires_grad=True) for a in arrays]
            y = ops.conv2d(*leaves, relu=True, pool=True) if fused else ops.maxpool(ops.conv2d(*leaves, relu=True))
            y.backward(np.linspace(-1, 1, y.data.size, dtype=np.float32).reshape(y.shape))
            results.append([y.data, *(leaf.grad for leaf in leaves)])
    for fused, unfused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, unfused, rtol=1e-4, atol=1e-4)


# Channels that end inside blocks of the Winograd products, few tiles (blocks in common) and many (a thread's own).
WIDE = [(2, 9, 13, 208, 176), (1, 70, 66, 176, 208), (1, 5, 6, 400, 336)]


@pytest.mark.parametrize("shape", WIDE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_backend_on_many_channels(backend, shape, kind):
    n, h, w, c, k = shape
    arrays = draw(n, h, w, c, k, 3, 3)
    compare_op(lambda x, w, b: ops.conv2d(x, w, b, **KINDS[kind]), *arrays, backend=backend, slack=winograd_slack(k))


def winograd_errors(n: int, size: int, c: int, k: int) -> dict[str, tuple[float, float, float, float]]:
    """For each pass the largest error against float64, relative to the largest value: of the C++ kernel, of the plain
    float32 Winograd, of the direct float32 sum; and the C++ kernel's, as a ratio of norms."""
    x, w, dy = (
        a.astype(np.float32) for a in (*draw(n, size, size, c, k, 3, 3, bias=False), draw(n, size, size, k, 1, 1, 1)[0])
    )
    rotated = np.ascontiguousarray(w[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    how, wide = (1, 1), [a.astype(np.float64) for a in (x, w, dy)]
    cpp = pytest.importorskip("pycap.backends.cpp")
    assert cpp._cpu.conv2d_algorithm(x.shape, w.shape, 1, 1, 0).startswith("winograd")

    def run(kernels, x, w, dy):
        y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
        kernels.conv2d_forward(y, x, w, None, *how, False)
        kernels.conv2d_backward_data(dx, dy, w, None, None, *how, 0.0)
        kernels.conv2d_backward_weight(dw, None, dy, x, None, None, *how, 0.0, 0.0)
        return {"forward": y, "backward_data": dx, "backward_weight": dw}

    plain = {
        "forward": winograd.forward(x, w),
        "backward_data": winograd.forward(dy, rotated),
        "backward_weight": winograd.backward_weight(dy, x),
    }
    exact, direct, ours = run(reference, *wide), run(reference, x, w, dy), run(cpp, x, w, dy)
    errors = {}
    for name, truth in exact.items():
        largest = np.abs(truth).max()
        worst = [float(np.abs(made[name] - truth).max() / largest) for made in (ours, plain, direct)]
        errors[name] = (*worst, float(np.linalg.norm(ours[name] - truth) / np.linalg.norm(truth)))
    return errors


@pytest.mark.parametrize("shape", [(2, 13, 16, 32), (1, 28, 128, 64), (1, 14, 512, 256)], ids=str)
def test_winograd_errs_as_its_definition_in_float32_does(shape):
    """The rule of two against plain Winograd in float32, and the bound against float64 that docs/math/conv2d.md states."""
    for name, (ours, plain, _, norms) in winograd_errors(*shape).items():
        assert ours <= 2 * plain, name
        assert ours <= 4e-6, name
        assert norms <= 2e-6, name


# The tile kernels cut an image of 80x80x64 into bands, sum 3 images of 40x40 with 160 filters in chunks that threads share,
# and chunks of their own with 64.
@pytest.mark.parametrize(
    "shape", [(1, 28, 64, 64), (1, 14, 512, 256), (1, 33, 3, 64), (1, 80, 64, 32), (3, 40, 160, 160), (5, 39, 64, 64)]
)
def test_bfloat16_errs_by_its_roundings_only(backend, shape):
    """In norm and in the worst element, against float64 with unrounded filters (docs/math/conv2d.md).

    Without tiles numbers are widened, and dw, which is not rounded to bfloat16, is float32's: where that is Winograd's, it
    errs as Winograd does.
    """
    n, side, c, k = shape
    rng = np.random.default_rng(8)
    x = np.maximum(rng.standard_normal((n, side, side, c)), 0).astype(bfloat16())
    w = (rng.standard_normal((k, 3, 3, c)) * (2 / (9 * c)) ** 0.5).astype(np.float32)
    dy = rng.standard_normal((n, side, side, k)).astype(bfloat16())
    made = [np.empty(dy.shape, dy.dtype), np.empty(x.shape, x.dtype), np.empty(w.shape, np.float32)]
    true = [np.empty(a.shape) for a in made]
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    with backends.use(backend):
        for outputs, (images, filters, gradient) in ((made, (x, w, dy)), (true, wide)):
            kernels = backends.kernels if outputs is made else reference
            kernels.conv2d_forward(outputs[0], images, filters, None, 1, 1, False)
            kernels.conv2d_backward_data(outputs[1], gradient, filters, None, None, 1, 1, 0.0)
            kernels.conv2d_backward_weight(outputs[2], None, gradient, images, None, None, 1, 1, 0.0, 0.0)
        by_winograd = backend == "cpp" and backends.bfloat16_unit() == "float32" and c % 16 == k % 16 == 0
    bounds = {"y": (3e-3, 6e-3), "dx": (3e-3, 6e-3), "dw": (3e-7, 6e-7)}
    if by_winograd:
        plain = errors(winograd.backward_weight(dy.astype(np.float32), x.astype(np.float32)), true[2])
        bounds["dw"] = tuple(min(2 * own, most) for own, most in zip(plain, (2e-6, 4e-6), strict=True))
    for (name, allowed), got, exact in zip(bounds.items(), made, true, strict=True):
        assert all(e <= most for e, most in zip(errors(got, exact), allowed, strict=True)), name


def errors(got: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Norm of the error over norm of the exact array, worst element of the error over the largest exact one."""
    error = got.astype(np.float64) - exact
    return float(np.linalg.norm(error) / np.linalg.norm(exact)), float(np.abs(error).max() / np.abs(exact).max())


def test_an_image_is_the_same_alone_and_in_a_batch(backend):
    """More tiles than are transformed at a time: the parts join without a seam.

    NumPy's BLAS may add in another order for another number of rows, so the reference gets integers, whose sums are exact in
    every order; our kernels give the same bits for whatever numbers.
    """
    x, w, b = (a.astype(np.float32) for a in draw(3, 50, 52, 512, 256, 3, 3))
    if backend == "reference":
        x, w, b = np.rint(x), np.rint(w * 60), np.rint(b * 9)
        assert 9 * 512 * np.abs(x).max() * np.abs(w).max() + np.abs(b).max() < 2**24
    with backends.use(backend):
        together = ops.conv2d(Tensor(x), Tensor(w), Tensor(b), relu=True).data
        for i in range(3):
            alone = ops.conv2d(Tensor(x[i : i + 1]), Tensor(w), Tensor(b), relu=True).data
            np.testing.assert_array_equal(together[i], alone[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 13, 11, 16, 32), (2, 9, 13, 208, 176), (2, 7, 7, 3, 16)], ids=str)
def test_constant_weights_give_the_same_bits(backend, kind, shape):
    n, h, width, c, k = shape
    x, w, b = (Tensor(a.astype(np.float32)) for a in draw(n, h, width, c, k, 3, 3))
    cache = backends.WeightCache()
    with backends.use(backend):
        plain = ops.conv2d(x, w, b, **KINDS[kind]).data
        with backends.constant_weights(cache):
            first, second = (ops.conv2d(x, w, b, **KINDS[kind]).data for _ in range(2))
    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(second, plain)
    assert cache.nbytes in (0, w.data.nbytes)


def test_bytes_of_winners_hold_four_channels_each():
    x = np.zeros((1, 2, 2, 6), np.float32)
    for channel, winner in enumerate((0, 1, 2, 3, 3, 1)):
        x[0, winner // 2, winner % 2, channel] = 1.0
    y, argmax = np.empty((1, 1, 1, 6), np.float32), np.empty((1, 1, 1, 2), np.uint8)
    reference.maxpool_forward(y, argmax, x)
    assert argmax.ravel().tolist() == [0 | 1 << 2 | 2 << 4 | 3 << 6, 3 | 1 << 2]
    assert unpack_winners(argmax, 6).ravel().tolist() == [0, 1, 2, 3, 3, 1]


def test_relu_passes_nan_on(backend):
    """A diverged activation must stay visible: the training loop stops at the first loss that is not a number."""
    x, w, b = (a.astype(np.float32) for a in draw(1, 6, 6, 2, 3, 3, 3))
    x[0, 2, 2, 1] = np.nan
    with backends.use(backend):
        assert np.isnan(ops.conv2d(Tensor(x), Tensor(w), Tensor(b), relu=True).data).any()


REFUSED = [
    (((1, 5, 5, 3), (2, 3, 3, 4), (2,)), {}, r"x \(1, 5, 5, 3\).*w \(2, 3, 3, 4\)"),
    (((5, 5, 3), (2, 3, 3, 3), (2,)), {}, r"not \[N,H,W,C\]"),
    (((1, 5, 5, 3), (2, 3, 3), (2,)), {}, r"not \[K,R,S,C\]"),
    (((1, 5, 5, 3), (2, 7, 7, 3), (2,)), {"padding": 0}, r"7x7 filter does not fit into 5x5"),
    (((1, 5, 5, 3), (2, 3, 3, 3), (2,)), {"pool": True}, r"fused with ReLU"),
    (((1, 5, 5, 3), (2, 3, 3, 3), (1,)), {}, r"b \(1,\)"),
    (((1, 5, 5, 3), (2, 3, 3, 3), (2,)), {"stride": 0}, r"stride"),
    (((1, 5, 5, 3), (2, 3, 3, 3), (2,)), {"padding": -1}, r"padding"),
]


@pytest.mark.parametrize(("shapes", "options", "message"), REFUSED)
def test_refuses(backend, shapes, options, message):
    with backends.use(backend), pytest.raises(ValueError, match=message):
        ops.conv2d(*(Tensor(np.zeros(s, np.float32)) for s in shapes), **options)
