"""Self-critical sequence training (Rennie et al. 2017): captions that the model draws, and how much better each is than what
it would say of the image when asked (docs/math/scst.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycap.config import ConfigError, TrainConfig
from pycap.data import Example
from pycap.data.loader import Batch
from pycap.data.vocab import END, PAD, SPECIALS, START, Vocabulary, tokenize
from pycap.decode import Sampling, sample
from pycap.distributed import ALONE, Ranks
from pycap.metrics import CiderD

STAGE = "scst"

#: Ids that are never drawn: padding is no word of the model's. UNK is one, and no reference has it.
_NEVER = (PAD,)


def check(config: TrainConfig) -> None:
    """ConfigError where a self-critical run has nothing to start from, or would follow another gradient than its own."""
    if not (config.init_from or config.resume):
        raise ConfigError(
            f"init_from: stage {STAGE} goes on from a model that captions already; "
            "train one first, and give its run with --init-from"
        )
    if config.pretrain_words:
        raise ConfigError(
            f"pretrain_words: {config.pretrain_words} belongs to a model's beginning, not to stage {STAGE}; give 0"
        )
    for name in ("drop_prob_lm", "drop_prob_cnn"):
        if getattr(config, name):
            raise ConfigError(
                f"{name}: {getattr(config, name)}: stage {STAGE} draws captions from the whole model, and with dropout would "
                "follow the gradient of another; give 0"
            )


class Reward:
    """CIDEr-D of sentences against an image's captions, where END counts as a word of both.

    Frequencies of n-grams come from all captions that are trained on. Their words are as the vocabulary's (`tokenize`); those
    that it lacks stay what they are, so that nothing a model says matches them, nor does UNK match anything.
    """

    def __init__(self, examples: Iterable[Example], vocab: Vocabulary) -> None:
        """examples: all that are trained on."""
        self._words = vocab.words
        self._cider = CiderD(map(_references, examples))

    def __call__(self, example: Example, sentences: Sequence[Sequence[int]]) -> list[float]:
        """Of each sentence of ids, END included where it ended, about the image of `example`; in [0, 10]."""
        words = [[self._words[i] for i in sentence] for sentence in sentences]
        return self._cider.scores(words, _references(example))


def _references(example: Example) -> list[list[str]]:
    return [[*tokenize(caption), SPECIALS[END]] for caption in example.captions]


@dataclass(frozen=True)
class Drawn:
    """batch: the given one with drawn captions in place of the human ones. advantages float32 [N]: of each of them, its reward
    less that of the greedy caption of its image. figures: `reward`, `baseline`, means; `length`, mean words; `ended`, share of
    drawn captions that reached END."""

    batch: Batch
    advantages: NDArray[np.float32]
    figures: dict[str, float]


class Critic:
    """Draws captions for batches, and rewards them."""

    def __init__(self, model: Any, reward: Reward, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        """model: with `begin` and `advance`. Of each image `config.seq_per_img` captions of at most `config.max_length` words
        are drawn, `config.micro_batch` images at a time. ranks: among which batches are shared."""
        self._model, self._reward, self._config, self._ranks = model, reward, config, ranks

    def draw(self, batch: Batch, inputs: Callable[[slice], Any], step: int, first_image: int = 0) -> Drawn:
        """Captions for a batch by the model as it is, without dropout; each rank calls this for its share.

        inputs: what `model.begin` takes for a slice of the batch's images. step: with `config.seed` and an image's number in
        the whole batch it decides what is drawn. first_image: the share's first one's. The figures are of all ranks' captions.
        """
        config, images = self._config, len(batch)
        seed = int(np.random.SeedSequence([config.seed, 0x5C57, step]).generate_state(1, np.uint64)[0])
        how = Sampling(samples=config.seq_per_img, seed=seed)
        size = config.micro_batch or max(images, 1)
        found: list[list[list[int]]] = []  # of each image, the greedy sentence first
        with self._model.evaluating():
            for first in range(0, images, size):
                part = slice(first, min(first + size, images))
                some = sample(
                    self._model,
                    inputs(part),
                    how,
                    max_length=config.max_length,
                    start=START,
                    end=END,
                    suppress=_NEVER,
                    keys=range(first_image + part.start, first_image + part.stop),
                    greedy=True,
                )
                found += [[self._closed(each.ids) for each in sentences] for sentences in some]
        rewards = np.array([self._reward(*pair) for pair in zip(batch.examples, found, strict=True)])
        rewards = rewards.reshape(images, 1 + config.seq_per_img)
        drawn = [sentence for sentences in found for sentence in sentences[1:]]
        ended = [sentence[-1] == END for sentence in drawn]
        sums = [rewards[:, 1:].sum(), rewards[:, 0].sum(), sum(map(len, drawn)), sum(ended), len(drawn), images]
        reward, baseline, length, ends, captions, images = self._ranks.total(np.array(sums)).tolist()
        figures = {
            "reward": reward / captions,
            "baseline": baseline / images,
            "length": length / captions - ends / captions,
            "ended": ends / captions,
        }
        advantages = (rewards[:, 1:] - rewards[:, :1]).astype(np.float32).reshape(-1)
        return Drawn(replace(batch, tokens=_tokens(drawn)), advantages, figures)

    def _closed(self, ids: Sequence[int]) -> list[int]:
        """With END, but where there was no room for it."""
        return [*ids, END] if len(ids) < self._config.max_length else list(ids)


def _tokens(sentences: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """int32 [T,N]: each after START, with padding behind it."""
    tokens = np.full((1 + max(map(len, sentences), default=0), len(sentences)), PAD, np.int32)
    tokens[0] = START
    for column, sentence in enumerate(sentences):
        tokens[1 : 1 + len(sentence), column] = sentence
    return tokens
