"""VGG16 with pycap's weights as an ONNX model in memory, for the engines that read one."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from benchmarks import case_values
from benchmarks.cases import Case
from pycap.models.vgg import BLOCKS


def weights(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each layer's weight and bias as other frameworks want them: [K,C,R,S], and fc6's columns in the order C, H, W.

    They are the same for every VGG16 case, and made once.
    """
    if not _weights:
        _weights.update(_made(case_values.captioner(case)[0].cnn.state_arrays()))
    return _weights


_weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def _made(parameters: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for name in [name.removesuffix(".weight") for name in parameters if name.endswith(".weight")]:
        weight = parameters[f"{name}.weight"]
        if weight.ndim == 4:
            weight = weight.transpose(0, 3, 1, 2)
        elif name == "fc6":
            weight = weight.reshape(-1, 7, 7, 512).transpose(0, 3, 1, 2).reshape(4096, -1)
        found[name] = np.ascontiguousarray(weight), parameters[f"{name}.bias"]
    return found


def images(case: Case) -> np.ndarray:
    """The case's images, float32 [N,3,224,224]."""
    return np.ascontiguousarray(case_values.images(case).transpose(0, 3, 1, 2))


def vgg16(case: Case) -> bytes:
    """The model, serialised: images [N,3,224,224] -> fc7 [N,4096]."""
    nodes, constants = [], []
    layers = weights(case)

    def layer(kind: str, name: str, source: str, **attributes: object) -> str:
        for suffix, array in zip(("weight", "bias"), layers[name], strict=True):
            tensor = helper.make_tensor(f"{name}.{suffix}", TensorProto.FLOAT, array.shape, array.tobytes(), raw=True)
            constants.append(tensor)
        nodes.append(helper.make_node(kind, [source, f"{name}.weight", f"{name}.bias"], [f"{name}.sum"], **attributes))
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [name]))
        return name

    last = "images"
    for i, block in enumerate(BLOCKS["vgg16"], 1):
        for j in range(1, len(block) + 1):
            last = layer("Conv", f"conv{i}_{j}", last, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        nodes.append(helper.make_node("MaxPool", [last], [f"pool{i}"], kernel_shape=[2, 2], strides=[2, 2]))
        last = f"pool{i}"
    nodes.append(helper.make_node("Flatten", [last], ["flat"]))
    layer("Gemm", "fc7", layer("Gemm", "fc6", "flat", transB=1), transB=1)
    batch = case.shape["N"]
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 224, 224])],
        [helper.make_tensor_value_info("fc7", TensorProto.FLOAT, [batch, 4096])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
