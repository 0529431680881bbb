"""`--extend-vocab`: a checkpoint's vocabulary and weights, extended by the words of the data that it is fine-tuned on.

Old words keep their ids and, bit for bit, their rows; logits of old words stay what they were. New words come after them:

* their rows of the word embedding are drawn from the normal distribution of the old words' rows, column by column, so that
  the LSTM is fed numbers of the size that it is used to, and no two words are alike;
* their rows of the projection, and of the classifier of words, weight and bias, are the mean of the old words' rows. The
  mean of logits is at most the logarithm of the mean of their exponentials, so M new words beside V old ones take at
  most M/(V+M) of the probability (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021). With a
  bias of 0 they would begin more probable than the many rare words, whose biases training has pushed far below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pycap.checkpoint import Checkpoint
from pycap.data.vocab import SPECIALS, Vocabulary, count_words

DRAWN = ("word_embedding.weight",)
AVERAGED = ("projection.weight", "projection.bias", "word_head.weight", "word_head.bias")
_NAMED = 8  # new words on the screen


def extend(start: Checkpoint, captions: Sequence[str], threshold: int, seed: int) -> tuple[Checkpoint, str]:
    """(the checkpoint with the words that `captions` hold at least `threshold` times, what to tell of it).

    seed: of the new rows of the word embedding. The optimiser's arrays are those of the old vocabulary. DataError for a
    threshold below 1.
    """
    vocab = start.vocab.extended(captions, threshold)
    added = len(vocab) - len(start.vocab)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xE47]))
    model = dict(start.model)
    for name in (*DRAWN, *AVERAGED):
        if name in model and added:
            model[name] = _longer(model[name], added, rng if name in DRAWN else None)
    return replace(start, model=model, vocab=vocab), _told(start.vocab, vocab, captions, threshold)


def _longer(table: np.ndarray, added: int, rng: np.random.Generator | None) -> np.ndarray:
    """`table` [V, ...] with `added` rows after its own: drawn as the words' rows are distributed, or their mean."""
    words = table[len(SPECIALS) :]
    shape = (added, *table.shape[1:])
    rows = np.broadcast_to(words.mean(axis=0, dtype=np.float64), shape)
    if rng is not None:
        rows = rng.normal(rows, words.std(axis=0, dtype=np.float64))
    return np.concatenate([table, rows.astype(table.dtype)])


def _told(old: Vocabulary, new: Vocabulary, captions: Sequence[str], threshold: int) -> str:
    words, added = old.words[len(SPECIALS) :], new.words[len(old) :]
    unused = len(set(words) - count_words(captions).keys())
    first = f" ({', '.join(added[:_NAMED])}{', ...' if len(added) > _NAMED else ''})" if added else ""
    before, after = (vocab.coverage(captions)["unk_percent"] for vocab in (old, new))
    return (
        f"vocabulary: {len(words)} words kept, {unused} of which the new captions never use; {len(added)} added that they use "
        f"{threshold} times or more{first}; {before:.1f} % of their words were not in it, {after:.1f} % are not now"
    )
