"""Decoding: greedy and beam search, sampling, and ensembles, over a batch of images at once, on the host or on the device."""

from __future__ import annotations

from pycap import ops
from pycap.autograd import Tensor
from pycap.decode.device import MOST_BEAMS, Searches, device_beam_search
from pycap.decode.ensemble import Ensemble, Views
from pycap.decode.host import Decoder, Hypothesis, host_beam_search
from pycap.decode.rules import Rules
from pycap.decode.sampling import Sampling, sample
from pycap.device import current

__all__ = [
    "MOST_BEAMS",
    "Decoder",
    "Ensemble",
    "Hypothesis",
    "Rules",
    "Sampling",
    "Searches",
    "Views",
    "beam_search",
    "device_beam_search",
    "host_beam_search",
    "sample",
]


def beam_search(
    model: Decoder,
    images: Tensor | ops.Pixels,
    *,
    beam_size: int,
    max_length: int,
    start: int,
    end: int,
    suppress: tuple[int, ...],
    length_penalty: float = 0.0,
    searches: Searches | None = None,
) -> list[list[Hypothesis]]:
    """The `beam_size` best sentences of each image, best first; a beam of 1 is greedy search.

    images [N,S,S,3], normalised, or pixels. max_length: most words of a sentence, END not counted; what has not ended by
    then is taken as it is. suppress: ids that are never produced (padding, START, UNK). length_penalty: sentences are ranked by
    logprob / (words + 1) ** length_penalty. An image whose best unfinished beam cannot overtake its finished ones any more
    is done. Ties go to the earlier beam, then to the smaller id, so results do not depend on the batch. Where the model's
    probabilities are not numbers, one empty sentence of log-probability NaN is found.

    On a GPU the search runs there, for up to `MOST_BEAMS` beams: searches keeps what one of them leaves for the next.
    ValueError for a beam_size or max_length below 1.
    """
    rules = Rules(beam_size, max_length, start, end, suppress, length_penalty)
    if current() == "cuda" and beam_size <= MOST_BEAMS:
        return device_beam_search(model, images, rules, searches)
    return host_beam_search(model, images, rules)
