"""The GPU backend on Triton kernels: each primitive of `pycap.backends` stands in the file of its op.

On CuPy arrays it needs CuPy, and Triton only for kernels that were not built ahead. With TRITON_INTERPRET=1 it runs in
Triton's interpreter on NumPy arrays, slowly, without a GPU. Signatures and meanings stand in `pycap.backends`.
"""

from __future__ import annotations

import importlib.util

from pycap import device
from pycap.backends.triton import launching
from pycap.backends.triton.beam import beam_select
from pycap.backends.triton.cast import cast
from pycap.backends.triton.conv2d import (
    conv2d_backward_data,
    conv2d_backward_data_relu,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_pool_forward,
)
from pycap.backends.triton.conv2d_first import conv2d_first_backward_weight, conv2d_first_forward
from pycap.backends.triton.dropout import dropout
from pycap.backends.triton.embedding import embedding_backward, embedding_forward
from pycap.backends.triton.linear import linear_backward_data, linear_backward_weight, linear_forward
from pycap.backends.triton.lstm import lstm_backward, lstm_cell_backward, lstm_cell_forward, lstm_forward
from pycap.backends.triton.optim import (
    adam_step,
    clip_factors,
    rmsprop_step,
    sgd_step,
    sum_squares,
    sum_squares_into,
    total,
)
from pycap.backends.triton.pool import maxpool_backward, maxpool_forward
from pycap.backends.triton.preprocess import preprocess
from pycap.backends.triton.softmax_xent import linear_xent_backward, linear_xent_forward, log_softmax_topk


def check() -> None:
    """Raise ImportError, with the remedy, where neither a GPU nor the interpreter is there to run kernels."""
    if launching.interpreting():
        import triton  # noqa: F401  (says itself what is missing)

        return
    reason = device.obstacle()
    if reason:
        raise ImportError(reason)
    store, arch = launching.kernel_module("_store"), launching.kernel_module("_launch").code_arch(launching.arch())
    if not store.bundled(arch) and importlib.util.find_spec("triton") is None:
        raise ImportError(f"this build carries no kernels for {arch}, and Triton is not installed: pip install triton")


__all__ = [
    "adam_step",
    "beam_select",
    "cast",
    "check",
    "clip_factors",
    "conv2d_backward_data",
    "conv2d_backward_data_relu",
    "conv2d_backward_weight",
    "conv2d_first_backward_weight",
    "conv2d_first_forward",
    "conv2d_forward",
    "conv2d_pool_forward",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "linear_backward_data",
    "linear_backward_weight",
    "linear_forward",
    "linear_xent_backward",
    "linear_xent_forward",
    "log_softmax_topk",
    "lstm_backward",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "maxpool_backward",
    "maxpool_forward",
    "preprocess",
    "rmsprop_step",
    "sgd_step",
    "sum_squares",
    "sum_squares_into",
    "total",
]
