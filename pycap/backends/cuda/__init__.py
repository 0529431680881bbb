"""The GPU backend on CUDA kernels: the LSTM and convolutions; whatever else there is to do, Triton's does (decisions/0012).

It needs pycap._cuda, which is built where nvcc is, and what the Triton backend needs. With TRITON_INTERPRET=1 it runs on
NumPy arrays, very slowly, in the emulation that `make emulation` builds. Signatures and meanings stand in `pycap.backends`.
"""

from __future__ import annotations

from pycap.backends import triton
from pycap.backends.cuda import native
from pycap.backends.cuda.conv2d import (
    conv2d_backward_data,
    conv2d_backward_data_relu,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_pool_forward,
)
from pycap.backends.cuda.conv2d_first import conv2d_first_backward_weight, conv2d_first_forward
from pycap.backends.cuda.lstm import lstm_backward, lstm_forward
from pycap.backends.cuda.lstm_cell import lstm_cell_backward, lstm_cell_forward
from pycap.backends.triton import launching


def check() -> None:
    """Raise ImportError, with the remedy, where these kernels cannot run, or Triton's, to which they leave what they lack."""
    triton.check()
    native.check()


def note(primitive: str) -> str:
    """Which form the configuration table prefers for a primitive on this GPU, for people."""
    name = "conv2d.form" if primitive.startswith("conv2d") else "lstm_cell.form" if "cell" in primitive else "lstm.form"
    rows = launching.kernel_module("_rows").find(launching.configs.ROWS, name, launching.arch())
    return f"{name} prefers {' or '.join(dict.fromkeys(str(row.blocks['FORM']) for row in rows))} on {launching.arch()}"


__all__ = [
    "check",
    "conv2d_backward_data",
    "conv2d_backward_data_relu",
    "conv2d_backward_weight",
    "conv2d_first_backward_weight",
    "conv2d_first_forward",
    "conv2d_forward",
    "conv2d_pool_forward",
    "lstm_backward",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "note",
]
