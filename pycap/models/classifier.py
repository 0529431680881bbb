"""A VGG as a classifier of images (Simonyan & Zisserman 2014), and the loss of words guessed from an image, which it uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycap import ops
from pycap.autograd import Tensor
from pycap.models.targets import WordTargets, said_words
from pycap.models.vgg import VGG
from pycap.nn import Linear, Module

Images = Tensor | ops.Pixels


def word_loss(head: Linear, features: Tensor, tokens: Any, normalizer: float | None = None) -> Tensor:
    """Mean cross-entropy, in nats a word, of guessing an image's words from its vector alone.

    features [B,F]; tokens int32 [T,N], an array of the host: see `NIC.loss`. Neither END nor padding counts. normalizer: see
    `ops.linear_cross_entropy`.
    """
    images_of_words, words = said_words(features.shape[0], tokens)
    vectors = ops.embedding(features, images_of_words)
    return ops.linear_cross_entropy(vectors, head.weight, head.bias, words, normalizer=normalizer)


def weighted_word_loss(head: Linear, features: Tensor, targets: WordTargets) -> Tensor:
    """`word_loss` of targets that lie on the device; their ids are not looked at."""
    vectors = ops.embedding(features, targets.rows, trusted=True)
    return ops.weighted_cross_entropy(vectors, head.weight, head.bias, targets.targets, targets.weights)


class Classifier(Module):
    """Images -> fc7 -> one linear layer over the classes.

    A class is the one word of an image's one caption, so that training takes the path of a captioner that learns words: tokens
    int32 [3,B] of the host are START, the class, END. The first four of the `vocabulary` ids are never a class; their logits
    are made, as a captioner's are, and soon fall far below the others. Images in bfloat16 go through the CNN in bfloat16; its
    fc7 is cast, and logits and loss are float32.
    """

    def __init__(self, cnn: VGG, vocabulary: int, rng: np.random.Generator | None) -> None:
        self.cnn = cnn
        self.vocabulary = vocabulary
        self.head = Linear(cnn.output_size, vocabulary, rng)

    def word_loss(self, images: Images, tokens: Any, normalizer: float | None = None) -> Tensor:
        """Mean cross-entropy in nats an image. images [B,S,S,3]; tokens int32 [3,B]; normalizer: see `word_loss`."""
        return word_loss(self.head, self._features(images), tokens, normalizer)

    loss = word_loss  # there is nothing else to learn

    def weighted_loss(self, images: Images, targets: Any) -> Tensor:
        """`word_loss` of `WordTargets` that lie on the device: the sum of their weighted losses."""
        return weighted_word_loss(self.head, self._features(images), targets)

    def logits(self, images: Images) -> Tensor:
        """float32 [B, vocabulary]."""
        return self.head(self._features(images))

    def image_weights(self) -> dict[str, Any]:
        """By name, the weights that images in bfloat16 are multiplied with."""
        return {f"cnn.{n}": t.data for n, t in self.cnn.named_parameters().items() if t.data.ndim > 1}

    def learning(self, words_only: bool = True) -> list[str]:
        """Names of the parameters that get a gradient, frozen ones left out."""
        return [name for name, tensor in self.named_parameters().items() if tensor.requires_grad]

    def _features(self, images: Images) -> Tensor:
        return ops.cast(self.cnn(images), self.head.weight.dtype)
