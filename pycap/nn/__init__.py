"""Layers: parameters, their initialisation, and the ops that use them."""

from pycap.nn.layers import LSTM, Conv2d, Dropout, Embedding, Linear
from pycap.nn.module import Module

__all__ = ["LSTM", "Conv2d", "Dropout", "Embedding", "Linear", "Module"]
