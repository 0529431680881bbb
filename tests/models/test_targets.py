"""Targets of captions of fixed sizes: what each step reads, which positions have weight, and where they stand."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.models import targets

CAPTIONS = [[1, 5, 6, 2], [1, 7, 2], [1, 2], [1, 9, 9, 9, 2], [1, 3, 3, 2], [1, 4, 2]]  # three an image


def tokens() -> np.ndarray:
    made = np.zeros((5, len(CAPTIONS)), np.int32)
    for column, caption in enumerate(CAPTIONS):
        made[: len(caption), column] = caption
    return made


@pytest.mark.parametrize("length", [5, 8])
@pytest.mark.parametrize("filler", [0, 1, 7])
def test_each_word_follows_its_input_and_stands_in_its_place(length: int, filler: int) -> None:
    n, used = len(CAPTIONS), sum(len(caption) - 1 for caption in CAPTIONS)
    made = targets.caption_targets(2, tokens(), length, used + filler, 10)
    assert made.inputs.dtype == made.places.dtype == made.rows.dtype == made.targets.dtype == np.int32
    assert made.inputs.shape == (length - 1, n) and made.places.shape == ((length - 1) * n,)
    assert made.image_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(set(made.rows.tolist())) == sorted(made.rows.tolist()) and len(made.rows) == used + filler
    for column, caption in enumerate(CAPTIONS):
        for step in range(length - 1):
            row, place = step * n + column, made.places[step * n + column]
            if step + 1 < len(caption):
                assert made.inputs[step, column] == caption[step] and made.runs[step + 1, column] == 1
                assert made.rows[place] == row and made.targets[place] == caption[step + 1]
                assert made.weights[place] == np.float32(0.1)
            else:  # neither END nor padding is looked up
                assert made.inputs[step, column] == -1 and made.runs[step + 1, column] == 0 and place == -1
    assert (made.weights[used:] == 0).all() and len(made.weights) == used + filler


def test_factors_multiply_the_weights_of_their_captions() -> None:
    factors = np.array([2, -1, 0, 0.5, 3, 1], np.float32)
    plain = targets.caption_targets(2, tokens(), 5, 17, 10)
    made = targets.caption_targets(2, tokens(), 5, 17, 10, factors)
    for column, caption in enumerate(CAPTIONS):
        for step in range(len(caption) - 1):
            assert made.weights[made.places[step * len(CAPTIONS) + column]] == np.float32(0.1) * factors[column]
    assert (made.weights[15:] == 0).all()
    for name in ("inputs", "image_of", "runs", "rows", "places", "targets"):
        np.testing.assert_array_equal(getattr(made, name), getattr(plain, name))


def test_captions_that_do_not_fit_are_refused() -> None:
    for length, size in ((4, 16), (5, 14), (5, 25)):
        with pytest.raises(ValueError, match=rf"\(5, 6\) with 15 targets do not fit {length} steps with {size}"):
            targets.caption_targets(2, tokens(), length, size, 10)
