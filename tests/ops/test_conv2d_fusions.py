"""Fusions of convolutions: taken where they may be, the same numbers as without them, and left alone elsewhere.

Most tests compute with small whole numbers, whose sums are exact in any order: with and without a fusion, and on every
backend, results are then the same bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest

from pycap import backends, device, nn, ops
from pycap.autograd import Tensor
from pycap.backends import FUSIONS, kernels, reference
from pycap.device import bfloat16
from pycap.memory import poisoned
from pycap.testing import gradcheck
from tests import cupy_standin

MEAN, STD = (123.68, 116.779, 103.939), (58.4, 57.1, 57.4)
PARTS = ("x", "w", "b")


PLACES = {  # what serves, and where
    "reference": ("reference", "cpu"),
    "stand_in": ("reference", "cuda"),
    "interpreter": ("triton", "cpu"),
    "gpu": ("auto", "cuda"),
}


@pytest.fixture(
    params=[
        "reference",
        "stand_in",
        pytest.param("interpreter", marks=pytest.mark.triton),
        pytest.param("gpu", marks=pytest.mark.gpu),
    ]
)
def fused(request, monkeypatch):
    """Each backend that offers the fusions serves; what a test then puts into `kernels` goes when it ends."""
    if request.param == "stand_in":
        stand_in(monkeypatch)
    with backends.use(*PLACES[request.param]):
        yield


def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")


@pytest.fixture
def calls(fused):
    """The names of the functions in `kernels` that were called, in order."""
    names: list[str] = []

    def counted(name, function, *arguments):
        names.append(name)
        function(*arguments)

    for name in (*FUSIONS, *FUSIONS.values(), "maxpool_backward", "preprocess"):
        kernels.__dict__[name] = functools.partial(counted, name, getattr(kernels, name))
    return names


@pytest.fixture
def unfused(fused):
    """Makes the backend that serves offer no fusions any more."""
    return lambda: kernels.__dict__.update(dict.fromkeys(FUSIONS))


def whole(seed, *shape, dtype=np.float32):
    """-1, 0 and 1, on the current device."""
    return device.to_device(np.random.default_rng(seed).integers(-1, 2, shape).astype(dtype))


def layer(seed, c, k, size=3, needs=(True, True)):
    """(w, b) of whole numbers."""
    w, b = whole(seed, k, size, size, c), whole(seed + 1, k)
    return Tensor(w, requires_grad=needs[0]), Tensor(b, requires_grad=needs[1])


def run(network: Callable[..., Tensor], leaves: list[Tensor], times=1) -> list[np.ndarray | None]:
    """The gradients of `network` in its leaves, for a gradient of whole numbers, as often as `times` added up."""
    with poisoned():
        for _ in range(times):
            y = network()
            y.backward(whole(99, *y.shape, dtype=y.dtype))
    made = [None if leaf.grad is None else device.to_host(leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf.grad, leaf.fresh = None, False
    return made


def same(one: list[np.ndarray | None], other: list[np.ndarray | None]) -> None:
    """Bit for bit, absent ones included; none is all zeros, and none so large that float32 could have rounded a sum."""
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.any() and np.abs(a).max() < 2**24
            np.testing.assert_array_equal(a, b)


# The data gradient with the ReLU below --------------------------------------------------------------------------------

STACKS = {  # of the lower layers: pooled or not; the size of the filters above; its stride and padding
    "plain": ([False, False], 3, 1, 1),
    "pooled": ([True, True], 3, 1, 1),
    "pooled_in_between": ([False, True], 3, 1, 1),
    "1x1": ([False, True], 1, 1, 0),
    "stride_2": ([True, False], 3, 2, 1),
    "5x5": ([False, True], 5, 1, 2),
}


def stack(x: Tensor, layers: list[tuple[Tensor, Tensor]], name: str, top: dict[str, bool]) -> Tensor:
    pools, _, stride, padding = STACKS[name]
    for (w, b), pool in zip(layers, pools, strict=False):
        x = ops.conv2d(x, w, b, relu=True, pool=pool)
    return ops.conv2d(x, *layers[-1], stride=stride, padding=padding, **top)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("top", [{}, {"relu": True}, {"relu": True, "pool": True}], ids=["plain", "relu", "pool"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacks_have_the_gradients_that_they_have_without(fused, calls, unfused, name, top, dtype):
    """Odd heights and widths: pools drop the last row and column."""
    dtype = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    x = Tensor(whole(0, 2, 15, 13, 2, dtype=dtype), requires_grad=True)
    layers = [layer(1, 2, 3), layer(3, 3, 5), layer(5, 5, 9, STACKS[name][1])]
    leaves = [x, *itertools.chain(*layers)]
    ours = run(lambda: stack(x, layers, name, top), leaves)
    assert calls.count("conv2d_backward_data_relu") == 2 and calls.count("conv2d_backward_data") == 1
    assert calls.count("maxpool_backward") == sum(STACKS[name][0])  # the pooled layers below, each once
    calls.clear()
    unfused()
    same(ours, run(lambda: stack(x, layers, name, top), leaves))


def test_what_was_masked_above_is_not_masked_again(fused):
    """Nor unpooled in a primitive: the results would be the same, and the passes over memory more."""
    given: dict[str, list[tuple[bool, bool]]] = {}

    def watched(name, function, *arguments):
        called = inspect.signature(getattr(reference, name)).bind(*arguments).arguments
        given.setdefault(name, []).append((called["y"] is not None, called.get("argmax") is not None))
        function(*arguments)

    for name in ("conv2d_backward_data_relu", "conv2d_backward_weight", "conv2d_first_backward_weight"):
        kernels.__dict__[name] = functools.partial(watched, name, getattr(kernels, name))
    x, layers = ops.pixels(*images()), [layer(1, 3, 4), layer(3, 4, 5), layer(5, 5, 2)]

    def network():
        h = ops.conv2d_first(x, *layers[0], relu=True)
        return ops.conv2d(ops.conv2d(h, *layers[1], relu=True, pool=True), *layers[2], relu=True, pool=True)

    run(network, list(itertools.chain(*layers)))
    top, below = (True, True), (False, False)
    assert given["conv2d_backward_data_relu"] == given["conv2d_backward_weight"] == [top, below]
    assert given["conv2d_first_backward_weight"] == [below]


@pytest.mark.gradcheck
@pytest.mark.parametrize("name", STACKS)
def test_gradient_of_stacks(monkeypatch, name):
    rng = np.random.default_rng(3)
    shapes = [(3, 3, 3, 2), (3, 3, 3, 3), (2, STACKS[name][1], STACKS[name][1], 3)]
    arrays = [rng.standard_normal((2, 11, 9, 2))]
    for shape in shapes:
        arrays += [rng.standard_normal(shape) / 4, rng.standard_normal(shape[0]) / 2]
    called = []
    function = reference.conv2d_backward_data_relu
    monkeypatch.setattr(reference, "conv2d_backward_data_relu", lambda *a: called.append(len(a)) or function(*a))

    def network(x, *parameters):
        return stack(x, list(zip(parameters[::2], parameters[1::2], strict=True)), name, {"relu": True})

    gradcheck(network, *arrays)
    assert called


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
def test_what_the_layer_below_does_not_want_is_not_written(fused, calls, unfused, needs, pool):
    x = Tensor(whole(0, 2, 7, 9, 3), requires_grad=needs[0])
    lower, upper = layer(1, 3, 4, needs=needs[1:]), layer(3, 4, 2)
    leaves = [x, *lower, *upper]

    def network():
        return ops.conv2d(ops.conv2d(x, *lower, relu=True, pool=pool), *upper, relu=True)

    ours = run(network, leaves)
    assert calls.count("conv2d_backward_data_relu") == any(needs)
    assert calls.count("conv2d_backward_data") == needs[0]
    assert calls.count("conv2d_backward_weight") == 1 + needs[1]  # the bias's gradient alone asks for no other
    assert calls.count("maxpool_backward") == (pool and (needs[0] or needs[1]))
    assert [g is not None for g in ours] == [*needs, True, True]
    unfused()
    same(ours, run(network, leaves))


def test_layers_without_a_bias(fused, calls, unfused):
    x, (w, _), (v, _) = Tensor(whole(0, 1, 6, 5, 2), requires_grad=True), layer(1, 2, 3), layer(3, 3, 2)

    def network():
        return ops.conv2d(ops.conv2d(x, w, relu=True), v)

    ours = run(network, [x, w, v])
    assert "conv2d_backward_data_relu" in calls
    unfused()
    same(ours, run(network, [x, w, v]))


def _two_convolutions(h, upper):
    return ops.conv2d(h, *upper) + ops.conv2d(h, *upper, relu=True)


NOT_TAKEN = {
    "two_consumers": (_two_convolutions, {"relu": True}),
    "another_consumer": (lambda h, upper: ops.sum(h * 2.0) + ops.sum(ops.conv2d(h, *upper)), {"relu": True}),
    "no_relu": (lambda h, upper: ops.conv2d(h, *upper), {}),
    "something_in_between": (lambda h, upper: ops.conv2d(h * 1.0, *upper), {"relu": True}),
    "pooled_apart": (lambda h, upper: ops.conv2d(ops.maxpool(h), *upper), {"relu": True}),
    "no_convolution": (lambda h, upper: ops.conv2d(ops.conv2d(h, *upper) + h * 3.0, *upper), {"relu": True}),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_it_is_not_taken_where(fused, calls, unfused, name):
    above, how = NOT_TAKEN[name]
    x = Tensor(whole(0, 2, 7, 6, 3), requires_grad=True)
    lower, upper = layer(1, 3, 4), layer(3, 4, 4)
    leaves = [x, *lower, *upper]
    ours = run(lambda: above(ops.conv2d(x, *lower, **how), upper), leaves)
    assert "conv2d_backward_data_relu" not in calls and "conv2d_backward_data" in calls
    unfused()
    same(ours, run(lambda: above(ops.conv2d(x, *lower, **how), upper), leaves))


def test_consumers_that_record_nothing_do_not_count(fused, calls):
    x, lower, upper = Tensor(whole(0, 2, 6, 6, 3), requires_grad=True), layer(1, 3, 4), layer(3, 4, 2)

    def network():
        h = ops.conv2d(x, *lower, relu=True)
        ops.sum(h.detach())
        return ops.conv2d(h, *upper)

    run(network, [x, *lower, *upper])
    assert calls.count("conv2d_backward_data_relu") == 1


@pytest.mark.parametrize("pool", [False, True])
def test_shared_parameters_and_passes_one_after_the_other_add_up(fused, calls, unfused, pool):
    x, (w, b) = Tensor(whole(0, 2, 9, 7, 3), requires_grad=True), layer(1, 3, 3)

    def network():
        h = ops.conv2d(x, w, b, relu=True, pool=pool)
        return ops.conv2d(ops.conv2d(h, w, b, relu=True), w, b, relu=True)

    once, twice = run(network, [x, w, b]), run(network, [x, w, b], times=2)
    assert calls.count("conv2d_backward_data_relu") == 3 * 2
    same(twice, [2 * g for g in once])
    unfused()
    same(once, run(network, [x, w, b]))


def test_a_bias_that_was_computed_is_left_to_its_own_layer(fused, calls):
    """Were it written from above, a graph that was used up would not be noticed."""
    x, (w, b), upper = Tensor(whole(0, 1, 6, 5, 2)), layer(1, 2, 3), layer(3, 3, 2)
    computed = b * 2.0
    made = run(lambda: ops.conv2d(ops.conv2d(x, w, computed, relu=True), *upper), [w, b, *upper])
    assert "conv2d_backward_data_relu" not in calls and made[1].any()
    with pytest.raises(RuntimeError, match="backward a second time through Mul"):
        run(lambda: ops.conv2d(ops.conv2d(x, w, computed, relu=True), *upper), [w, b, *upper])


# Images from bytes ----------------------------------------------------------------------------------------------------


def images(n=3, h=12, w=14, size=9, dtype=np.float32):
    """Arguments of `ops.pixels` that keep pixels whole numbers: one of each image mirrored or not."""
    rng = np.random.default_rng(0)
    crops = np.stack([rng.integers(0, h - size + 1, n), rng.integers(0, w - size + 1, n), np.arange(n) % 2], 1)
    return rng.integers(0, 4, (n, h, w, 3), np.uint8), crops.astype(np.int32), size, (2, 1, 1), (1, 1, 0.5), dtype


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_layer_is_preprocess_then_conv2d(fused, calls, unfused, relu, dtype):
    what = images(dtype=bfloat16() if dtype == "bfloat16" else dtype)
    w, b = layer(1, 3, 5)
    made = []
    for backward in (True, False):
        y = ops.conv2d_first(ops.pixels(*what), w, b, relu=relu)
        made.append(
            [device.to_host(y.data), *run(lambda: ops.conv2d_first(ops.pixels(*what), w, b, relu=relu), [w, b])]
        )
        if backward:
            assert calls == ["conv2d_first_forward"] * 2 + ["conv2d_first_backward_weight"]
            unfused()
            calls.clear()
    plain = ops.conv2d(ops.preprocess(*what), w, b, relu=relu)
    assert made[0][0].dtype == plain.dtype and made[0][0].shape == (3, 9, 9, 5)
    np.testing.assert_array_equal(made[0][0], device.to_host(plain.data))
    same(*made)
    assert "conv2d_first_forward" not in calls and "preprocess" in calls


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=2)), ids=str)
def test_the_first_layer_below_another(fused, calls, unfused, needs):
    first, second, third = layer(1, 3, 4, needs=needs), layer(3, 4, 5), layer(5, 5, 2)
    leaves = [*first, *second, *third]

    def network():
        h = ops.conv2d_first(ops.pixels(*images()), *first, relu=True)
        return ops.conv2d(ops.conv2d(h, *second, relu=True, pool=True), *third)

    ours = run(network, leaves)
    assert calls.count("conv2d_backward_data_relu") == 1 + any(needs) and "conv2d_backward_data" not in calls
    assert calls.count("conv2d_first_backward_weight") == needs[0]
    unfused()
    same(ours, run(network, leaves))


def test_a_batch_of_no_images(fused, calls):
    first, second = layer(1, 3, 4), layer(3, 4, 2)
    x = ops.pixels(*images(n=0))
    made = run(lambda: ops.conv2d(ops.conv2d_first(x, *first, relu=True), *second, relu=True), [*first, *second])
    assert "conv2d_backward_data_relu" in calls and not any(gradient.any() for gradient in made)


def test_a_first_layer_that_two_read_masks_its_gradient_itself(fused, calls, unfused):
    first, upper = layer(1, 3, 4), layer(3, 4, 4)

    def network():
        return _two_convolutions(ops.conv2d_first(ops.pixels(*images()), *first, relu=True), upper)

    ours = run(network, [*first, *upper])
    assert "conv2d_backward_data_relu" not in calls and "conv2d_first_backward_weight" in calls
    unfused()
    same(ours, run(network, [*first, *upper]))


@pytest.mark.gradcheck
def test_gradient_of_the_first_layer():
    rng = np.random.default_rng(1)
    shapes = [(4, 3, 3, 3), (4,), (2, 3, 3, 4), (2,)]
    what = images(dtype=np.float64)

    def network(w, b, v, c):
        return ops.conv2d(ops.conv2d_first(ops.pixels(*what), w, b, relu=True), v, c)

    gradcheck(network, *(rng.standard_normal(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("how", "taken"), [({}, True), ({"pool": True}, False), ({"size": 1}, False), ({"size": 5}, False)]
)
def test_a_layer_takes_pixels(fused, calls, how, taken):
    convolution, what = nn.Conv2d(3, 4, np.random.default_rng(0), **how), images()
    y = convolution(ops.pixels(*what))
    assert ("conv2d_first_forward" in calls) == taken and ("preprocess" in calls) != taken
    plain = convolution(ops.preprocess(*what))
    np.testing.assert_allclose(*(device.to_host(made.data) for made in (y, plain)), rtol=1e-5, atol=1e-5)


def test_backends_without_the_fusion_make_the_images_first(backend):
    what, (w, b) = images(), layer(1, 3, 16)
    with backends.use(backend):
        y = ops.conv2d_first(ops.pixels(*what), w, b, relu=True)
        np.testing.assert_array_equal(y.data, ops.conv2d(ops.preprocess(*what), w, b, relu=True).data)


def test_pixels_say_what_they_will_be():
    made = ops.pixels(*images(dtype=bfloat16()))
    assert made.shape == (3, 9, 9, 3) and made.dtype == bfloat16()
    assert made.normalised().dtype == bfloat16() and made.normalised().shape == made.shape


@pytest.mark.parametrize(
    ("w", "b", "message"), [((4, 1, 1, 3), (4,), r"w \(4, 1, 1, 3\)"), ((4, 3, 3, 3), (3,), r"b \(3,\)")]
)
def test_the_first_layer_refuses(fused, w, b, message):
    with pytest.raises(ValueError, match=rf"conv2d_first: {message} is not"):
        ops.conv2d_first(ops.pixels(*images()), Tensor(np.zeros(w, np.float32)), Tensor(np.zeros(b, np.float32)))


@pytest.fixture
def gpu(monkeypatch):
    stand_in(monkeypatch)
    with backends.use("reference", "cuda"):
        yield


def test_crops_on_the_gpu_are_trusted_and_nothing_is_uploaded_twice(gpu, monkeypatch):
    data, crops, *rest = images()
    expected = ops.preprocess(data, crops, *rest).data.get()
    there, windows = device.to_device(data), device.to_device(crops)
    uploads, before = [], cupy_standin.ndarray.reads
    asarray = device.module().asarray
    monkeypatch.setattr(device.module(), "asarray", lambda array: uploads.append(array) or asarray(array))
    made = ops.pixels(there, windows, *rest)
    assert made.images is there and not uploads and cupy_standin.ndarray.reads == before
    assert (
        made.scale is ops.pixels(data, crops, *rest).scale and len(uploads) == 2
    )  # the images and crops of the second
    np.testing.assert_array_equal(made.normalised().data.get(), expected)
    with pytest.raises(ValueError, match="13x13 window sticks out of a 12x14 image"):
        ops.pixels(there, windows, 13, *rest[1:])
