"""A case of each primitive on CUDA kernels, few and small: `make gpu` runs them under compute-sanitizer."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends
from pycap.device import bfloat16
from pycap.testing import CASES, compare

SMALL = {
    "conv2d_forward": "tile_exact-bias-relu",
    "conv2d_pool_forward": "c48_k16_tile_plus_1",
    "conv2d_backward_data": "c48_k16_tile_plus_1-pool",
    "conv2d_backward_weight": "c32_k16_3x3_image-pool",
    "lstm_forward": "h64-state-mask",
    "lstm_backward": "h64-state-mask-dhc",
    "lstm_cell_forward": "n40",
    "lstm_cell_backward": "n40-dhc",
}


@pytest.mark.parametrize("primitive", SMALL)
def test_sanitized(cuda, called, primitive):
    (case,) = (case for case in CASES[primitive] if case.name == SMALL[primitive])
    for dtype in (np.float32, bfloat16()) if primitive in backends.BFLOAT16 else (np.float32,):
        compare(case, cuda, dtype)
    assert called  # no size or type of these is left to Triton
