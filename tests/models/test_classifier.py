"""The classifier: its loss and gradients from its logits, and the same numbers as a captioner's word loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pycap import backends, device
from pycap.autograd import Tensor
from pycap.models import targets
from pycap.models.classifier import Classifier
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.nn.layers import place_dropout

V = 13


def small(drop: float = 0.0) -> Classifier:
    rng = np.random.default_rng(0)
    return Classifier(VGG("vgg_micro", 32, rng, width=0.25, fc_size=20, drop=drop), V, rng)


def batch(images: int = 5) -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(5)
    classes = rng.integers(4, V, images)
    tokens = np.stack([np.full(images, 1), classes, np.full(images, targets.END)]).astype(np.int32)
    return Tensor(rng.standard_normal((images, 32, 32, 3)).astype(np.float32)), tokens


def test_loss_and_the_heads_gradients_are_those_of_the_logits() -> None:
    """In float64 from the features: the mean of -log p(class), and (p - 1 at the class) / images on the way back."""
    model, (images, tokens) = small(), batch()
    features = model.cnn(images).data.astype(np.float64)
    z = features @ model.head.weight.data.T.astype(np.float64) + model.head.bias.data
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    loss = model.word_loss(images, tokens)
    assert loss.item() == pytest.approx(-np.mean(np.log(p[np.arange(5), tokens[1]])), rel=2e-6)
    assert model.loss(images, tokens).item() == loss.item()
    np.testing.assert_allclose(model.logits(images).data, z, rtol=1e-5, atol=1e-6)
    loss.backward()
    dz = (p - np.eye(V)[tokens[1]]) / 5
    np.testing.assert_allclose(model.head.weight.grad, dz.T @ features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.head.bias.grad, dz.sum(0), rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters().items():
        assert parameter.fresh and np.abs(parameter.grad).max() > 0, name


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_captioner_that_learns_words_computes_the_same_bit_for_bit(backend: str) -> None:
    if backends.available(backend):
        pytest.skip(f"backend {backend}: {backends.available(backend)}")
    model, (images, tokens) = small(), batch()
    with backends.use(backend):
        captioner = NIC(model.cnn, V, np.random.default_rng(1), word_head=True)
        captioner.word_head = model.head
        gradients = []
        for each in (model, captioner):
            loss = each.word_loss(images, tokens)
            loss.backward()
            gradients.append((loss.item(), {n: p.grad.copy() for n, p in model.named_parameters().items()}))
            for parameter in model.named_parameters().values():
                parameter.fresh = False
    assert gradients[0][0] == gradients[1][0]
    for name, gradient in gradients[0][1].items():
        np.testing.assert_array_equal(gradient, gradients[1][1][name], err_msg=name)


def test_targets_on_the_device_give_the_same_loss_and_padding_no_part_of_it() -> None:
    model, (images, tokens) = small(), batch()
    wanted = targets.word_targets(5, tokens, 7, 5)
    on_device = targets.WordTargets(*(device.to_device(array) for array in vars(wanted).values()))
    assert model.weighted_loss(images, on_device).item() == pytest.approx(
        model.word_loss(images, tokens).item(), rel=1e-6
    )


def test_micro_batches_add_up_to_the_whole_with_dropout_on() -> None:
    model, (images, tokens) = small(0.5), batch()
    totals = []
    for bounds in ((0, 5), (0, 2, 4, 5)):
        total = 0.0
        for first, end in pairwise(bounds):
            place_dropout(model, 7, first, end - first, 5)
            part = Tensor(np.ascontiguousarray(images.data[first:end]))
            total += model.word_loss(part, np.ascontiguousarray(tokens[:, first:end]), normalizer=5).item()
        totals.append(total)
    assert totals[1] == pytest.approx(totals[0], rel=1e-6)


def test_what_learns_is_all_of_it_or_the_head_alone() -> None:
    model = small()
    assert model.learning() == list(model.named_parameters())
    model.cnn.freeze()
    assert model.learning() == ["head.weight", "head.bias"]
    assert list(model.image_weights()) == [f"cnn.conv{i}_1.weight" for i in range(1, 5)] + [
        "cnn.fc6.weight",
        "cnn.fc7.weight",
    ]
