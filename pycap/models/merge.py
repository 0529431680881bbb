"""The merge captioner of the Keras article: image and words meet after the LSTM, not in it (Tanti et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pycap import memory, ops
from pycap.autograd import Tensor
from pycap.models.captions import CaptionModel, Images, State
from pycap.models.vgg import VGG
from pycap.nn import LSTM, Dropout, Embedding, Linear
from pycap.nn.module import orthogonal, uniform


@dataclass
class MergeState(State):
    """image [N,H]: the image's vector, which is added to h at every word."""

    image: Tensor


class Merge(CaptionModel):
    """fc7 ("fc2" to Keras) -> Dropout -> Dense, ReLU; words -> Embedding -> Dropout -> LSTM; their sum -> Dense, ReLU -> Dense.

    The article trains on a row for every prefix of a caption: the LSTM reads the prefix, and what follows is predicted from its
    last state. But the state after t words is what one pass over the whole caption has after t words, and the image is no part
    of it, so here all prefixes are one pass: the loss and its gradients are the same (docs/merge.md). A caption's prefixes
    share their dropout masks; the captions of an image do not.

    Initial weights are Keras': Glorot's uniform, orthogonal rows for the recurrence, U(-0.05, 0.05) for the words; biases 0
    but for the forget gates' 1. blind, word_head: see `CaptionModel`.
    """

    def __init__(
        self,
        cnn: VGG,
        vocabulary: int,
        rng: np.random.Generator | None,
        *,
        rnn_size: int = 256,
        input_encoding_size: int = 256,
        drop_prob_lm: float = 0.5,
        word_head: bool = False,
        blind: bool = False,
    ) -> None:
        self.cnn = cnn
        self.vocabulary = vocabulary
        self.drop_image = Dropout(drop_prob_lm)
        self.image_embedding = Linear(cnn.output_size, rnn_size, None, relu=True)
        self.word_embedding = Embedding(vocabulary, input_encoding_size, None)
        self.drop_words = Dropout(drop_prob_lm)
        self.lstm = LSTM(input_encoding_size, rnn_size, None)
        self.decoder = Linear(rnn_size, rnn_size, None, relu=True)
        self.projection = Linear(rnn_size, vocabulary, None)
        if rng is not None:
            for layer in (self.image_embedding, self.decoder, self.projection):
                layer.weight = _glorot(rng, layer.weight.shape)
            self.word_embedding.weight = uniform(rng, self.word_embedding.weight.shape, 0.05)
            self.lstm.weight_x = _glorot(rng, self.lstm.weight_x.shape)
            self.lstm.weight_h = orthogonal(rng, self.lstm.weight_h.shape)
        if word_head:
            self.word_head = Linear(cnn.output_size, vocabulary, rng)
        self.blind = blind

    def _outputs(self, images: Images, inputs: Any, image_of: Any, runs: Any, trusted: bool = False) -> Tensor:
        steps, n = inputs.shape
        if self.blind:
            image = self._unseen(n, self.lstm.hidden)
        else:
            image = self._embedded(self.drop_image(ops.embedding(self._features(images), image_of, trusted=trusted)))
        words = self.drop_words(self.word_embedding(inputs, trusted=trusted))
        h, _ = self.lstm(words, mask=runs[1:])  # a word counts where another one follows it
        return self.decoder(ops.reshape(ops.add(h, image), (steps * n, self.lstm.hidden)))

    def _embedded(self, features: Tensor) -> Tensor:
        """The image's vector [N,H], in the language model's precision."""
        return ops.cast(self.image_embedding(features), self.lstm.weight_x.dtype)

    def begin(self, images: Images) -> MergeState:
        """The state before any word; the images are looked at once."""
        n, hidden = images.shape[0], self.lstm.hidden
        image = self._unseen(n, hidden) if self.blind else self._embedded(self._features(images))
        return MergeState(Tensor(memory.zeros((n, hidden))), Tensor(memory.zeros((n, hidden))), image)

    def advance(self, state: MergeState, words: Any) -> tuple[Any, MergeState]:
        h, c = self.lstm.step(self.word_embedding(words), state.h, state.c)
        return self.projection(self.decoder(ops.add(h, state.image))).data, MergeState(h, c, state.image)


def _glorot(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """U(-b, b), b = sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010)."""
    return uniform(rng, shape, (6 / sum(shape)) ** 0.5)
