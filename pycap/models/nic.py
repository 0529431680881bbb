"""NIC, the joint CNN-LSTM captioner (Vinyals et al. 2015; Zhu et al., ImageCLEF 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pycap import memory, ops
from pycap.autograd import Tensor
from pycap.backends import kernels
from pycap.device import to_device
from pycap.models.classifier import Images, weighted_word_loss, word_loss
from pycap.models.targets import CaptionTargets, WordTargets, image_of, runs
from pycap.models.vgg import VGG
from pycap.nn import LSTM, Dropout, Embedding, Linear, Module


@dataclass
class State:
    """The LSTM's state between two words: h and c [N,H]."""

    h: Tensor
    c: Tensor

    def rows(self, index: Any) -> State:
        """The states of the rows `index` (int array of the host), for reordering beams."""
        index = to_device(index)
        return State(Tensor(self.h.data[index]), Tensor(self.c.data[index]))

    def rows_into(self, target: State, index: Any) -> None:
        """Write the states of the rows `index` (int32, on the device) into the arrays of `target`."""
        for mine, its in ((self.h, target.h), (self.c, target.c)):
            kernels.embedding_forward(its.data, mine.data, index)


class NIC(Module):
    """The image's fc7 vector, linearly embedded, is the LSTM's first input; then START, the words, and END is predicted.

    h0 = c0 = 0. Input and output embeddings are separate. Dropout acts on the LSTM's outputs (and, inside the CNN, on fc6
    and fc7). Tokens are int32, time-major, arrays of the host: START, words, END, padding (0). word_head: with a classifier
    of words on fc7, which `word_loss` trains. Images in bfloat16 go through the CNN and the image embedding in bfloat16; what
    the CNN hands over is cast then: the language model, and so every loss, is float32.
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

    def loss(self, images: Images, tokens: Any, normalizer: float | None = None) -> Tensor:
        """Mean cross-entropy a token in nats (END counts, padding does not).

        images [B,S,S,3]; tokens int32 [T,N], an array of the host, N a multiple of B: the captions of image i stand in columns
        i*N/B .. (i+1)*N/B, and share its one pass through the CNN. normalizer: see `ops.linear_cross_entropy`.
        """
        outputs = self._outputs(images, tokens[:-1], image_of(images.shape[0], tokens), runs(tokens))
        targets = np.ascontiguousarray(tokens[1:]).reshape(-1)
        weight, bias = self.projection.weight, self.projection.bias
        return ops.linear_cross_entropy(outputs, weight, bias, targets, normalizer=normalizer)

    def word_loss(self, images: Images, tokens: Any, normalizer: float | None = None) -> Tensor:
        """Mean cross-entropy, in nats a word, of guessing the words of an image's captions from the image alone.

        A CNN that has seen nothing yet learns to see from this (multinomial logistic loss over a bag of words; Joulin et
        al. 2016, "Learning visual features from large weakly supervised data"). Needs a model made with `word_head`.
        Arguments as for `loss`; neither END nor padding counts.
        """
        return word_loss(self.word_head, self._features(images), tokens, normalizer)

    def weighted_loss(self, images: Images, targets: CaptionTargets | WordTargets) -> Tensor:
        """`loss`, or `word_loss`, of targets that lie on the device, of a fixed size: the sum of their weighted losses.

        Whoever made them has checked their ids, which are not looked at."""
        if isinstance(targets, WordTargets):
            return weighted_word_loss(self.word_head, self._features(images), targets)
        rows, words, weights = targets.rows, targets.targets, targets.weights
        outputs = self._outputs(images, targets.inputs, targets.image_of, targets.runs, trusted=True)
        weight, bias = self.projection.weight, self.projection.bias
        return ops.weighted_cross_entropy(outputs, weight, bias, words, weights, rows, targets.places)

    def image_weights(self) -> dict[str, Any]:
        """By name, the weights that images in bfloat16 are multiplied with: the CNN's and the image embedding's."""
        wide = {n: t.data for n, t in self.named_parameters().items() if n.startswith(("cnn.", "image_embedding."))}
        return {name: array for name, array in wide.items() if array.ndim > 1}

    def learning(self, words_only: bool) -> list[str]:
        """Names of the parameters that get a gradient from `word_loss` (words_only) or `loss`, frozen ones left out."""
        return [
            name
            for name, tensor in self.named_parameters().items()
            if tensor.requires_grad and (name.startswith("cnn.") or name.startswith("word_head.") == words_only)
        ]

    def _outputs(self, images: Images, inputs: Any, image_of: Any, runs: Any, trusted: bool = False) -> Tensor:
        """The LSTM's outputs [(T-1)*N,H] after each of the input words int32 [T-1,N]; image_of int32 [N]: whose captions they
        are; runs uint8 [T,N]: the steps that count; trusted: see `ops.embedding`."""
        steps, n = inputs.shape
        first = ops.embedding(self._embedded(images), image_of, trusted=trusted)
        words = self.word_embedding(inputs, trusted=trusted)
        h, _ = self.lstm(ops.concatenate([ops.reshape(first, (1, n, -1)), words]), mask=runs)
        return ops.reshape(self.drop(ops.getitem(h, slice(1, None))), (steps * n, self.lstm.hidden))

    def _features(self, images: Images) -> Tensor:
        """What the CNN sees, in the language model's precision."""
        return ops.cast(self.cnn(images), self.word_head.weight.dtype)

    def _embedded(self, images: Images) -> Tensor:
        """The LSTM's first input, in the language model's precision."""
        return ops.cast(self.image_embedding(self.cnn(images)), self.lstm.weight_x.dtype)

    def begin(self, images: Images) -> State:
        """The state after the LSTM has seen the images [N,S,S,3]."""
        x = self._embedded(images)
        zero = Tensor(memory.zeros((x.shape[0], self.lstm.hidden)))
        return State(*self.lstm.step(x, zero, zero))

    def advance(self, state: State, words: Any) -> tuple[Any, State]:
        """Feed one word (int32 [N]) to each row; returns the next word's logits [N,V] and the new state."""
        h, c = self.lstm.step(self.word_embedding(words), state.h, state.c)
        return self.projection(h).data, State(h, c)
