"""The order in which a person sees the pairs: a function of the results and the options, so that it is the same tomorrow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycap.data.names import hashed
from pycap.picking.results import Results

Numbers = NDArray[np.int64]


def base(results: Results, order: str, seed: int = 0) -> Numbers:
    """The rows' numbers, int64 [n]: for `random` as a hash of seed and image has them; for any other the most probable first,
    of equally probable ones the first in the file, and those without a probability last."""
    if order == "random":
        return np.argsort(_mixed(results.images, seed), kind="stable")
    return np.argsort(-results.logprobs, kind="stable")


def capped(results: Results, numbers: Numbers, per_caption: int) -> NDArray[np.bool_]:
    """Of rows in an order, bool [n]: whether as many with the same caption stand before it as may."""
    said = results.captions[numbers]
    grouped = np.argsort(said, kind="stable")
    fresh = np.flatnonzero(np.diff(said[grouped], prepend=~said[grouped[:1]]) != 0)
    starts = np.repeat(fresh, np.diff(fresh, append=len(said)))
    before = np.empty(len(said), np.int64)
    before[grouped] = np.arange(len(said)) - starts
    return before >= per_caption


def last(numbers: Numbers, late: NDArray[np.bool_]) -> Numbers:
    """The same rows; the late ones, in their order, behind the others."""
    return np.concatenate([numbers[~late], numbers[late]])


def _mixed(values: NDArray[np.uint64], seed: int) -> NDArray[Any]:
    """The finaliser of MurmurHash3, keyed: a permutation of the 64-bit numbers in which no bit tells its place before."""
    mixed = values ^ np.uint64(hashed(f"seed {seed}"))
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(33))
