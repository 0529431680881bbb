"""The reference backend with products of one row at a time: a row's bits then depend on no other."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from pycap import backends
from pycap.backends import reference


def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a search multiplies. The search on the host feeds the model only beams that go on, that on the device all of them,
    and NumPy's BLAS may add in another order for another number of rows: OpenBLAS does on AVX2, where log-probabilities then
    differ in their last bits.
    """
    linear, cell = reference.linear_forward, reference.lstm_cell_forward

    @functools.wraps(linear)
    def linear_forward(y: Any, x: Any, *how: Any) -> None:
        for i in range(len(x)):
            linear(y[i : i + 1], x[i : i + 1], *how)

    @functools.wraps(cell)
    def lstm_cell_forward(h: Any, c: Any, gates: Any, x: Any, h_prev: Any, c_prev: Any, *weights: Any) -> None:
        for i in range(len(x)):
            row = slice(i, i + 1)
            cell(*(a[row] for a in (h, c, gates, x, h_prev, c_prev)), *weights)

    monkeypatch.setattr(reference, "linear_forward", linear_forward)
    monkeypatch.setattr(reference, "lstm_cell_forward", lstm_cell_forward)
    backends.select("cpu", "reference")
