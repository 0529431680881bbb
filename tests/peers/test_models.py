"""VGG, NIC and beam search against the same things in PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")
from torch import nn
from torch.nn import functional

from benchmarks.peers import torch_nic
from pycap.autograd import Tensor
from pycap.decode import Hypothesis, beam_search
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from tests.peers.compare import close

pytestmark = pytest.mark.peers
on_each_backend = pytest.mark.usefixtures("backend")

# Simonyan & Zisserman 2014, table 1, and the parameters of their nets (torchvision's counts, fc8 for 1000 classes included).
CONFIGURATIONS: dict[str, tuple[list[Any], int]] = {
    "vgg11": ([64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"], 132_863_336),
    "vgg13": ([64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"], 133_047_848),
    "vgg16": ([64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"], 138_357_544),
    "vgg19": ([64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"], 143_667_240),
}
FC8 = 4096 * 1000 + 1000


def torch_vgg(layers: list[Any], side: int, fc: int) -> tuple[nn.Sequential, nn.Sequential]:
    """torchvision's construction: (features, classifier up to fc7), without dropout; `side`: of the last map."""
    features: list[nn.Module] = []
    inputs = 3
    for layer in layers:
        if layer == "M":
            features.append(nn.MaxPool2d(2))
        else:
            features += [nn.Conv2d(inputs, layer, 3, padding=1), nn.ReLU()]
            inputs = layer
    classifier = nn.Sequential(nn.Linear(inputs * side * side, fc), nn.ReLU(), nn.Linear(fc, fc), nn.ReLU())
    return nn.Sequential(*features), classifier


def parametrised(*parts: nn.Sequential) -> list[nn.Module]:
    return [layer for part in parts for layer in part if hasattr(layer, "weight")]


