"""Merge: one pass over a caption against the article's row for each prefix, and the interface that it shares with NIC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.decode import Rules, device_beam_search, host_beam_search
from pycap.models import targets
from pycap.models.captions import CaptionModel
from pycap.models.merge import Merge
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.nn.layers import place_dropout
from pycap.testing.gradcheck import gradcheck
from tests.models.test_nic import V, batch

FEATURES = 20


def small(kind: type[CaptionModel] = Merge, drop: float = 0.0, seed: int = 0, **how: Any) -> Any:
    rng = np.random.default_rng(seed)
    cnn = VGG("vgg_micro", 32, rng, width=0.25, fc_size=FEATURES, drop=drop)
    return kind(cnn, V, rng, rnn_size=12, input_encoding_size=10, drop_prob_lm=drop, **how)


def in_float64(model: Merge) -> Merge:
    for parameter in model.named_parameters().values():
        parameter.data = parameter.data.astype(np.float64)
    return model


def gradients(model: CaptionModel) -> dict[str, np.ndarray]:
    """Of all parameters but the CNN's, which get none from features."""
    return {n: p.grad for n, p in model.named_parameters().items() if not n.startswith("cnn.")}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def row_by_row(model: Merge, features: np.ndarray, tokens: np.ndarray) -> float:
    """The article's loss, in plain NumPy: a row for each prefix, for which the LSTM begins anew; the mean over the rows."""
    w = {name: array for name, array in model.state_arrays().items() if not name.startswith("cnn.")}
    losses = []
    for column in range(tokens.shape[1]):
        caption = tokens[: np.count_nonzero(tokens[:, column]), column]
        vector = features[column * len(features) // tokens.shape[1]]
        image = np.maximum(w["image_embedding.weight"] @ vector + w["image_embedding.bias"], 0)
        for length in range(1, len(caption)):
            h = c = np.zeros(12)
            for word in caption[:length]:
                gates = w["lstm.weight_x"] @ w["word_embedding.weight"][word] + w["lstm.weight_h"] @ h + w["lstm.bias"]
                i, f, g, o = gates.reshape(4, 12)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            merged = np.maximum(w["decoder.weight"] @ (h + image) + w["decoder.bias"], 0)
            logits = w["projection.weight"] @ merged + w["projection.bias"]
            losses.append(np.log(np.exp(logits).sum()) - logits[caption[length]])
    return float(np.mean(losses))


def learn_row_by_row(model: Merge, features: np.ndarray, tokens: np.ndarray) -> float:
    """The article's form with gradients: every row a graph of its own, of which each adds its share."""
    rows = int(np.count_nonzero(tokens[1:]))
    total = 0.0
    for column in range(tokens.shape[1]):
        caption = tokens[: np.count_nonzero(tokens[:, column]), column]
        vector = Tensor(features[[column * len(features) // tokens.shape[1]]])
        for length in range(1, len(caption)):
            prefix = np.ascontiguousarray(caption[:length].reshape(length, 1))
            h, _ = model.lstm(model.word_embedding(prefix))
            merged = model.decoder(h[-1] + model.image_embedding(vector))
            answer = np.ascontiguousarray(caption[length : length + 1])
            weight, bias = model.projection.weight, model.projection.bias
            loss = ops.linear_cross_entropy(merged, weight, bias, answer, normalizer=rows)
            loss.backward()
            total += loss.item()
    return total


def test_one_pass_has_the_loss_and_the_gradients_of_the_articles_row_for_each_prefix() -> None:
    features = np.random.default_rng(3).standard_normal((3, FEATURES))
    _, tokens = batch(3, 2)
    with backends.use("reference"):
        once, rows = in_float64(small()), in_float64(small())
        loss = once.loss(Tensor(features), tokens)
        loss.backward()
        assert loss.item() == pytest.approx(row_by_row(once, features, tokens), rel=1e-13)
        assert loss.item() == pytest.approx(learn_row_by_row(rows, features, tokens), rel=1e-13)
    expected = gradients(rows)
    for name, gradient in gradients(once).items():
        assert gradient.dtype == np.float64 and np.abs(gradient).max() > 1e-4, name
        assert np.abs(gradient - expected[name]).max() <= 1e-13 * max(np.abs(gradient).max(), 1), name


@pytest.mark.gradcheck
def test_gradients_of_features_and_weights_are_the_slopes() -> None:
    _, tokens = batch(2, 2)
    with backends.use("reference"):
        model = in_float64(small())
        names = [f"{layer}.weight" for layer in ("image_embedding", "word_embedding", "decoder", "projection")]

        def loss(features: Tensor, *weights: Tensor) -> Tensor:
            for name, weight in zip(names, weights, strict=True):
                getattr(model, name.partition(".")[0]).weight = weight
            return model.loss(features, tokens)

        held = model.state_arrays()
        gradcheck(loss, np.random.default_rng(1).standard_normal((2, FEATURES)), *(held[name] for name in names))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_the_decoder_walks_the_way_of_the_loss(backend: str) -> None:
    """Teacher forcing through begin/advance gives the loss; padding, and words after END, take no part."""
    if backends.available(backend):
        pytest.skip(f"backend {backend}: {backends.available(backend)}")
    images, tokens = batch()
    with backends.use(backend):
        model = small()
        model.word_embedding.weight.data[[0, 2]] = np.nan  # padding, and END, after which nothing is predicted
        state = model.begin(images).rows(np.repeat(np.arange(3), 2))
        losses = []
        for t in range(len(tokens) - 1):
            logits, state = model.advance(state, tokens[t])
            z = logits.astype(np.float64)
            logp = z - np.log(np.exp(z).sum(1, keepdims=True))
            losses += [-logp[i, word] for i, word in enumerate(tokens[t + 1]) if word]
        loss = model.loss(images, tokens)
        loss.backward()
    assert loss.item() == pytest.approx(np.mean(losses), rel=2e-6)
    assert all(p.fresh and np.isfinite(p.grad).all() for p in model.named_parameters().values())


@pytest.mark.parametrize("kind", [NIC, Merge])
def test_features_are_taken_in_place_of_the_images_that_they_are_of(kind: type[CaptionModel]) -> None:
    images, tokens = batch()
    with backends.use("reference"):
        model, fed = small(kind), small(kind)
        features = Tensor(model.cnn(images).data.copy())
        losses = [model.loss(images, tokens), fed.loss(features, tokens)]
        for loss in losses:
            loss.backward()
        assert losses[0].item() == losses[1].item()
        for name, gradient in gradients(model).items():
            assert np.array_equal(gradient, gradients(fed)[name]), name
        assert not any(p.fresh for p in fed.cnn.named_parameters().values())


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_targets_of_a_fixed_size_have_the_same_loss_and_gradients(drop: float) -> None:
    """What steps on the device take: padded to a length, with ids of -1 and weights of 0 where nothing counts."""
    images, tokens = batch()
    count = targets.count(tokens, words_only=False)
    with backends.use("reference"):
        plain, sized = small(drop=drop), small(drop=drop)
        for model in (plain, sized):
            place_dropout(model, 7, 0, 3, 3)
        expected = plain.loss(images, tokens)
        loss = sized.weighted_loss(images, targets.caption_targets(3, tokens, len(tokens) + 2, count + 5, count))
        expected.backward()
        loss.backward(np.float32(1))
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for name, p in plain.named_parameters().items():
        other = sized.named_parameters()[name].grad
        assert np.abs(p.grad - other).max() <= 2e-6 * max(np.abs(p.grad).max(), 1e-3), name


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """With dropout on: a mask belongs to a caption, not to the micro-batch."""
    images, tokens = batch(4)
    count = targets.count(tokens, words_only=False)
    found = []
    for size in (4, 1):
        model = small(drop=0.5)
        for first in range(0, 4, size):
            place_dropout(model, 99, first, size, 4)
            columns = np.ascontiguousarray(tokens[:, 2 * first : 2 * (first + size)])
            model.loss(Tensor(images.data[first : first + size]), columns, normalizer=count).backward()
        found.append({n: p.grad for n, p in model.named_parameters().items()})
    for name, whole in found[0].items():
        assert np.abs(whole - found[1][name]).max() <= 2e-6 * max(np.abs(whole).max(), 1e-3), name


def test_each_caption_of_an_image_drops_features_of_its_own() -> None:
    model = small(drop=0.5)
    model.drop_words.p = 0.0
    tokens = np.array([[1, 1], [5, 5], [2, 2]], np.int32)
    place_dropout(model, 5, 0, 1, 1)
    features = Tensor(np.ones((1, FEATURES), np.float32))
    of_one, of_other = model._outputs(features, tokens[:-1], np.zeros(2, np.int32), targets.runs(tokens)).data[:2]
    assert (of_one != of_other).any()


@pytest.mark.parametrize("kind", [NIC, Merge])
def test_a_blind_captioner_sees_nothing_and_learns_all_but_the_eye(kind: type[CaptionModel]) -> None:
    images, tokens = batch()
    blind, seeing = small(kind, blind=True), small(kind)
    loss = blind.loss(images, tokens)
    loss.backward()
    other = blind.loss(Tensor(images.data[::-1].copy()), tokens)
    assert loss.item() == other.item() != seeing.loss(images, tokens).item()
    learned = {name for name, p in blind.named_parameters().items() if p.fresh}
    assert learned == set(blind.learning(words_only=False)) < set(seeing.learning(words_only=False))
    assert not any(name.startswith(("cnn.", "image_embedding.")) for name in learned)
    rules = Rules(3, 6, 1, 2, (0, 1))
    found = host_beam_search(blind, images, rules)
    assert found[0] == found[1] == found[2] != host_beam_search(seeing, images, rules)[0]


@pytest.mark.parametrize("k", [1, 3])
def test_search_on_the_device_finds_what_the_hosts_does(k: int) -> None:
    features = Tensor(np.random.default_rng(2).standard_normal((5, FEATURES)).astype(np.float32))
    rules = Rules(k, 7, 1, 2, (0, 1), 0.7)
    with backends.use("reference"):
        model = small(seed=3)
        model.word_embedding.weight.data *= 40  # else no word decides what follows it
        expected = host_beam_search(model, features, rules)
        found = device_beam_search(model, features, rules)
    assert len({beams[0].ids for beams in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert [h.ids for h in one] == [h.ids for h in other]
        assert [h.logprob for h in one] == pytest.approx([h.logprob for h in other], rel=1e-5)


def test_initial_weights_are_those_of_keras() -> None:
    rng = np.random.default_rng(0)
    model = Merge(VGG("vgg_micro", 32, rng, width=0.25, fc_size=64), 200, rng, rnn_size=48, input_encoding_size=40)
    bounds = {
        "image_embedding.weight": 6 / (64 + 48), "decoder.weight": 6 / (48 + 48), "projection.weight": 6 / (48 + 200),
        "lstm.weight_x": 6 / (40 + 4 * 48), "word_embedding.weight": 0.05**2,
    }  # fmt: skip
    arrays = model.state_arrays()
    for name, square in bounds.items():
        assert 0.98 * square**0.5 < np.abs(arrays[name]).max() <= square**0.5 * (1 + 1e-6), name
        assert np.square(arrays[name]).mean() == pytest.approx(square / 3, rel=0.05), name
    products = arrays["lstm.weight_h"].T.astype(np.float64) @ arrays["lstm.weight_h"]
    np.testing.assert_allclose(products, np.eye(48), atol=1e-6)
    assert (arrays["lstm.bias"].reshape(4, 48).mean(1) == [0, 1, 0, 0]).all()
    assert not any(arrays[f"{layer}.bias"].any() for layer in ("image_embedding", "decoder", "projection"))


def test_a_model_whose_weights_were_left_open_takes_those_of_another() -> None:
    drawn, (images, tokens) = small(), batch()
    made = Merge(VGG("vgg_micro", 32, None, width=0.25, fc_size=FEATURES), V, None, rnn_size=12, input_encoding_size=10)
    made.load_arrays(drawn.state_arrays())
    with made.evaluating():
        assert made.loss(images, tokens).item() == drawn.loss(images, tokens).item()
