"""ONNX Runtime's side: VGG16 forward, float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

from benchmarks.cases import Case
from benchmarks.peers import onnx_model
from benchmarks.sides import Unavailable, Work


class OnnxRuntimeSide:
    """The CPU provider with all graph optimisations."""

    def __init__(self, threads: int) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

    def describe(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"

    def prepare(self, case: Case) -> dict[str, Callable[[], Work]]:
        if case.op != "vgg16" or case.mode != "forward" or case.dtype != "float32":
            raise Unavailable(f"no {case.op} {case.mode} in {case.dtype} is written for ONNX Runtime")

        def make() -> Work:
            session = onnxruntime.InferenceSession(
                onnx_model.vgg16(case), self._options, providers=["CPUExecutionProvider"]
            )
            feed = {"images": onnx_model.images(case)}
            return Work(lambda: session.run(None, feed)[0], lambda y: {"fc7": y})

        return {"": make}

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        return {}
