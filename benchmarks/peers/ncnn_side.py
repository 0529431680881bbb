"""ncnn's side: VGG16 forward with its Winograd convolutions, one image after the other, float32 and bfloat16 storage."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from benchmarks.cases import Case
from benchmarks.peers import onnx_model
from benchmarks.sides import Unavailable, Work
from pycap.models.vgg import BLOCKS


class NcnnSide:
    """ncnn on the CPU."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def describe(self) -> str:
        return f"ncnn {ncnn.__version__}"

    def prepare(self, case: Case) -> dict[str, Callable[[], Work]]:
        if case.op != "vgg16" or case.mode != "forward":
            raise Unavailable(f"no {case.op} {case.mode} is written for ncnn")

        def make() -> Work:
            net = ncnn.Net()
            net.opt.num_threads = self._threads
            net.opt.use_winograd_convolution = True
            for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
                setattr(net.opt, option, False)
            net.opt.use_bf16_storage = case.dtype == "bfloat16"
            with tempfile.TemporaryDirectory(prefix="pycap-bench-") as folder:
                parameters, weights = Path(folder) / "vgg16.param", Path(folder) / "vgg16.bin"
                parameters.write_text(_network(), encoding="ascii")
                _write_weights(weights, case)
                if net.load_param(str(parameters)) or net.load_model(str(weights)):
                    raise RuntimeError("ncnn could not read the VGG16 that was written for it")
            images = onnx_model.images(case)

            def run() -> np.ndarray:
                found = np.empty((len(images), 4096), np.float32)
                for row, image in zip(found, images, strict=True):
                    extractor = net.create_extractor()
                    extractor.input("images", ncnn.Mat(image))
                    row[...] = np.array(extractor.extract("fc7")[1])
                return found

            return Work(run, lambda y: {"fc7": y}, net.clear)

        return {"winograd": make}

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        return {}


def _network() -> str:
    """VGG16 up to fc7 in ncnn's text form; 9=1 is a ReLU fused into the layer."""
    lines = ["Input images 0 1 images 0=224 1=224 2=3"]
    last, inputs = "images", 3
    for i, block in enumerate(BLOCKS["vgg16"], 1):
        for j, outputs in enumerate(block, 1):
            name = f"conv{i}_{j}"
            settings = f"0={outputs} 1=3 4=1 5=1 6={outputs * inputs * 9} 9=1"
            lines.append(f"Convolution {name} 1 1 {last} {name} {settings}")
            last, inputs = name, outputs
        lines.append(f"Pooling pool{i} 1 1 {last} pool{i} 0=0 1=2 2=2")
        last = f"pool{i}"
    for name, features in (("fc6", 25088), ("fc7", 4096)):
        lines.append(f"InnerProduct {name} 1 1 {last} {name} 0=4096 1=1 2={4096 * features} 9=1")
        last = name
    return "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""])


def _write_weights(path: Path, case: Case) -> None:
    """Each layer in order: a word that says float32, the weights, the bias."""
    with path.open("wb") as file:
        for weight, bias in onnx_model.weights(case).values():
            file.write(struct.pack("<I", 0))
            weight.tofile(file)
            bias.tofile(file)
