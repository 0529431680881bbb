"""preprocess: definition, windows and mirrors, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from tests import naive

MEAN, STD = (123.68, 116.779, 103.939), (58.4, 57.1, 57.4)


@pytest.mark.parametrize(
    ("n", "h", "w", "size"), [(3, 7, 9, 5), (1, 1, 1, 1), (2, 8, 8, 8), (0, 4, 4, 2), (2, 33, 17, 16), (3, 40, 44, 38)]
)
def test_every_backend_is_the_definition(backend, n, h, w, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, h, w, 3)).astype(np.uint8)
    corners = [rng.integers(0, h - size + 1, n), rng.integers(0, w - size + 1, n), np.arange(n) % 2]
    crops = np.stack(corners, 1).astype(np.int32)
    held = images.copy()
    with backends.use(backend):
        y = ops.preprocess(images, crops, size, MEAN, STD)
    assert y.dtype == np.float32 and y.shape == (n, size, size, 3) and not y.requires_grad
    scale = [1 / s for s in STD]
    expected = naive.preprocess(images, crops, (size, size), scale, [-m / s for m, s in zip(MEAN, STD, strict=True)])
    np.testing.assert_allclose(y.data, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(images, held)


def test_mirror_is_left_to_right_within_the_window(backend):
    images = np.zeros((2, 2, 4, 3), np.uint8)
    images[:, :, :, 0] = [10, 20, 30, 40]
    with backends.use(backend):
        y = ops.preprocess(images, np.array([[0, 1, 0], [0, 1, 1]], np.int32), 2, (0, 0, 0), (1, 1, 1)).data
    assert y[0, 0, :, 0].tolist() == [20, 30]
    assert y[1, 0, :, 0].tolist() == [30, 20]


@pytest.mark.parametrize("crop", [(-1, 0, 0), (0, -1, 0), (2, 0, 0), (0, 4, 1)])
def test_refuses_windows_that_stick_out(backend, crop):
    images = np.zeros((1, 5, 7, 3), np.uint8)
    with backends.use(backend), pytest.raises(ValueError, match="4x4 window sticks out of a 5x7 image"):
        ops.preprocess(images, np.array([crop], np.int32), 4, MEAN, STD)


@pytest.mark.parametrize(
    ("images", "crops"),
    [
        (np.zeros((1, 5, 5, 4), np.uint8), np.zeros((1, 3), np.int32)),
        (np.zeros((1, 5, 5, 3), np.float32), np.zeros((1, 3), np.int32)),
        (np.zeros((2, 5, 5, 3), np.uint8), np.zeros((1, 3), np.int32)),
    ],
)
def test_refuses_other_arrays(images, crops):
    with pytest.raises(ValueError, match=r"not uint8 \[N,H,W,3\]"):
        ops.preprocess(images, crops, 2, MEAN, STD)
