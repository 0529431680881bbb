"""The registry of what is timed on a GPU: a training step's operations at their real sizes, and their inputs on the device."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.cases import FULLY_CONNECTED, HIDDEN, VGG16, VOCABULARY, Case, vgg16_parameters
from pycap.device import bfloat16

Arrays = dict[str, Any]

#: Bytes of a number; tf32 is float32 in memory, and its products are rounded to 11 bits.
SIZE = {"bfloat16": 2, "tf32": 4, "float32": 4}
#: Layers of VGG16 that are timed: one of each shape, and those that a pooling follows.
LAYERS = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_3", "conv4_1", "conv4_3", "conv5_3")
POOLED = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
#: Layers that are timed in float32 too.
STRICT = ("conv1_2", "conv3_3", "conv4_3")


def _convolutions(batch: int, shrink: int) -> Iterator[Case]:
    for name in LAYERS:
        side, c, k = VGG16[name]
        side, c, k = max(side // shrink, 4), c if c == 3 else max(c // shrink, 16), max(k // shrink, 16)
        x, y, w = batch * side * side * c, batch * side * side * k, k * c * 9
        flops = 2.0 * y * c * 9
        for dtype, size in SIZE.items():
            if dtype != "bfloat16" and name not in STRICT:
                continue
            shape = {"N": batch, "H": side, "C": c, "K": k, "pool": int(name in POOLED)}

            def case(mode: str, nbytes: float, compiled: bool = False) -> Case:
                peers = ("eager", "compile") if compiled and dtype == "bfloat16" else ("eager",)  # noqa: B023
                return Case("conv2d", f"{name}-b{batch}", mode, dtype, shape, flops, nbytes, peers)  # noqa: B023

            yield case("forward", size * (x + y + w))
            yield case("block", size * (x + y / (4 if name in POOLED else 1) + w), compiled=True)
            if c > 3:
                yield case("backward-data", size * (x + y + w))
            yield case("backward-weight", size * (x + y) + 4.0 * w)


def _rows(batch: int, shrink: int) -> Iterator[Case]:
    for name, (i, o) in FULLY_CONNECTED.items():
        i, o = i // shrink, o // shrink
        shape = {"M": batch, "I": i, "O": o}
        maps = 2.0 * batch * (i + o)
        for mode in ("forward", "backward-data", "backward-weight"):
            yield Case(
                "linear",
                f"{name}-b{batch}",
                mode,
                "bfloat16",
                shape,
                2.0 * batch * i * o,
                4.0 * i * o + maps,
                ("eager",),
            )
    words, hidden, v = -(-batch * 5 * 18 // shrink), HIDDEN // shrink, VOCABULARY // shrink
    shape = {"M": words, "H": hidden, "V": v}
    for dtype, size in SIZE.items():
        nbytes = size * 4.0 * words * v + 4.0 * 3 * v * hidden
        yield Case(
            "softmax_xent", f"{words}x{hidden}x{v}", "forward+backward", dtype, shape, 6.0 * words * hidden * v, nbytes,
            ("eager", "compile") if dtype == "bfloat16" else ("eager",),
        )  # fmt: skip
    shape = {"M": 3 * batch, "V": v, "k": 3}
    yield Case("topk", f"{3 * batch}x{v}", "forward", "float32", shape, 0.0, 4.0 * 3 * batch * v, ("eager", "compile"))
    for dtype in ("tf32", "float32"):
        for mode in ("forward", "forward+backward"):
            yield sequence(5 * batch, hidden, dtype, mode, steps=max(20 // shrink, 2))
    shape = {"V": v, "E": hidden, "M": words}
    for mode in ("forward", "backward"):
        yield Case("embedding", f"{words}x{hidden}", mode, "float32", shape, 0.0, 8.0 * words * hidden, ("eager",))


def sequence(n: int, hidden: int, dtype: str, mode: str, steps: int = 20, packed: bool = False) -> Case:
    """n sequences of `steps` steps through one layer of an LSTM. packed: of lengths from a fifth of that to all of it, of
    which PyTorch gets a PackedSequence, and pycap a mask; FLOPs and bytes are of the cells that run."""
    size = {"float16": 2, **SIZE}[dtype]
    cells = sum(lengths(steps, n)) if packed else steps * n
    flops, weights = 2.0 * cells * 4 * hidden * 2 * hidden, size * 8.0 * hidden * hidden
    states = cells * hidden * (2.0 * size + 5 * 4)  # x and h; c and the gates are float32
    passes = 1 if mode == "forward" else 3
    shape = {"T": steps, "N": n, "I": hidden, "H": hidden, "packed": int(packed)}
    name = f"T{steps}-b{n}-h{hidden}{'-packed' if packed else ''}"
    return Case("lstm", name, mode, dtype, shape, passes * flops, passes * (states + weights), ("eager",))


def lengths(steps: int, n: int) -> list[int]:
    """How long the sequences of a packed batch are, the longest first: evenly spread over steps/5 to steps, as captions are."""
    return [max(1, steps - round(0.8 * steps * k / max(n - 1, 1))) for k in range(n)]


def _elementwise(batch: int, shrink: int) -> Iterator[Case]:
    side, c = max(224 // shrink, 4), 64
    full = batch * side * side * c
    for mode in ("forward", "backward"):
        shape = {"N": batch, "H": side, "C": c}
        yield Case("pool", f"pool1-b{batch}", mode, "bfloat16", shape, 0.0, 2.5 * full + full / 16, ("eager",))
    count = vgg16_parameters() // shrink**2
    yield Case("adam", f"{count / 1e6:.0f}M", "step", "float32", {"n": count}, 12.0 * count, 28.0 * count, ("eager",))


def registry(batch: int = 64, shrink: int = 1) -> list[Case]:
    """Every case. shrink: sizes are divided by it, for a rehearsal on a CPU."""
    return [*_convolutions(batch, shrink), *_rows(batch, shrink), *_elementwise(batch, shrink)]


def arrays(case: Case, xp: ModuleType) -> Arrays:
    """A case's inputs on the device of the array module `xp`, from a seed of its own; activations in the case's dtype."""
    rng = xp.random.default_rng(zlib.crc32(f"{case.op}/{case.name}".encode()))
    s = case.shape
    kind = bfloat16() if case.dtype == "bfloat16" else np.dtype("float16" if case.dtype == "float16" else "float32")

    def normal(*shape: int, scale: float = 1.0, dtype: Any = None) -> Any:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        return values if dtype is None else values.astype(dtype)

    if case.op == "conv2d":
        n, h, c, k = s["N"], s["H"], s["C"], s["K"]
        w = normal(k, 3, 3, c, scale=(2 / (9 * c)) ** 0.5)
        return {
            "x": normal(n, h, h, c, dtype=kind),
            "w": w,
            "b": normal(k, scale=0.1),
            "dy": normal(n, h, h, k, dtype=kind),
        }
    if case.op == "linear":
        m, i, o = s["M"], s["I"], s["O"]
        w = normal(o, i, scale=(2 / i) ** 0.5)
        return {"x": normal(m, i, dtype=kind), "w": w, "b": normal(o, scale=0.1), "dy": normal(m, o, dtype=kind)}
    if case.op == "softmax_xent":
        m, h, v = s["M"], s["H"], s["V"]
        ids = rng.integers(0, v, m, dtype=np.int32)
        return {
            "h": normal(m, h, dtype=kind),
            "w": normal(v, h, scale=h**-0.5),
            "b": normal(v, scale=0.1),
            "targets": ids,
        }
    if case.op == "topk":
        return {"logits": normal(s["M"], s["V"])}
    if case.op == "lstm":
        t, n, i, h = s["T"], s["N"], s["I"], s["H"]
        made = {"x": normal(t, n, i, dtype=kind), "dy": normal(t, n, h, dtype=kind), "b": normal(4 * h, scale=0.1)}
        made["b"] = made["b"].astype(kind).astype(np.float32)  # PyTorch's bias is of the weights' type
        for name, columns in (("w_x", i), ("w_h", h)):
            made[name] = normal(4 * h, columns, scale=h**-0.5, dtype=kind)
        if s["packed"]:
            made["mask"] = (xp.arange(t)[:, None] < xp.asarray(lengths(t, n))[None, :]).astype(np.uint8)
            made["dy"] *= made["mask"][:, :, None].astype(kind)
        return made
    if case.op == "embedding":
        ids = rng.integers(0, s["V"], s["M"], dtype=np.int32)
        return {"table": normal(s["V"], s["E"]), "ids": ids, "dy": normal(s["M"], s["E"])}
    if case.op == "pool":
        n, h, c = s["N"], s["H"], s["C"]
        return {"x": normal(n, h, h, c, dtype=kind), "dy": normal(n, h // 2, h // 2, c, dtype=kind)}
    if case.op == "adam":
        return {name: normal(s["n"], scale=0.01) for name in ("p", "g")}
    raise ValueError(f"no inputs are known for {case.op}")
