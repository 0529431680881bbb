"""Sampling: sentences drawn word by word from the model's distribution, several an image in one batch (docs/decoding.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycap import ops
from pycap.autograd import Tensor, no_grad
from pycap.decode.device import LOOK_EVERY
from pycap.decode.host import Decoder
from pycap.decode.rules import NOTHING, Hypothesis
from pycap.device import array_module, current, module, to_device, to_host

LEAST_TEMPERATURE = 0.01  # below it float32 logits are too coarse for a distribution: 0, greedy, is what is meant


@dataclass(frozen=True)
class Sampling:
    """How words are drawn. ValueError for values outside their ranges.

    temperature: logits are divided by it; 0 takes the most probable word (greedy). top_k: only the k most probable words are
    drawn, 0 for all; of equally probable ones at the edge the smaller ids. top_p: of those, renormalised, only the fewest most
    probable whose probabilities sum to at least p. samples: sentences an image. seed: of the random numbers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"sampling: temperature {self.temperature:g} is not 0 (greedy), or {LEAST_TEMPERATURE:g} or more"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: top_p {self.top_p:g} is not above 0 and at most 1 (all words)")
        for name, low in (("top_k", 0), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"sampling: {name} {getattr(self, name)} is not {low} or more")


def sample(
    model: Decoder,
    images: Tensor | ops.Pixels,
    sampling: Sampling,
    *,
    max_length: int,
    start: int,
    end: int,
    suppress: tuple[int, ...],
    keys: Sequence[int | str] | None = None,
    greedy: bool = False,
) -> list[list[Hypothesis]]:
    """`sampling.samples` sentences of each image, in the order drawn, from one pass of the CNN.

    images [N,S,S,3], normalised, or pixels. A sentence's `logprob`, and `score`, is that of the model's own distribution, as
    beam search counts it, whatever temperature, top-k and top-p drew it from: the sum over its words and END of the natural
    logarithm of softmax(logits) without `suppress`, the ids that are never produced. A sentence of max_length words was cut:
    END is not in its logprob. keys: each image's own, by default its place; the random numbers of a sentence depend on seed,
    key and the sentence's number alone, and so not on the batch. greedy: each list begins with one more sentence, the one of
    temperature 0: what `beam_search` finds with a beam of 1. Where probabilities are not numbers the sentence is empty, and its
    log-probability NaN. ValueError for a max_length below 1, or another number of keys than of images.

    The state lies on the current device, and so do the draws: the host sees words when it looks which sentences have ended,
    at each step on the CPU and every few on a GPU. Beside the model, a step reads the logits [N * sentences, V] some five
    times, and sorts them for top-k and top-p.
    """
    n = images.shape[0]
    keys = range(n) if keys is None else keys
    if not n:
        return []
    if max_length < 1 or len(keys) != n:
        raise ValueError(
            f"sampling: max_length {max_length} must be at least 1, and {len(keys)} keys be one for each of {n}"
        )
    drawn = sampling.samples if sampling.temperature else 0
    first = int(greedy or not drawn)  # greedy sentences, before the drawn ones
    width = first + drawn
    uniforms = np.zeros((n, width, max_length))
    for image, key in enumerate(keys):
        for number in range(drawn):
            uniforms[image, first + number] = _stream(sampling.seed, key, number).random(max_length)
    takes_best = np.tile(np.arange(width) < first, n)
    said, logprobs = _sentences(
        model, images, sampling, uniforms.reshape(n * width, max_length), takes_best, start, end, suppress
    )
    found = [_hypothesis(row, values, end) for row, values in zip(said.T.tolist(), logprobs.T.tolist(), strict=True)]
    copies = 1 if drawn else sampling.samples + greedy  # greedy sentences are all the same
    return [found[i : i + width] * copies for i in range(0, n * width, width)]


