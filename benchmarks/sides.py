"""What a side of a comparison is: who there is, what each must offer, and how a side says that it cannot do a case."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.cases import Case

#: Numbers of each output that are compared; enough to see any error, few enough to send through a pipe.
SAMPLE = 1 << 18


class Unavailable(Exception):
    """This side cannot do this case; the text says why, and what would help."""


@dataclass
class Work:
    """A case made ready on one side.

    run: does it once, finishing all work before it returns. outputs: what `run` returned as named arrays in pycap's
    layouts and in float, to compare. seconds: where the time is not that of the call, takes it from what `run` returned.
    probe: a smaller piece of the same work, to warm up with and to find the fastest of several ways; None: the whole.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], dict[str, np.ndarray]]
    close: Callable[[], None] = lambda: None
    seconds: Callable[[Any], float] | None = None
    probe: Callable[[], Any] | None = None


class Side(Protocol):
    """A framework at work. Its constructor takes the number of threads."""

    def describe(self) -> str:
        """Name and version for a result's row."""

    def prepare(self, case: Case) -> dict[str, Callable[[], Work]]:
        """Ways of doing the case, by name; the fastest one counts. Raises Unavailable."""

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        """The machine's limits as this side reaches them: gemm 4096^3 as float32 and bfloat16, a copy of 1 GiB as copy."""


#: name -> (module and class, package that must be there, its name for people).
SIDES = {
    "pycap": ("benchmarks.pycap_side:PycapSide", "numpy", "pycap"),
    "torch": ("benchmarks.peers.torch_side:TorchSide", "torch", "PyTorch"),
    "onnxruntime": ("benchmarks.peers.onnxruntime_side:OnnxRuntimeSide", "onnxruntime", "ONNX Runtime"),
    "openvino": ("benchmarks.peers.openvino_side:OpenVinoSide", "openvino", "OpenVINO"),
    "ncnn": ("benchmarks.peers.ncnn_side:NcnnSide", "ncnn", "ncnn"),
}


def load(name: str, threads: int) -> Side:
    """Import and start a side. Unavailable where its package is missing."""
    target, package, _ = SIDES[name]
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed (make bench installs it)")
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)(threads)


def sample(array: np.ndarray) -> np.ndarray:
    """At most about SAMPLE numbers of an array, evenly spaced, in float32."""
    flat = array.reshape(-1)
    return flat[:: max(1, -(-flat.size // SAMPLE))].astype(np.float32)


def distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest relative L2 distance between outputs of the same name. ValueError where names or sizes differ."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"outputs {sorted(ours)} on one side, {sorted(theirs)} on the other")
    worst = 0.0
    for name, a in ours.items():
        b = theirs[name]
        if a.shape != b.shape:
            raise ValueError(f"output {name}: {a.size} numbers on one side, {b.size} on the other")
        norm = float(np.linalg.norm(b.astype(np.float64)))
        worst = max(worst, float(np.linalg.norm(a.astype(np.float64) - b)) / max(norm, 1e-30))
    return worst
