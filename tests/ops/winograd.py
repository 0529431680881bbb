"""Winograd F(4x4,3x3) and F(3x3,4x4) written plainly in NumPy, from the matrices of docs/math/conv2d.md: what the C++
kernels may err by is measured against this, run in float32."""

from __future__ import annotations

import numpy as np

_A, _B = 0.5**0.5, 2.0**0.5
_POINTS = np.array([0, _A, -_A, _B, -_B])
BT = np.array(
    [
        [1, 0, -2.5, 0, 1, 0],
        [0, -_B, -2, _A, 1, 0],
        [0, _B, -2, -_A, 1, 0],
        [0, -_A, -0.5, _B, 1, 0],
        [0, _A, -0.5, -_B, 1, 0],
        [0, 1, 0, -2.5, 0, 1],
    ]
)
G = np.array(
    [
        [1, 0, 0],
        [-2 / 3, -_B / 3, -1 / 3],
        [-2 / 3, _B / 3, -1 / 3],
        [1 / 6, _B / 6, 1 / 3],
        [1 / 6, -_B / 6, 1 / 3],
        [0, 0, 1],
    ]
)
AT = np.array([[*_POINTS**i, float(i == 3)] for i in range(4)])


def _tiles(x: np.ndarray, size: int, border: int) -> np.ndarray:
    """[N,rows,cols,size,size,C]: windows of x [N,H,W,C] at every fourth pixel, `border` of zeros before the first."""
    n, h, w, c = x.shape
    rows, cols = -(-h // 4), -(-w // 4)
    padded = np.zeros((n, 4 * rows + 2, 4 * cols + 2, c), x.dtype)
    padded[:, border : border + h, border : border + w] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    return windows[:, : 4 * rows : 4, : 4 * cols : 4].transpose(0, 1, 2, 4, 5, 3)


def _nested(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """matrix x matrix^T over the axes -3 and -2, in x's dtype."""
    matrix = matrix.astype(x.dtype)
    return np.einsum("ai,...ijc,bj->...abc", matrix, x, matrix, optimize=["einsum_path", (0, 1), (0, 1)])


def forward(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """conv(x, w), stride 1, padding 1: x [N,H,W,C], w [K,3,3,C] -> [N,H,W,K], in x's dtype throughout."""
    n, h, width, _ = x.shape
    v, u = _nested(BT, _tiles(x, 6, 1)), _nested(G, w)
    m = np.einsum("nijabc,kabc->nijabk", v, u, optimize=True)
    y = _nested(AT, m)
    rows, cols = y.shape[1:3]
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 4 * rows, 4 * cols, -1)[:, :h, :width]


def backward_weight(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The gradient of w: dy [N,H,W,K], x [N,H,W,C] -> [K,3,3,C], in x's dtype throughout."""
    v, m = _nested(BT, _tiles(x, 6, 1)), _nested(AT.T, _tiles(dy, 4, 0))
    return _nested(G.T, np.einsum("nijabk,nijabc->kabc", m, v, optimize=True))
