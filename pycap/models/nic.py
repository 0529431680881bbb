"""NIC, the joint CNN-LSTM captioner (Vinyals et al. 2015; Zhu et al., ImageCLEF 2016)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import memory, ops
from pycap.autograd import Tensor
from pycap.models.captions import CaptionModel, Images, State
from pycap.models.vgg import VGG
from pycap.nn import LSTM, Dropout, Embedding, Linear


class NIC(CaptionModel):
    """The image's fc7 vector, linearly embedded, is the LSTM's first input; then START, the words, and END is predicted.

    h0 = c0 = 0. Input and output embeddings are separate. Dropout acts on the LSTM's outputs (and, inside the CNN, on fc6
    and fc7). blind, word_head: see `CaptionModel`.
    """

    def __init__(
        self,
        cnn: VGG,
        vocabulary: int,
        rng: np.random.Generator | None,
        *,
        rnn_size: int = 512,
        input_encoding_size: int = 512,
        drop_prob_lm: float = 0.5,
        word_head: bool = False,
        blind: bool = False,
    ) -> None:
        self.cnn = cnn
        self.vocabulary = vocabulary
        self.image_embedding = Linear(cnn.output_size, input_encoding_size, rng)
        self.word_embedding = Embedding(vocabulary, input_encoding_size, rng)
        self.lstm = LSTM(input_encoding_size, rnn_size, rng)
        self.drop = Dropout(drop_prob_lm)
        self.projection = Linear(rnn_size, vocabulary, rng)
        if word_head:
            self.word_head = Linear(cnn.output_size, vocabulary, rng)
        self.blind = blind

    def _outputs(self, images: Images, inputs: Any, image_of: Any, runs: Any, trusted: bool = False) -> Tensor:
        steps, n = inputs.shape
        first = ops.embedding(self._embedded(images), image_of, trusted=trusted)
        words = self.word_embedding(inputs, trusted=trusted)
        h, _ = self.lstm(ops.concatenate([ops.reshape(first, (1, n, -1)), words]), mask=runs)
        return ops.reshape(self.drop(ops.getitem(h, slice(1, None))), (steps * n, self.lstm.hidden))

    def _embedded(self, images: Images) -> Tensor:
        """The LSTM's first input [B,E], in the language model's precision."""
        if self.blind:
            return self._unseen(images.shape[0], self.image_embedding.weight.shape[0])
        return ops.cast(self.image_embedding(self._features(images)), self.lstm.weight_x.dtype)

    def begin(self, images: Images) -> State:
        """The state after the LSTM has seen the images."""
        x = self._embedded(images)
        zero = Tensor(memory.zeros((x.shape[0], self.lstm.hidden)))
        return State(*self.lstm.step(x, zero, zero))

    def advance(self, state: State, words: Any) -> tuple[Any, State]:
        h, c = self.lstm.step(self.word_embedding(words), state.h, state.c)
        return self.projection(h).data, State(h, c)
