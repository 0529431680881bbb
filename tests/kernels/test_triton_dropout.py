"""Dropout on a Triton kernel, beyond the primitive's common cases: probabilities at the edges, NaN, float16, pieces."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.backends import reference
from pycap.device import bfloat16

pytestmark = pytest.mark.triton
SEED = 0xFEDCBA9876543210


@pytest.fixture(scope="module")
def dropout():
    return pytest.importorskip("pycap.backends.triton.dropout").dropout


@pytest.mark.parametrize("p", [0.0, 2.0**-32, 2.0**-33, 0.5 - 2.0**-33, 1 - 2.0**-32, 1 - 2.0**-33, 1 - 2.0**-53])
def test_the_threshold_is_exact(dropout, p):
    """Of p that drops nothing, one hash in 2**32, or all but one: as the reference has it."""
    x, y, expected = np.ones((1, 64, 65), np.float32), np.empty((1, 64, 65), "f4"), np.empty((1, 64, 65), "f4")
    dropout(y, x, p, SEED, 64, 0, 0.0)
    reference.dropout(expected, x, p, SEED, 64, 0, 0.0)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("above", [0, 1])
def test_a_hash_equal_to_the_threshold_is_kept(dropout, above):
    counters = np.arange(4160, dtype=np.uint32)
    low, high = np.uint32(SEED & 0xFFFFFFFF), np.uint32(SEED >> 32)
    hashes = reference._mix(reference._mix(counters + low) ^ high)
    chosen = int(np.argsort(hashes)[2080])  # p about 0.5, where the threshold has all its bits
    y = np.empty((1, 64, 65), np.float32)
    dropout(y, np.ones_like(y), (int(hashes[chosen]) + above) * 2.0**-32, SEED, 64, 0, 0.0)
    assert (y.reshape(-1)[chosen] == 0) == bool(above)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dropout, name):
    dtype = bfloat16() if name == "bfloat16" else np.dtype(name)
    rng = np.random.default_rng(2)
    x, old = (rng.standard_normal((3, 7, 33)).astype(dtype) for _ in range(2))
    got, scale = old.copy(), np.float32(1 / (1 - 0.3))
    dropout(got, x, 0.3, SEED, 11, 4, 0.5)
    kept = np.empty((3, 7, 33), np.float32)
    reference.dropout(kept, np.ones_like(kept), 0.3, SEED, 11, 4, 0.0)
    wide = np.float32(0.5) * old.astype(np.float32) + np.where(kept > 0, x.astype(np.float32) * scale, np.float32(0))
    np.testing.assert_array_equal(got, wide.astype(dtype))
    assert 0.2 < (kept == 0).mean() < 0.4


def test_nan_passes_where_it_is_kept_and_only_there(dropout):
    x = np.full((2, 5, 33), np.nan, np.float32)
    y, ones = np.empty_like(x), np.empty_like(x)
    dropout(y, x, 0.5, SEED, 5, 0, 0.0)
    dropout(ones, np.ones_like(x), 0.5, SEED, 5, 0, 0.0)
    np.testing.assert_array_equal(np.isnan(y), ones != 0)
    assert not y[ones == 0].any()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_seed_lies_in_an_array(dropout, layer):
    """A row of a table of seeds: its address is a multiple of 8 bytes, not of 16."""
    seeds = np.array([[1, 2], [SEED & 0xFFFFFFFF, SEED >> 32], [2**32 - 1, 0]], np.uint32)
    x = np.ones((3, 10, 17), np.float32)
    got, wanted = np.empty_like(x), np.empty_like(x)
    dropout(got, x, 0.4, seeds[layer], 10, 0, 0.0)
    dropout(wanted, x, 0.4, int(seeds[layer, 0]) | int(seeds[layer, 1]) << 32, 10, 0, 0.0)
    np.testing.assert_array_equal(got, wanted)


def test_what_is_no_seed_is_named(dropout):
    x = np.ones((3, 10, 17), np.float32)
    for seed, error, said in (
        (np.zeros(3, np.uint32), ValueError, r"seed has shape \(3,\), expected \(2,\)"),
        (np.zeros(2, np.uint64), TypeError, "seed must be uint32, got uint64"),
        (np.zeros((2, 2), np.uint32)[:, 0], ValueError, "seed must be C-contiguous"),
    ):
        with pytest.raises(error, match=f"dropout: {said}"):
            dropout(np.empty_like(x), x, 0.4, seed, 10, 0, 0.0)


def test_a_batch_in_pieces_drops_the_same_elements(dropout):
    x = np.ones((3, 10, 17), np.float32)
    whole = np.empty_like(x)
    dropout(whole, x, 0.4, SEED, 10, 0, 0.0)
    for start, stop in ((0, 3), (3, 10)):
        piece = np.empty((3, stop - start, 17), np.float32)
        dropout(piece, np.ones_like(piece), 0.4, SEED, 10, start, 0.0)
        np.testing.assert_array_equal(piece, whole[:, start:stop])