def _sentences(
    model: Decoder, images: Tensor | ops.Pixels, sampling: Sampling, uniforms: np.ndarray, takes_best: np.ndarray,
    start: int, end: int, suppress: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Words int32 [L,R], END after the last one, and the words' log-probabilities float64 [L,R] of R sentences, for uniform
    numbers [R,L] in [0,1). takes_best [R]: sentences that take the most probable word. What follows the first END is void."""
    xp, n, (rows, most) = module(), images.shape[0], uniforms.shape
    numbers = to_device(np.ascontiguousarray(uniforms.T))
    look_every = 1 if current() == "cpu" else LOOK_EVERY
    live = np.arange(rows)
    here, best_here = to_device(live), to_device(takes_best)
    words = to_device(np.full(rows, start, np.int32))
    said, logprobs = xp.full((most, rows), end, xp.int32), xp.zeros((most, rows))
    with no_grad():
        state = model.begin(images).rows(np.repeat(np.arange(n), rows // n))
        for step in range(most):
            logits, state = model.advance(state, words)
            words, values = draw(logits, numbers[step][here], sampling, suppress)
            if takes_best.any():
                best_values, best = (found[:, 0] for found in ops.log_softmax_topk(logits, 1, suppress))
                words, values = xp.where(best_here, best, words), xp.where(best_here, best_values, values)
            words = xp.where(xp.isnan(values), xp.int32(end), words)
            said[step, here], logprobs[step, here] = words, values
            if (step + 1) % look_every == 0:
                going = np.flatnonzero((to_host(said[: step + 1]) != end).all(0)[live])
                if not len(going):
                    break
                if len(going) < len(live):
                    chosen = to_device(going)
                    state, words, live = state.rows(going), words[chosen], live[going]
                    here, best_here = here[chosen], best_here[chosen]
    return to_host(said), to_host(logprobs)


def draw(logits: Any, uniform: Any, sampling: Sampling, suppress: tuple[int, ...]) -> tuple[Any, Any]:
    """One word of each row for uniform numbers float64 [R] in [0,1): ids int32 [R] and their log-probabilities float64 [R] in
    the model's own distribution, for logits [R,V], all on one device. A row that holds NaN gives id 0 and NaN.

    The word is the first whose cumulated probability, in order of id, exceeds the uniform number.
    """
    xp = array_module(logits)
    z = xp.array(logits)
    for number in suppress:
        z[:, number] = -xp.inf
    z -= z.max(1, keepdims=True)
    mass = xp.exp(z)
    total = mass.sum(1, dtype=xp.float64)
    if sampling.temperature not in (0, 1):
        mass = xp.exp(z / sampling.temperature)
    if sampling.top_k or sampling.top_p < 1:
        mass = xp.where(_kept(mass, sampling.top_k, sampling.top_p), mass, 0)
    # At most 1 - 2^-53 of the last sum, which rounds to a smaller number: a word is always left that exceeds it.
    reach = xp.cumsum(mass, axis=1, dtype=xp.float64)
    ids = (reach <= uniform[:, None] * reach[:, -1:]).sum(1)
    own = xp.take_along_axis(z, ids[:, None], 1)[:, 0]
    return ids.astype(xp.int32), own.astype(xp.float64) - xp.log(total)


def _kept(mass: Any, top_k: int, top_p: float) -> Any:
    """Which words [R,V] top-k and then top-p leave, for unnormalised probabilities [R,V]."""
    xp = array_module(mass)
    ranked = xp.sort(mass, axis=1)[:, ::-1][:, : top_k or mass.shape[1]]
    reach = xp.cumsum(ranked, axis=1, dtype=xp.float64)
    count = (reach[:, :-1] < top_p * reach[:, -1:]).sum(1, keepdims=True) + 1
    least = xp.take_along_axis(ranked, count - 1, 1)
    above, level = mass > least, mass == least
    places = xp.cumsum(level, axis=1, dtype=xp.int32)
    return above | (level & (places <= count - above.sum(1, keepdims=True)))


def _stream(seed: int, key: int | str, number: int) -> np.random.Generator:
    """The random numbers of one sentence."""
    digest = hashlib.blake2b(f"{seed}/{number}/{key}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _hypothesis(row: list[int], logprobs: list[float], end: int) -> Hypothesis:
    words = row.index(end) if end in row else len(row)
    logprob = sum(logprobs[: words + 1], 0.0)
    return NOTHING if math.isnan(logprob) else Hypothesis(tuple(row[:words]), logprob, logprob)
