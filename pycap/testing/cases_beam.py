"""The registry's cases of a step of beam search, amid a search: full of ties and of ends, and judged to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pycap.backends import reference
from pycap.testing.arguments import Case, Double, InOut, Rng

END = 2


def _lists(rng: Rng, n: int, k: int, most: int) -> np.ndarray:
    """[n,k] negative multiples of 1/4, falling along a row, -inf from a place of up to `most` on."""
    falling = -np.cumsum(rng.integers(0, 3, (n, k)), axis=1) / 4.0
    falling[np.arange(k) >= rng.integers(0, most + 1, (n, 1))] = -np.inf
    return falling


def beam_select(dims: tuple[int, int, int, int], penalty: float, rng: Rng) -> list[Any]:
    """dims: images, beams, words a beam, steps at most."""
    n, k, wide, most = dims
    steps = rng.integers(0, most, n).astype(np.int32)
    if n > 2:
        steps[0], steps[1] = 0, most
    scores = _lists(rng, n, k, k)
    scores[:, 0] = np.maximum(scores[:, 0], -1.0)
    scores[steps == 0] = np.where(np.arange(k) == 0, 0.0, -np.inf)  # as a search begins
    logprobs = _lists(rng, n, k, k) - 0.5
    divisors = (np.arange(most + 1) + 1.0) ** penalty
    finished = np.stack([logprobs / divisors[1], logprobs])
    values = -np.cumsum(rng.integers(0, 2, (n * k, wide)), axis=1).astype(np.float32) / 4
    values[rng.random(n * k) < 0.1, -1] = -np.inf  # a word that cannot follow
    values[rng.random(n * k) < 0.05, 0] = np.nan
    indices = rng.permuted(np.tile(np.arange(wide + 1, dtype=np.int32), (n * k, 1)), axis=1)[:, :wide].copy()
    arrays: dict[str, np.ndarray] = {
        "words": rng.integers(3, 9, n * k).astype(np.int32),
        "parents": rng.integers(0, max(n * k, 1), n * k).astype(np.int32),
        "scores": scores,
        "steps": steps,
        "done": (rng.random(n) < 0.2).astype(np.uint8),
        "finished": finished,
        "origins": rng.integers(0, k, (2, n, k)).astype(np.int32),
        "history": rng.integers(3, 9, (2, most, n, k)).astype(np.int32),
    }
    expected = {name: array.copy() for name, array in arrays.items()}
    arguments: list[Any] = [*expected.values(), values, indices, divisors, END]
    reference.beam_select(*arguments)

    def judge(name: str, got: np.ndarray, dtype: np.dtype) -> str:
        differing = np.sum(got.view(np.uint64) != expected[name].view(np.uint64))
        return f"{differing} of {got.size} numbers are not the reference's, bit for bit" if differing else ""

    def marker(name: str, array: np.ndarray) -> InOut:
        return InOut(name, array, judge=partial(judge, name) if array.dtype == np.float64 else None)

    return [*(marker(name, array) for name, array in arrays.items()), values, indices, Double(divisors), END]


def beam_cases() -> Iterator[Case]:
    """Cases of `beam_select`."""
    for name, dims in {
        "no_images": (0, 3, 4, 5), "greedy": (7, 1, 2, 3), "two": (11, 2, 3, 4), "three": (23, 3, 4, 7), "five": (13, 5, 6, 5),
        "few_words": (9, 5, 2, 3), "one_word": (5, 4, 1, 3), "seven": (5, 7, 8, 4), "eleven": (3, 11, 12, 4),
        "sixteen": (5, 16, 17, 3), "one_step": (9, 3, 4, 1),
    }.items():  # fmt: skip
        for penalty in (0.0, 0.7):
            yield Case("beam_select", f"{name}{'-by-length' if penalty else ''}", partial(beam_select, dims, penalty))
