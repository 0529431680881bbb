"""An ONNX graph, built node by node; pycap's weights in ONNX's layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pycap import __version__
from pycap.nn import LSTM, Conv2d, Linear

if TYPE_CHECKING:
    from onnx import ModelProto

#: The oldest that has all operators used here as they are now; every runtime of the last years knows it.
OPSET = 17
IR_VERSION = 8
#: Of every input and output the first dimension: rows, any number of them.
BATCH = "N"
# ONNX stacks an LSTM's gates i, o, f, c; pycap i, f, g, o, where g is ONNX's c.
_GATES = (0, 3, 1, 2)


class Graph:
    """Nodes, weights, inputs and outputs. Methods that add a node return the name of its result.

    `inputs`, `outputs`: name -> (dtype, what follows the rows in its shape), as `export.json` tells them.
    """

    def __init__(self, name: str) -> None:
        from onnx import helper

        self.name = name
        self.inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        #: As ONNX has it, complete after every method.
        self.model: ModelProto = helper.make_model(
            helper.make_graph([], name, [], []),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="pycap",
            producer_version=__version__,
        )

    def input(self, name: str, dtype: str, *shape: int) -> str:
        """Declare an input [N, *shape]."""
        self.inputs[name] = dtype, shape
        self.model.graph.input.append(_declared(name, dtype, shape))
        return name

    def output(self, source: str, name: str, dtype: str, *shape: int) -> None:
        """Declare `source` [N, *shape] an output called `name`."""
        self.outputs[name] = dtype, shape
        self.model.graph.output.append(_declared(name, dtype, shape))
        self.node("Identity", [source], name)

    def constant(self, name: str, array: Any) -> str:
        """Weights, or other numbers that do not change."""
        from onnx import helper

        # Written in place: one copy of VGG16's half gigabyte, where a tensor made first would be copied into the model.
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.model.graph.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        return name

    def node(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add an operator, called as the first of its outputs that has a name."""
        from onnx import helper

        name = next(filter(None, outputs))
        self.model.graph.node.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return name

    def zeros(self, like: str, name: str, size: int) -> str:
        """float32 zeros [N, size], where `like` is [N, ...]."""
        from onnx import numpy_helper

        rows = self.node("Shape", [like], f"{name}.rows", start=0, end=1)
        shape = self.node("Concat", [rows, self.constant(f"{name}.size", np.array([size]))], f"{name}.shape", axis=0)
        return self.node("ConstantOfShape", [shape], name, value=numpy_helper.from_array(np.zeros(1, np.float32)))

    def linear(self, layer: Linear, x: str, name: str, columns: np.ndarray | None = None) -> str:
        """[N,I] -> [N,O]. columns: the place among the layer's inputs of each of x's, where they are in another order."""
        weight = layer.weight.data
        weight = self.constant(f"{name}.weight", weight if columns is None else weight[:, columns])
        bias = self.constant(f"{name}.bias", layer.bias.data)
        y = self.node("Gemm", [x, weight, bias], f"{name}.sum", transB=1)
        return self.node("Relu", [y], f"{name}.relu") if layer.relu else y

    def convolution(self, layer: Conv2d, x: str, name: str) -> str:
        """[N,C,H,W] -> [N,K,H',W'] with ReLU and, where the layer pools, a 2x2 max-pool."""
        weight = self.constant(f"{name}.weight", layer.weight.data.transpose(0, 3, 1, 2))
        bias = self.constant(f"{name}.bias", layer.bias.data)
        y = self.node("Conv", [x, weight, bias], f"{name}.sum", pads=[layer.padding] * 4)
        y = self.node("Relu", [y], f"{name}.relu")
        return self.node("MaxPool", [y], f"{name}.pool", kernel_shape=[2, 2], strides=[2, 2]) if layer.pool else y

    def lstm_step(self, layer: LSTM, x: str, state: tuple[str, str] | None) -> tuple[str, str]:
        """One step: x [N,I], h and c [N,H] (None: zeros) -> the new h and c [N,H], by ONNX's LSTM."""

        def gates(rows: np.ndarray) -> np.ndarray:
            return np.concatenate([np.split(rows, 4)[gate] for gate in _GATES])

        bias = gates(layer.bias.data)
        weights = [
            self.constant("lstm.weight_x", gates(layer.weight_x.data)[None]),
            self.constant("lstm.weight_h", gates(layer.weight_h.data)[None]),
            self.constant("lstm.bias", np.concatenate([bias, np.zeros_like(bias)])[None]),
        ]
        axis = self.constant("lstm.axis", np.array([0]))  # of the one step in x, of the one direction in h and c
        given = [self.node("Unsqueeze", [array, axis], f"lstm.{array}") for array in (x, *(state or ()))]
        whole_batch = ""  # in the place of lengths of sequences
        inputs = [given[0], *weights, *([whole_batch, *given[1:]] if state else [])]
        self.node("LSTM", inputs, "", "lstm.h_after", "lstm.c_after", hidden_size=layer.hidden)
        h, c = (self.node("Squeeze", [f"lstm.{name}_after", axis], f"lstm.{name}_rows") for name in "hc")
        return h, c


def _declared(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [BATCH, *shape])