class Zeros:
    """Stands for a random generator where only shapes count: 138 million normal deviates take seconds."""

    def standard_normal(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_vgg_has_the_shapes_and_the_parameter_count_of_the_paper(name: str) -> None:
    layers, count = CONFIGURATIONS[name]
    with torch.device("meta"):
        peer = parametrised(*torch_vgg(layers, 7, 4096))
    ours = VGG(name, 224, Zeros())  # type: ignore[arg-type]
    assert ours.parameter_count() + FC8 == count
    shapes = []
    for layer in peer:
        shape = tuple(layer.weight.shape)
        shapes += [(shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape, tuple(layer.bias.shape)]
    assert [t.shape for t in ours.named_parameters().values()] == shapes


@on_each_backend
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_vgg_forward_at_an_eighth_of_the_width(name: str) -> None:
    ours = VGG(name, 64, np.random.default_rng(1), width=1 / 8, fc_size=48)
    ours.train(False)
    rng = np.random.default_rng(2)
    for parameter in ours.named_parameters().values():
        if parameter.data.ndim == 1:
            parameter.data[...] = rng.standard_normal(parameter.shape) * 0.1
    features, classifier = torch_vgg([c if c == "M" else c // 8 for c in CONFIGURATIONS[name][0]], 2, 48)
    x = rng.standard_normal((3, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        pairs = list(zip(*[iter(ours.named_parameters().values())] * 2, strict=True))
        for layer, (weight, bias) in zip(parametrised(features, classifier), pairs, strict=True):
            w = torch.tensor(weight.data)
            if w.ndim == 4:
                w = w.permute(0, 3, 1, 2)
            elif layer is classifier[0]:  # fc6 reads ours in the order H, W, C
                w = w.view(48, 2, 2, 64).permute(0, 3, 1, 2).flatten(1)
            layer.weight.copy_(w)
            layer.bias.copy_(torch.tensor(bias.data))
        y = torch.from_numpy(x).permute(0, 3, 1, 2)
        peer = classifier(features(y).flatten(1))
        exact = classifier.double()(features.double()(y.double()).flatten(1))
    # Rounding of each Winograd layer (some 1e-6 of its largest output) passes through at most 16 layers.
    close("fc7", ours(Tensor(x)).data, peer, exact, slack=2e-5)


# NIC ------------------------------------------------------------------------------------------------------------------

VOCABULARY = 29
PAD, START, END, UNK = 0, 1, 2, 3


def small_nic(vocabulary: int = VOCABULARY, seed: int = 3, vivid: float = 1.0) -> tuple[NIC, torch_nic.NIC]:
    """The same small model here and in PyTorch. vivid: multiplies the LSTM's weights and the
    projection's, so that what was said decides what follows."""
    rng = np.random.default_rng(seed)
    cnn = VGG("vgg_micro", 32, rng, width=0.25, fc_size=20, drop=0.0)
    ours = NIC(cnn, vocabulary, rng, rnn_size=24, input_encoding_size=17, drop_prob_lm=0.0)
    for name, parameter in ours.named_parameters().items():
        if name.endswith("bias"):
            parameter.data += (rng.standard_normal(parameter.shape) * 0.1).astype(np.float32)
    ours.projection.weight.data *= vivid
    ours.lstm.weight_x.data *= vivid
    ours.lstm.weight_h.data *= vivid
    peer_cnn = torch_nic.VGG(torch_nic.vgg_layers("vgg_micro", 0.25), 32, 20, 0.0)
    peer = torch_nic.NIC(peer_cnn, vocabulary, fc_size=20, rnn_size=24, input_encoding_size=17, drop_prob_lm=0.0)
    torch_nic.load_arrays(peer, ours.state_arrays())
    return ours, peer


def images_and_tokens(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """4 images, 3 captions each, of 0 to 8 words."""
    images = rng.standard_normal((4, 32, 32, 3)).astype(np.float32)
    tokens = np.zeros((10, 12), np.int32)
    for i, length in enumerate([8, 0, 3, 5, 7, 2, 8, 1, 4, 6, 3, 5]):
        tokens[: length + 2, i] = [START, *rng.integers(UNK, VOCABULARY, length), END]
    return images, tokens


def nchw(images: np.ndarray) -> Any:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@on_each_backend
@pytest.mark.parametrize("compact", [False, True])
def test_nic_loss_and_gradients(compact: bool) -> None:
    ours, peer = small_nic()
    peer.compact = compact
    images, tokens = images_and_tokens(np.random.default_rng(4))
    loss = ours.loss(Tensor(images), tokens)
    peer_loss = peer(nchw(images), torch.from_numpy(tokens).long())
    assert loss.item() == pytest.approx(peer_loss.item(), rel=1e-5)
    loss.backward()
    peer_loss.backward()
    parameters = ours.named_parameters()
    gradients = torch_nic.state_arrays(peer, parameters, gradients=True)
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        off = np.abs(parameter.grad - gradients[name]).max() / np.abs(gradients[name]).max()
        assert off < 1e-4, f"{name}: gradients differ by {off:.3g} of the largest"


def test_the_whole_model_depends_on_every_weight_it_was_given() -> None:
    """The comparisons above would not see a weight that neither model uses."""
    ours, peer = small_nic()
    images, tokens = images_and_tokens(np.random.default_rng(4))
    before = peer(nchw(images), torch.from_numpy(tokens).long()).item()
    for name, array in ours.state_arrays().items():
        moved = array + np.random.default_rng(7).standard_normal(array.shape).astype(np.float32)
        torch_nic.load_arrays(peer, ours.state_arrays() | {name: moved})
        assert peer(nchw(images), torch.from_numpy(tokens).long()).item() != before, name


def test_weights_come_back_from_torch_as_they_went() -> None:
    ours, peer = small_nic()
    arrays = ours.state_arrays()
    back = torch_nic.state_arrays(peer, arrays)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(back[name], array), name


# Beam search ----------------------------------------------------------------------------------------------------------


class Peer:
    """The PyTorch model as a decoder of one image, word by word, in float64."""

    def __init__(self, model: torch_nic.NIC, image: np.ndarray, suppress: tuple[int, ...]) -> None:
        self.model, self.suppress = model.double(), list(suppress)
        with torch.no_grad():
            vector = self.model.image_embedding(self.model.cnn(nchw(image[None]).double()))
            _, self.first = self.model.lstm(vector[None])

    def next(self, word: int, state: Any) -> tuple[Any, Any]:
        """Log-probabilities of the next word, and the state after `word`."""
        with torch.no_grad():
            h, state = self.model.lstm(self.model.word_embedding(torch.tensor([[word]])), state)
            logits = self.model.projection(h[0, 0])
            logits[self.suppress] = -torch.inf
            return functional.log_softmax(logits, 0), state

    def exhaustive(self, max_length: int, penalty: float) -> list[Hypothesis]:
        """Every sentence there is, best first: ended ones, and unended ones of `max_length` words."""
        found = []
        words = [w for w in range(self.model.projection.out_features) if w not in (*self.suppress, END)]
        for length in range(max_length + 1):
            for sentence in itertools.product(words, repeat=length):
                state, logprob, word = self.first, 0.0, START
                for following in (*sentence, END):
                    values, state = self.next(word, state)
                    word, before = following, logprob
                    logprob += values[following].item()
                final = before if length == max_length else logprob  # cut off: the sentence without its END
                found.append(Hypothesis(sentence, final, final / (length + 1) ** penalty))
        return sorted(found, key=lambda h: -h.score)

    def beam(self, k: int, max_length: int, penalty: float) -> list[Hypothesis]:
        """Beam search as textbooks have it: expand all, the k best go on, END among the k best finishes a sentence; what
        has not ended at max_length is taken as it stands."""
        alive: list[tuple[float, tuple[int, ...], Any]] = [(0.0, (), self.first)]
        finished: list[Hypothesis] = []
        for _ in range(max_length):
            candidates = []
            for logprob, words, state in alive:
                values, state = self.next(words[-1] if words else START, state)
                candidates += [(logprob + v, words, w, state) for w, v in enumerate(values.tolist()) if v > -math.inf]
            candidates.sort(key=lambda c: -c[0])
            for total, words, word, _ in candidates[:k]:
                if word == END:
                    finished.append(Hypothesis(words, total, total / (len(words) + 1) ** penalty))
            alive = [(total, (*words, word), state) for total, words, word, state in candidates if word != END][:k]
        finished += [Hypothesis(words, total, total / (len(words) + 1) ** penalty) for total, words, _ in alive]
        return sorted(finished, key=lambda h: -h.score)[:k]


def same(ours: list[Hypothesis], theirs: list[Hypothesis]) -> None:
    assert [h.ids for h in ours] == [h.ids for h in theirs]
    assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-4)
    assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)


@on_each_backend
@pytest.mark.parametrize("penalty", [0.0, 0.8])
def test_a_beam_that_holds_everything_finds_all_sentences_in_order(penalty: float) -> None:
    ours, peer = small_nic(vocabulary=7)  # 3 words that may be said: 40 sentences of up to 3
    images = np.random.default_rng(5).standard_normal((2, 32, 32, 3)).astype(np.float32)
    suppress = (PAD, START, UNK)
    settings = {"beam_size": 120, "max_length": 3, "start": START, "end": END, "suppress": suppress}
    found = beam_search(ours, Tensor(images), **settings, length_penalty=penalty)
    for image, hypotheses in zip(images, found, strict=True):
        expected = Peer(peer, image, suppress).exhaustive(3, penalty)
        assert len(expected) == 40
        same(hypotheses, expected)


@on_each_backend
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_beam_search_against_a_plain_one(k: int, penalty: float) -> None:
    ours, peer = small_nic(seed=2, vivid=2.0)
    images = np.random.default_rng(6).standard_normal((5, 32, 32, 3)).astype(np.float32)
    suppress = (PAD, START, UNK)
    settings = {"beam_size": k, "max_length": 8, "start": START, "end": END, "suppress": suppress}
    found = beam_search(ours, Tensor(images), **settings, length_penalty=penalty)
    lengths = set()
    for image, hypotheses in zip(images, found, strict=True):
        expected = Peer(peer, image, suppress).beam(k, 8, penalty)
        same(hypotheses, expected)
        lengths |= {len(h.ids) for h in expected}
    assert k < 3 or len(lengths) > 2, "the sentences are all alike: the test shows too little"
