"""OpenVINO's side: VGG16 forward, float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino

from benchmarks.cases import Case
from benchmarks.peers import onnx_model
from benchmarks.sides import Unavailable, Work


class OpenVinoSide:
    """The CPU device, compiled for latency."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._core = openvino.Core()

    def describe(self) -> str:
        return f"openvino {openvino.__version__.partition('-')[0]}"

    def prepare(self, case: Case) -> dict[str, Callable[[], Work]]:
        if case.op != "vgg16" or case.mode != "forward":
            raise Unavailable(f"no {case.op} {case.mode} is written for OpenVINO")

        def make() -> Work:
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self._threads,
                "INFERENCE_PRECISION_HINT": "bf16" if case.dtype == "bfloat16" else "f32",
            }
            compiled = self._core.compile_model(self._core.read_model(onnx_model.vgg16(case)), "CPU", settings)
            request = compiled.create_infer_request()
            request.set_input_tensor(openvino.Tensor(onnx_model.images(case)))

            def run() -> np.ndarray:
                request.infer()
                return request.get_output_tensor().data

            return Work(run, lambda y: {"fc7": y.astype(np.float32)})

        return {"": make}

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        return {}
