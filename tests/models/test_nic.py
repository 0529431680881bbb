"""NIC: its loss against a step-by-step computation, shared CNN passes, freezing, dropout under micro-batches."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends
from pycap.autograd import Tensor
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.nn.layers import place_dropout

V = 13


def small_nic(drop: float = 0.0, seed: int = 0) -> NIC:
    rng = np.random.default_rng(seed)
    cnn = VGG("vgg_micro", 32, rng, width=0.25, fc_size=20, drop=drop)
    return NIC(cnn, V, rng, rnn_size=12, input_encoding_size=10, drop_prob_lm=drop)


def batch(images: int = 3, per_image: int = 2) -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((images, 32, 32, 3)).astype(np.float32)
    n = images * per_image
    tokens = np.zeros((7, n), np.int32)
    tokens[0] = 1
    for i in range(n):
        length = 1 + i % 5
        tokens[1 : 1 + length, i] = rng.integers(3, V, length)
        tokens[1 + length, i] = 2
    return Tensor(x), tokens


def test_loss_is_the_mean_over_words_of_the_stepwise_log_probabilities() -> None:
    """Teacher forcing through begin/advance, the decoder's own path, gives the same loss as the fused sequence."""
    model = small_nic()
    images, tokens = batch()
    total, count = 0.0, 0
    state = model.begin(images)
    state = state.rows(np.repeat(np.arange(3), 2))
    for t in range(len(tokens) - 1):
        logits, state = model.advance(state, tokens[t])
        z = logits.astype(np.float64)
        logp = z - z.max(1, keepdims=True)
        logp -= np.log(np.exp(logp).sum(1, keepdims=True))
        for i, target in enumerate(tokens[t + 1]):
            if target:
                total -= logp[i, target]
                count += 1
    assert model.loss(images, tokens).item() == pytest.approx(total / count, rel=2e-6)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_padding_takes_no_part_in_the_recurrence(backend: str) -> None:
    """What only padded steps read may be anything, and more padding changes no gradient."""
    if backends.available(backend):
        pytest.skip(f"backend {backend}: {backends.available(backend)}")
    images, tokens = batch()
    gradients = []
    for extra in (0, 3):
        model = small_nic()
        model.word_embedding.weight.data[[0, 2]] = np.nan  # padding, and END, after which nothing is predicted
        with backends.use(backend):
            loss = model.loss(images, np.concatenate([tokens, np.zeros((extra, tokens.shape[1]), np.int32)]))
            loss.backward()
        assert np.isfinite(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters().items()})
    for name, gradient in gradients[0].items():
        assert np.isfinite(gradient).all(), name
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_every_parameter_of_both_halves_gets_a_gradient() -> None:
    model = small_nic()
    model.loss(*batch()).backward()
    for name, parameter in model.named_parameters().items():
        assert parameter.fresh, name
        assert np.abs(parameter.grad).max() > 0, name


def test_word_loss_is_the_mean_over_the_captions_words_of_the_classifiers_log_probabilities() -> None:
    rng = np.random.default_rng(0)
    model = NIC(VGG("vgg_micro", 32, rng, width=0.25, fc_size=20, drop=0.0), V, rng, rnn_size=12, word_head=True)
    images, tokens = batch()
    features = model.cnn(images).data.astype(np.float64)
    z = features @ model.word_head.weight.data.T + model.word_head.bias.data
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = [-logp[n // 2, word] for n in range(6) for word in tokens[1:, n] if word > 2]
    loss = model.word_loss(images, tokens)
    assert loss.item() == pytest.approx(np.mean(expected), rel=2e-6)
    loss.backward()
    for name, parameter in model.named_parameters().items():
        assert parameter.fresh == name.startswith(("cnn.", "word_head.")), name


def test_frozen_cnn_gets_no_gradient_and_keeps_nothing() -> None:
    model = small_nic()
    model.cnn.freeze()
    model.loss(*batch()).backward()
    for name, parameter in model.named_parameters().items():
        assert parameter.fresh != name.startswith("cnn."), name
        assert (parameter.grad is None) == name.startswith("cnn."), name


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_gradient_of_the_whole_batch(size: int) -> None:
    """With dropout on: the mask belongs to the image and its captions, not to the micro-batch."""
    model = small_nic(drop=0.5)
    images, tokens = batch(4)
    count = int((tokens[1:] != 0).sum())

    def gradients(step: int) -> dict[str, np.ndarray]:
        for first in range(0, 4, step):
            n = min(step, 4 - first)
            place_dropout(model, 99, first, n, 4)
            part = Tensor(images.data[first : first + n])
            columns = np.ascontiguousarray(tokens[:, 2 * first : 2 * (first + n)])
            model.loss(part, columns, normalizer=count).backward()
        found = {n: p.grad.copy() for n, p in model.named_parameters().items()}
        for p in model.named_parameters().values():
            p.fresh = False
        return found

    whole, parts = gradients(4), gradients(size)
    for name in whole:
        assert np.abs(whole[name] - parts[name]).max() <= 2e-6 * max(np.abs(whole[name]).max(), 1e-3), name


def test_evaluating_gives_every_module_its_own_mode_back() -> None:
    model = small_nic(drop=0.5)
    model.train(True)
    model.cnn.train(False)  # as while the CNN is frozen
    with pytest.raises(KeyError), model.evaluating():
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert model.training and model.drop.training and not model.cnn.training and not model.cnn.drop6.training


def test_dropout_seeds_differ_between_layers_and_steps() -> None:
    model = small_nic(drop=0.5)
    place_dropout(model, 1, 0, 1, 1)
    first = [model.cnn.drop6.seed, model.cnn.drop7.seed, model.drop.seed]
    place_dropout(model, 2, 0, 1, 1)
    assert len({*first, model.cnn.drop6.seed, model.cnn.drop7.seed, model.drop.seed}) == 6


def test_weights_that_do_not_fit_are_named() -> None:
    model = small_nic()
    arrays = dict(model.state_arrays())
    arrays["projection.weight"] = np.zeros((V + 1, 12), np.float32)
    arrays["extra"] = arrays.pop("lstm.bias")
    with pytest.raises(ValueError, match=r"lstm\.bias: lacks.*extra: unknown.*projection\.weight: shape"):
        model.load_arrays(arrays)
