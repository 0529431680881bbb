"""Decoding: greedy and beam search over a batch of images at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pycap import ops
from pycap.autograd import Tensor, no_grad
from pycap.device import to_host


class Decoder(Protocol):
    """What a captioning model offers to the search."""

    def begin(self, images: Tensor) -> Any:
        """The state [N, ...] after the images; it has `rows(index)`."""

    def advance(self, state: Any, words: Any) -> tuple[Any, Any]:
        """Feed int32 words [N]: (logits [N,V] for the next word, the new state)."""


@dataclass(frozen=True)
class Hypothesis:
    """A sentence without START and END. `logprob`: of all its words and END (if it was reached), natural logarithm.
    `score`: what the search ranked it by."""

    ids: tuple[int, ...]
    logprob: float
    score: float


def beam_search(
    model: Decoder,
    images: Tensor,
    *,
    beam_size: int,
    max_length: int,
    start: int,
    end: int,
    suppress: tuple[int, ...],
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """The `beam_size` best sentences of each image, best first; a beam of 1 is greedy search.

    images [N,S,S,3], normalised. max_length: most words of a sentence, END not counted; what has not ended by then is taken
    as it is. suppress: ids that are never produced (padding, START, UNK). length_penalty: sentences are ranked by
    logprob / (words + 1) ** length_penalty. An image whose best unfinished beam cannot overtake its finished ones any more
    leaves the batch. Ties go to the earlier beam, then to the smaller id, so results do not depend on the batch.
    """
    if beam_size < 1 or max_length < 1:
        raise ValueError(f"beam search: beam_size {beam_size} and max_length {max_length} must be at least 1")
    k = beam_size
    with no_grad():
        state = model.begin(images)
        n = images.shape[0]
        finished: list[list[Hypothesis]] = [[] for _ in range(n)]
        beams: list[list[tuple[int, ...]]] = [[()] for _ in range(n)]  # of the images still in the batch
        scores = np.zeros((n, 1))
        active = list(range(n))
        words = np.full(n, start, np.int32)
        for _ in range(max_length):
            if not active:
                break
            logits, state = model.advance(state, words)
            wide = min(k + 1, logits.shape[1] - len(set(suppress)))  # one more than k: END may take a place
            values, ids = map(to_host, ops.log_softmax_topk(logits, wide, suppress))
            width = scores.shape[1]
            totals = (scores[:, :, None] + values.astype(np.float64).reshape(-1, width, wide)).reshape(len(active), -1)
            order = np.argsort(-totals, axis=1, kind="stable")
            ids = ids.reshape(len(active), -1)
            still, rows, kept_words, kept_scores, kept_beams = [], [], [], [], []
            for a, image in enumerate(active):
                chosen: list[tuple[int, int, float]] = []  # (beam, word, score) of the beams that go on
                for rank, flat in enumerate(order[a]):
                    total = float(totals[a, flat])
                    if len(chosen) == k or total == -np.inf:
                        break
                    beam, word = int(flat) // wide, int(ids[a, flat])
                    if word == end:
                        if rank < k:
                            finished[image].append(_hypothesis(beams[a][beam], total, length_penalty))
                    else:
                        chosen.append((beam, word, total))
                finished[image] = _best(finished[image], k)
                if chosen and not _settled(finished[image], chosen[0][2], k, max_length, length_penalty):
                    chosen += [(chosen[0][0], chosen[0][1], -np.inf)] * (k - len(chosen))  # keep the batch rectangular
                    still.append(image)
                    rows += [a * width + beam for beam, _, _ in chosen]
                    kept_words += [word for _, word, _ in chosen]
                    kept_scores.append([score for _, _, score in chosen])
                    kept_beams.append([(*beams[a][beam], word) for beam, word, _ in chosen])
            active, beams = still, kept_beams
            if active:
                state = state.rows(np.asarray(rows))
                words, scores = np.asarray(kept_words, np.int32), np.asarray(kept_scores)
        for a, image in enumerate(active):  # no room for another word: what stands is the sentence
            stands = [(ids, float(score)) for ids, score in zip(beams[a], scores[a], strict=True) if score > -np.inf]
            cut = [_hypothesis(ids, score, length_penalty) for ids, score in stands]
            finished[image] = _best(finished[image] + cut, k)
    return finished


def _hypothesis(ids: tuple[int, ...], logprob: float, length_penalty: float) -> Hypothesis:
    return Hypothesis(ids, logprob, logprob / (len(ids) + 1) ** length_penalty)


def _best(hypotheses: list[Hypothesis], k: int) -> list[Hypothesis]:
    """The k best."""
    return sorted(hypotheses, key=lambda h: -h.score)[:k]


def _settled(finished: list[Hypothesis], logprob: float, k: int, max_length: int, length_penalty: float) -> bool:
    """Whether no beam can enter the k best any more: log-probabilities only fall, and length helps up to max_length."""
    if len(finished) < k:
        return False
    return logprob / (max_length + 1) ** length_penalty <= finished[-1].score
