"""What the captioners share: losses over a language model's outputs, and the state between two words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from pycap import memory, ops
from pycap.autograd import Tensor
from pycap.backends import kernels
from pycap.device import to_device
from pycap.models.classifier import Images, weighted_word_loss, word_loss
from pycap.models.targets import CaptionTargets, WordTargets, image_of, runs
from pycap.models.vgg import VGG
from pycap.nn import LSTM, Embedding, Linear, Module

AnyState = TypeVar("AnyState", bound="State")


@dataclass
class State:
    """What a captioner keeps of each row between two words: the LSTM's h and c [N,H]; subclasses add to it."""

    h: Tensor
    c: Tensor

    def rows(self: AnyState, index: Any) -> AnyState:
        """The states of the rows `index` (int array of the host), for reordering beams."""
        index = to_device(index)
        return type(self)(*(Tensor(own.data[index]) for own in self._tensors()))

    def rows_into(self: AnyState, target: AnyState, index: Any) -> None:
        """Write the states of the rows `index` (int32, on the device) into the arrays of `target`."""
        for own, its in zip(self._tensors(), target._tensors(), strict=True):
            kernels.embedding_forward(its.data, own.data, index)

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


class CaptionModel(Module, ABC):
    """A CNN and a language model. Subclasses make the layers named here, and say how the language model is told of the image.

    Tokens are int32, time-major, arrays of the host: START, words, END, padding (0). Images in bfloat16 go through the CNN and
    the image embedding in bfloat16; what these hand over is cast then: the language model, and so every loss, is float32.
    Fc7 vectors [B,F], which a CNN made before, may be given in place of images [B,S,S,3].
    blind: the language model alone: zeros stand for the embedded image, and no CNN runs.
    word_head, where there is one: a classifier of words on fc7, which `word_loss` trains.
    """

    cnn: VGG
    vocabulary: int
    image_embedding: Linear
    word_embedding: Embedding
    lstm: LSTM
    projection: Linear
    word_head: Linear
    blind: bool

    @abstractmethod
    def _outputs(self, images: Images, inputs: Any, image_of: Any, runs: Any, trusted: bool = False) -> Tensor:
        """What `projection` takes [(T-1)*N,H] after each of the input words int32 [T-1,N]; image_of int32 [N]: whose captions
        they are; runs uint8 [T,N]: which tokens are no padding; trusted: see `ops.embedding`."""

    @abstractmethod
    def begin(self, images: Images) -> Any:
        """The `State` before START, a row an image."""

    @abstractmethod
    def advance(self, state: Any, words: Any) -> tuple[Any, Any]:
        """Feed one word (int32 [N]) to each row; returns the next word's logits [N,V] and the new state."""

    def loss(self, images: Images, tokens: Any, normalizer: float | None = None) -> Tensor:
        """Mean cross-entropy a token in nats (END counts, padding does not).

        tokens int32 [T,N], an array of the host, N a multiple of B: the captions of image i stand in columns i*N/B ..
        (i+1)*N/B, and share its one pass through the CNN. normalizer: see `ops.linear_cross_entropy`.
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
        return word_loss(self.word_head, self._head_features(images), tokens, normalizer)

    def weighted_loss(self, images: Images, targets: CaptionTargets | WordTargets) -> Tensor:
        """`loss`, or `word_loss`, of targets that lie on the device, of a fixed size: the sum of their weighted losses.

        Whoever made them has checked their ids, which are not looked at."""
        if isinstance(targets, WordTargets):
            return weighted_word_loss(self.word_head, self._head_features(images), targets)
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
        unseen = ("cnn.", "image_embedding.") if self.blind and not words_only else ()
        return [
            name
            for name, tensor in self.named_parameters().items()
            if tensor.requires_grad
            and not name.startswith(unseen)
            and (name.startswith("cnn.") or name.startswith("word_head.") == words_only)
        ]

    def _features(self, images: Images) -> Tensor:
        """The fc7 vectors [B,F]: of the CNN, or those that are given in place of images."""
        if isinstance(images, Tensor) and len(images.shape) == 2:
            return images
        return self.cnn(images)

    def _head_features(self, images: Images) -> Tensor:
        """What the classifier of words sees, in its precision."""
        return ops.cast(self._features(images), self.word_head.weight.dtype)

    def _unseen(self, rows: int, size: int) -> Tensor:
        """Zeros [rows,size] in the language model's precision: what a blind captioner has in an image's place."""
        zeros = memory.empty((rows, size), self.lstm.weight_x.dtype)
        zeros.fill(0)
        return Tensor(zeros)
