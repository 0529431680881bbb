"""The executable definition of a step of beam search: which beams of each image go on, and which sentences have ended."""

from __future__ import annotations

from typing import Any

from pycap.device import array_module

Array = Any


def beam_select(
    words: Array, parents: Array, scores: Array, steps: Array, done: Array, finished: Array, origins: Array, history: Array,
    values: Array, indices: Array, penalties: Array, end: int,
) -> None:  # fmt: skip
    xp = array_module(scores)
    (n, k), wide, most = scores.shape, values.shape[1], history.shape[1]
    images, slots = xp.arange(n), xp.arange(k)
    runs = (done == 0) & (steps < most)

    # The candidates, best first; of equal ones the earlier beam's, then the smaller id. What is not a number is not live.
    totals = (scores.reshape(n * k, 1) + values.astype("float64")).reshape(n, k * wide)
    order = xp.argsort(-totals, axis=1, kind="stable")
    beam_of = (xp.zeros((n, k, wide), xp.int32) + slots[:, None]).reshape(n, k * wide)
    parts = (totals, indices.reshape(n, k * wide), beam_of)
    totals, ids, beams = (xp.take_along_axis(array, order, 1) for array in parts)
    live = totals > -xp.inf
    goes_on = live & (ids != end)

    # The next beams: the first k that go on. Where there are fewer, the first one stands in, with no chance.
    chosen = xp.argsort(xp.where(goes_on, 0, 1), axis=1, kind="stable")[:, :k]
    filled = xp.take_along_axis(goes_on, chosen, 1)
    chosen = xp.where(filled, chosen, chosen[:, :1])
    next_scores = xp.where(filled, xp.take_along_axis(totals, chosen, 1), -xp.inf)
    next_words, next_beams = (xp.take_along_axis(array, chosen, 1) for array in (ids, beams))

    # The finished: those there were, then what ended among the k best candidates, best first.
    ended = (live & (ids == end))[:, :k] & runs[:, None]
    ended_scores = xp.where(ended, totals[:, :k] / penalties[steps][:, None], -xp.inf)
    ranked = xp.concatenate([finished[0], ended_scores], axis=1)
    best = xp.argsort(-ranked, axis=1, kind="stable")[:, :k]
    finished[1][...] = xp.take_along_axis(xp.concatenate([finished[1], totals[:, :k]], axis=1), best, 1)
    finished[0][...] = xp.take_along_axis(ranked, best, 1)
    for origin, new in ((origins[0], xp.zeros((n, k), xp.int32) + steps[:, None]), (origins[1], beams[:, :k])):
        origin[...] = xp.take_along_axis(xp.concatenate([origin, new], axis=1), best, 1)

    # Log-probabilities only fall, and length helps up to the longest sentence.
    settled = next_scores[:, 0] / penalties[most] <= finished[0][:, k - 1]
    on = runs & filled[:, 0] & (settled == 0)
    mine, step = on[:, None], xp.where(on, steps, 0)
    for past, new in ((history[0], next_beams), (history[1], next_words)):
        past[step, images] = xp.where(mine, new, past[step, images])
    parents[...] = (images[:, None] * k + xp.where(mine, next_beams, slots)).reshape(-1)
    words[...] = xp.where(mine, next_words, words.reshape(n, k)).reshape(-1)
    scores[...] = xp.where(mine, next_scores, scores)
    done[...] = xp.where(runs & (on == 0), 1, done)
    steps += on.astype("int32")
