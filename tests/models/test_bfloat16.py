"""The models with activations in bfloat16: dtypes along the way, losses and gradients beside float32, a frozen CNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.device import bfloat16
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.nn.layers import place_dropout

V = 13


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if backends.available(request.param):
        pytest.skip(f"backend {request.param}: {backends.available(request.param)}")
    with backends.use(request.param):
        yield request.param


def nic(drop: float = 0.0) -> NIC:
    rng = np.random.default_rng(0)
    cnn = VGG("vgg_micro", 32, rng, width=0.5, fc_size=40, drop=drop)
    return NIC(cnn, V, rng, rnn_size=24, input_encoding_size=20, drop_prob_lm=drop, word_head=True)


def batch(dtype: np.dtype, images: int = 4) -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((images, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(3, V, (7, 2 * images)).astype(np.int32)
    tokens[0], tokens[5, 1:], tokens[6, 1:] = 1, 2, 0
    return Tensor(x.astype(dtype)), tokens


def gradients(model: NIC, objective: Callable[..., Tensor], dtype: np.dtype) -> tuple[float, dict[str, np.ndarray]]:
    for parameter in model.named_parameters().values():
        parameter.grad, parameter.fresh, parameter.rows = None, False, None
    loss = objective(*batch(dtype))
    assert loss.dtype == np.float32
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters().items() if p.grad is not None}


@pytest.mark.parametrize("objective", ["loss", "word_loss"])
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_loss_and_gradients_agree_with_float32_within_rounding(backend: str, objective: str, drop: float) -> None:
    """A rounding errs by at most 2^-8, so linear layers err by a few times that: 0.03 leaves room for the depth.

    Where the two largest of a window differ by less than a rounding, which happens in about one of a hundred, the gradient
    takes another way. Where a part f of it does, its distance from the exact one is sqrt(2f) of its length: 0.14 for each of
    the convolutions that follow each other. No element is comparable then, and the bound for all four is 0.3.
    """
    model = nic(drop)
    place_dropout(model, 7, 0, 4, 4)
    loss32, exact = gradients(model, getattr(model, objective), np.dtype(np.float32))
    loss16, rounded = gradients(model, getattr(model, objective), bfloat16())
    assert loss16 == pytest.approx(loss32, rel=5e-3) and loss16 != loss32
    assert rounded.keys() == exact.keys()
    for name, g in exact.items():
        assert rounded[name].dtype == np.float32
        error = np.linalg.norm(rounded[name] - g) / np.linalg.norm(g)
        assert error < (0.3 if name.startswith("cnn.conv") else 0.03), f"{name}: {error:.3g}"
        assert error > 0, f"{name}: computed in float32?"


def test_activations_and_their_gradients_are_bfloat16_and_parameters_are_not(backend: str) -> None:
    model = nic()
    images = Tensor(batch(bfloat16())[0].data, requires_grad=True)
    features = model.cnn(images)
    assert features.dtype == bfloat16() and model.image_embedding(features).dtype == bfloat16()
    features.backward()
    assert images.grad.dtype == bfloat16() and np.abs(images.grad.astype(np.float32)).max() > 0
    for name, parameter in model.cnn.named_parameters().items():
        assert parameter.dtype == parameter.grad.dtype == np.float32, name
    state = model.begin(images)
    assert state.h.dtype == state.c.dtype == np.float32
    logits, _ = model.advance(state, np.ones(4, np.int32))
    assert logits.dtype == np.float32


def test_a_frozen_cnn_learns_nothing_in_bfloat16(backend: str) -> None:
    model = nic()
    model.cnn.freeze()
    _, found = gradients(model, model.loss, bfloat16())
    assert not any(name.startswith("cnn.") for name in found) and "image_embedding.weight" in found


def test_gradients_of_an_activation_used_twice_add_up(backend: str) -> None:
    """Written by kernels with beta 1, and added by autograd where backward returns them."""
    rng = np.random.default_rng(0)
    w = [Tensor(rng.standard_normal((5, 7)).astype(np.float32), requires_grad=True) for _ in range(2)]
    x = Tensor(rng.standard_normal((3, 7)).astype(np.float32).astype(bfloat16()), requires_grad=True)
    middle = ops.mul(x, 2.0)
    total = ops.add(ops.linear(middle, w[0]), ops.linear(middle, w[1]))
    ops.sum(ops.add(total, ops.linear(middle, w[0]))).backward()
    exact = 2 * (2 * w[0].data.sum(0) + w[1].data.sum(0))
    np.testing.assert_allclose(x.grad.astype(np.float32), np.tile(exact, (3, 1)), rtol=0.03, atol=0.1)
    np.testing.assert_allclose(w[0].grad, 2 * w[1].grad, rtol=1e-6)


def test_sums_of_bfloat16_do_not_stop_counting() -> None:
    ones = Tensor(np.ones((1000, 3), bfloat16()), requires_grad=True)
    assert ops.sum(ones).item() == 3008  # 3000 to 8 significant bits
    assert ops.mean(ones).item() == 1
    ops.sum(ops.add(ones, Tensor(np.zeros(3, bfloat16()), requires_grad=True))).backward()
    bias = Tensor(np.zeros(3, bfloat16()), requires_grad=True)
    ops.sum(ops.add(ones, bias)).backward()
    assert bias.grad.dtype == bfloat16() and bias.grad.tolist() == [1000, 1000, 1000]
