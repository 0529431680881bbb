"""The differentiable operations: one file an op, each one Function with its own backward and one public function."""

from pycap.ops.arithmetic import add, concatenate, getitem, matmul, mean, mul, reshape, sum
from pycap.ops.cast import cast
from pycap.ops.conv2d import conv2d, conv2d_first
from pycap.ops.dropout import dropout
from pycap.ops.embedding import embedding
from pycap.ops.linear import linear
from pycap.ops.lstm import lstm, lstm_cell
from pycap.ops.pool import maxpool
from pycap.ops.preprocess import Pixels, pixels, preprocess
from pycap.ops.softmax_xent import linear_cross_entropy, weighted_cross_entropy
from pycap.ops.topk import log_softmax_topk

__all__ = [
    "Pixels",
    "add",
    "cast",
    "concatenate",
    "conv2d",
    "conv2d_first",
    "dropout",
    "embedding",
    "getitem",
    "linear",
    "linear_cross_entropy",
    "log_softmax_topk",
    "lstm",
    "lstm_cell",
    "matmul",
    "maxpool",
    "mean",
    "mul",
    "pixels",
    "preprocess",
    "reshape",
    "sum",
    "weighted_cross_entropy",
]
