"""Beam search with its bookkeeping on the host: the definition, which `device` follows, and what the CPU runs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pycap import ops
from pycap.autograd import Tensor, no_grad
from pycap.decode.rules import NOTHING, Hypothesis, Rules, best
from pycap.device import to_host


class Decoder(Protocol):
    """What a captioning model offers to the search."""

    def begin(self, images: Tensor | ops.Pixels) -> Any:
        """The state [N, ...] after the images; it has `rows(index)`."""

    def advance(self, state: Any, words: Any) -> tuple[Any, Any]:
        """Feed int32 words [N]: (logits [N,V] for the next word, the new state)."""


def host_beam_search(model: Decoder, images: Tensor | ops.Pixels, rules: Rules) -> list[list[Hypothesis]]:
    """`beam_search` where the best words of each row come to the host at every step."""
    k = rules.beam_size
    with no_grad():
        state = model.begin(images)
        n = images.shape[0]
        finished: list[list[Hypothesis]] = [[] for _ in range(n)]
        beams: list[list[tuple[int, ...]]] = [[()] for _ in range(n)]  # of the images still in the batch
        scores = np.zeros((n, 1))
        active = list(range(n))
        words = np.full(n, rules.start, np.int32)
        for _ in range(rules.max_length):
            if not active:
                break
            logits, state = model.advance(state, words)
            wide = rules.candidates(logits.shape[1])
            values, ids = map(to_host, ops.log_softmax_topk(logits, wide, rules.suppress))
            width = scores.shape[1]
            totals = (scores[:, :, None] + values.astype(np.float64).reshape(-1, width, wide)).reshape(len(active), -1)
            order = np.argsort(-totals, axis=1, kind="stable")
            ids = ids.reshape(len(active), -1)
            still, rows, kept_words, kept_scores, kept_beams = [], [], [], [], []
            for a, image in enumerate(active):
                chosen: list[tuple[int, int, float]] = []  # (beam, word, score) of the beams that go on
                for rank, flat in enumerate(order[a]):
                    total = float(totals[a, flat])
                    if len(chosen) == k or not total > -np.inf:  # NaN comes last
                        break
                    beam, word = int(flat) // wide, int(ids[a, flat])
                    if word == rules.end:
                        if rank < k:
                            finished[image].append(_hypothesis(beams[a][beam], total, rules))
                    else:
                        chosen.append((beam, word, total))
                finished[image] = best(finished[image], k)
                if chosen and not _settled(finished[image], chosen[0][2], rules):
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
            cut = [_hypothesis(ids, score, rules) for ids, score in stands]
            finished[image] = best(finished[image] + cut, k)
    return [sentences or [NOTHING] for sentences in finished]


def _hypothesis(ids: tuple[int, ...], logprob: float, rules: Rules) -> Hypothesis:
    return Hypothesis(ids, logprob, logprob / rules.divisor(len(ids)))


def _settled(finished: list[Hypothesis], logprob: float, rules: Rules) -> bool:
    """Whether no beam can enter the k best any more: log-probabilities only fall, and length helps up to max_length."""
    if len(finished) < rules.beam_size:
        return False
    return logprob / rules.divisor(rules.max_length) <= finished[-1].score
