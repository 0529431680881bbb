"""What a captioner is to predict: captions as the arrays that its losses take, on the host, padded to fixed sizes.

A batch's captions are tokens int32 [T,N], time-major: START, words, END, then padding (0). Losses that run from a recorded
sequence of launches need the same sizes at every step, so here captions are padded to T steps, and the positions that count
to K of them; what is padding has weight 0. An id of -1 stands for no row, so that no row of a table collects the zeros of
steps that do not count: on a GPU a row's gradients are added up one after another (docs/math/embedding.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD, END = 0, 2  # the vocabulary's first ids are PAD, START and END; words (UNK among them) follow
NO_ROW = -1  # what primitives take for no row of a table


@dataclass(frozen=True)
class CaptionTargets:
    """For each word its predecessors and the image.

    inputs int32 [T-1,N], -1 where what follows is padding; image_of int32 [N]; runs uint8 [T,N]; rows int32 [K]: of the
    (T-1)*N positions, all different; places int32 [(T-1)*N]: where each stands in rows, -1 where it has no weight; targets
    int32 [K]; weights float32 [K].
    """

    inputs: Any
    image_of: Any
    runs: Any
    rows: Any
    places: Any
    targets: Any
    weights: Any


@dataclass(frozen=True)
class WordTargets:
    """For each word only the image. rows int32 [K]: the image; targets int32 [K]; weights float32 [K]."""

    rows: Any
    targets: Any
    weights: Any


def image_of(images: int, tokens: Any) -> NDArray[np.int32]:
    """int32 [N]: whose captions the columns of tokens [T,N] are; each image has equally many."""
    return np.repeat(np.arange(images, dtype=np.int32), tokens.shape[1] // images)


def runs(tokens: Any) -> NDArray[np.uint8]:
    """uint8 [T,N]: the LSTM's steps that count, of which the first sees the image. A step whose target is padding is not
    needed, nor is any after it."""
    return (tokens != PAD).astype(np.uint8)


def said_words(images: int, tokens: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(image, word) of each word of the captions; the words of one caption stand together."""
    words = np.ascontiguousarray(tokens[1:].T)
    whose = np.repeat(image_of(images, tokens), words.shape[1])
    said = words.reshape(-1) > END
    return whose[said], words.reshape(-1)[said]


def count(tokens: Any, words_only: bool) -> int:
    """How many positions count: words and ENDs, or only words."""
    return int(np.count_nonzero(tokens[1:] > END if words_only else tokens[1:] != PAD))


def caption_targets(
    images: int, tokens: Any, length: int, size: int, total: int, factors: Any = None
) -> CaptionTargets:
    """Targets of captions with T = length and K = size; each position that counts has the weight 1 / total, and the first rows.

    factors: float32 [N], by which the weights of each caption are multiplied. ValueError where length or size is too small.
    """
    steps, n = tokens.shape
    used = count(tokens, False)
    if steps > length or not used <= size <= (length - 1) * n:
        raise ValueError(f"captions {tokens.shape} with {used} targets do not fit {length} steps with {size} targets")
    padded = np.full((length, n), PAD, np.int32)
    padded[:steps] = tokens
    inputs = np.where(padded[1:] != PAD, padded[:-1], NO_ROW).astype(np.int32)
    flat = padded[1:].reshape(-1)
    filler = np.flatnonzero(flat == PAD)[: size - used]  # rows of their own, so that none is named twice
    rows = np.concatenate([np.flatnonzero(flat != PAD), filler]).astype(np.int32)
    places = np.full(flat.shape, NO_ROW, np.int32)
    places[rows[:used]] = np.arange(used, dtype=np.int32)
    weights = np.zeros(size, np.float32)
    weights[:used] = 1 / max(total, 1)
    if factors is not None:
        weights[:used] *= factors[rows[:used] % n]
    return CaptionTargets(inputs, image_of(images, tokens), runs(padded), rows, places, flat[rows], weights)


def word_targets(images: int, tokens: Any, size: int, total: int) -> WordTargets:
    """The words of captions with K = size; each has the weight 1 / total. ValueError where size is too small."""
    whose, words = said_words(images, tokens)
    if len(words) > size:
        raise ValueError(f"{len(words)} words do not fit {size} targets")
    filled = np.zeros((2, size), np.int32)
    filled[0, : len(words)], filled[1, : len(words)] = whose, words
    weights = np.zeros(size, np.float32)
    weights[: len(words)] = 1 / max(total, 1)
    return WordTargets(filled[0], filled[1], weights)
