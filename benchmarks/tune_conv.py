"""Measure which algorithm and block sizes serve which convolution: what csrc/cpu/conv_table.h holds as data.

    python -m benchmarks.tune_conv [--batch 1 8] [--threads 2] [--layers conv4_2 conv5_1] [--pass forward]

Prints, for each layer of VGG16 and some small ones, the seconds of every candidate relative to the table's own choice, in
turns within one run. A candidate well below 1.00 on several layers of a class is a row for the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.cases import VGG16
from benchmarks.timing import Budget, alternate
from pycap import memory
from pycap.backends import cpp

#: name -> (algorithm, (shared, tiles, inputs, outputs) of Winograd's blocks), as `_cpu.conv2d_force` takes them.
Candidate = tuple[str, tuple[int, int, int, int] | None]
CANDIDATES: dict[str, Candidate] = {
    "table": ("automatic", None),
    "im2col": ("im2col", None),
    "direct": ("direct", None),
    "winograd": ("winograd", None),
    "shared 64x64x64": ("winograd", (1, 64, 64, 64)),
    "shared 96x64x64": ("winograd", (1, 96, 64, 64)),
    "shared 48x64x128": ("winograd", (1, 48, 64, 128)),
    "private 48x64x64": ("winograd", (0, 48, 64, 64)),
    "private 48x256x256": ("winograd", (0, 48, 256, 256)),
    "private 96x128x128": ("winograd", (0, 96, 128, 128)),
}
#: Layers at the edges of the table's rows: name -> (side of the map, channels in, channels out).
EDGES = {
    "few_channels": (64, 16, 16),
    "tiny_map": (4, 256, 256),
    "pixel_map": (2, 512, 512),
    "cifar_first": (32, 3, 32),
}
PASSES = ("forward", "backward_data", "backward_weight")
BUDGET = Budget(rounds=5, most_rounds=9, seconds=1.5, turn_s=0.03)


def layer_call(side: int, inputs: int, outputs: int, batch: int, direction: str) -> Callable[[], None]:
    """One pass of a layer on random numbers (a 3x3 filter, stride 1, padding 1)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, side, side, inputs), np.float32)
    w = rng.standard_normal((outputs, 3, 3, inputs), np.float32) * np.float32((9 * inputs) ** -0.5)
    b, dy = np.zeros(outputs, np.float32), rng.standard_normal((batch, side, side, outputs), np.float32)
    y, dx, dw, db = (memory.empty_like(a) for a in (dy, x, w, b))
    if direction == "forward":
        return lambda: cpp.conv2d_forward(y, x, w, b, 1, 1, True)
    cpp.conv2d_forward(y, x, w, b, 1, 1, True)
    if direction == "backward_data":
        return lambda: cpp.conv2d_backward_data(dx, dy, w, y, None, 1, 1, 0.0)
    return lambda: cpp.conv2d_backward_weight(dw, db, dy, x, y, None, 1, 1, 0.0, 0.0)


def measure(call: Callable[[], None], candidates: dict[str, Candidate]) -> dict[str, float]:
    """Median seconds of each candidate, in turns."""

    def turn(candidate: Candidate) -> Callable[[int], Sequence[float]]:
        def run(calls: int) -> list[float]:
            cpp._cpu.conv2d_force(*candidate)
            call()  # a first call in this form, for the caches
            samples = []
            for _ in range(calls):
                start = time.perf_counter()
                call()
                samples.append(time.perf_counter() - start)
            return samples

        return run

    turns = {name: turn(candidate) for name, candidate in candidates.items()}
    try:
        first = {name: run(1)[0] for name, run in turns.items()}
        return {name: samples.median for name, samples in alternate(turns, first, BUDGET).items()}
    finally:
        cpp._cpu.conv2d_force("automatic", None)


def serving(shape: tuple[int, int, int], batch: int, direction: str, candidate: Candidate) -> str:
    """The name of the algorithm that serves a layer's pass when the candidate is forced."""
    side, inputs, outputs = shape
    try:
        cpp._cpu.conv2d_force(*candidate)
        x, w = (batch, side, side, inputs), (outputs, 3, 3, inputs)
        return cpp._cpu.conv2d_algorithm(x, w, 1, 1, PASSES.index(direction))
    finally:
        cpp._cpu.conv2d_force("automatic", None)


def applicable(shape: tuple[int, int, int], batch: int, direction: str) -> dict[str, Candidate]:
    """The candidates that can serve: a forced algorithm gives way to the table's where it does not fit."""
    found = {}
    for name, candidate in CANDIDATES.items():
        algorithm, blocks = candidate
        blocks_matter = blocks is None or direction != "backward_weight"
        fits = algorithm == "automatic" or serving(shape, batch, direction, candidate).startswith(algorithm)
        if fits and blocks_matter:
            found[name] = candidate
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_conv", description=__doc__.splitlines()[0])
    layers = {**VGG16, **EDGES}
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", nargs="+", choices=layers, default=list(layers), metavar="NAME")
    parser.add_argument("--pass", dest="passes", nargs="+", choices=PASSES, default=["forward", "backward_data"])
    options = parser.parse_args(arguments)
    cpp.set_num_threads(options.threads)
    print(f"instruction set {cpp.isa()}, {options.threads} threads; seconds relative to the table's choice")
    for batch in options.batch:
        for name in options.layers:
            for direction in options.passes:
                shape = layers[name]
                candidates = applicable(shape, batch, direction)
                seconds = measure(layer_call(*shape, batch, direction), candidates)
                own = seconds.pop("table")
                ranked = sorted(seconds.items(), key=lambda item: item[1])
                chosen = serving(shape, batch, direction, CANDIDATES["table"])
                print(f"batch {batch} {name} {shape} {direction}: {chosen}, {own * 1e3:.3f} ms")
                print("    " + "  ".join(f"{other} {s / own:.2f}" for other, s in ranked), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
