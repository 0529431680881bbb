"""The arrays of a case, drawn from a seed of its own, so that every side's process works on the same values."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from benchmarks.cases import VGG16, Case
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.data.vocab import END, START, UNK
from pycap.models.nic import NIC

Arrays = dict[str, np.ndarray]
SPEC = PreprocessSpec()  # VGG16's: 256 x 256 images, 224 x 224 crops
#: So low that no beam ends before its last word: every side then does the same work, whatever its rounding.
END_BIAS = -30.0


def generator(case: Case) -> np.random.Generator:
    """The case's own random numbers; cases that differ in mode or dtype only get the same."""
    return np.random.default_rng(zlib.crc32(f"{case.op}/{case.name}".encode()))


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(scale)
    return values


def arrays(case: Case) -> Arrays:
    """Inputs of a single operation, float32 and int32, in pycap's layouts. `dy`: the gradient of the result."""
    rng, s = generator(case), case.shape
    if case.op == "conv2d":
        n, h, c, k = s["N"], s["H"], s["C"], s["K"]
        return {
            "x": normal(rng, n, h, h, c),
            "w": normal(rng, k, 3, 3, c, scale=(2 / (9 * c)) ** 0.5),
            "b": normal(rng, k, scale=0.1),
            "dy": normal(rng, n, h, h, k),
        }
    if case.op == "linear":
        m, i, o = s["M"], s["I"], s["O"]
        w = normal(rng, o, i, scale=(2 / i) ** 0.5)
        return {"x": normal(rng, m, i), "w": w, "b": normal(rng, o, scale=0.1), "dy": normal(rng, m, o)}
    if case.op == "pool":
        n, h, c = s["N"], s["H"], s["C"]
        return {"x": normal(rng, n, h, h, c), "dy": normal(rng, n, h // 2, h // 2, c)}
    if case.op == "lstm":
        t, n, i, h = s["T"], s["N"], s["I"], s["H"]
        return {
            "x": normal(rng, t, n, i),
            "w_x": normal(rng, 4 * h, i, scale=h**-0.5),
            "w_h": normal(rng, 4 * h, h, scale=h**-0.5),
            "b": normal(rng, 4 * h, scale=0.1),
            "dy": normal(rng, t, n, h),
        }
    if case.op == "embedding":
        ids = rng.integers(0, s["V"], s["M"]).astype(np.int32)
        return {"table": normal(rng, s["V"], s["E"]), "ids": ids, "dy": normal(rng, s["M"], s["E"])}
    if case.op == "softmax_xent":
        m, h, v = s["M"], s["H"], s["V"]
        targets = rng.integers(UNK, v, m).astype(np.int32)
        w = normal(rng, v, h, scale=h**-0.5)
        return {"h": normal(rng, m, h), "w": w, "b": normal(rng, v, scale=0.1), "targets": targets}
    raise ValueError(f"{case.id}: no inputs are defined for op {case.op!r}")


def vgg16_shapes() -> list[tuple[int, ...]]:
    """Every parameter of VGG16, its classifier included."""
    shapes: list[tuple[int, ...]] = []
    for _, c, k in VGG16.values():
        shapes += [(k, 3, 3, c), (k,)]
    return [*shapes, (4096, 25088), (4096,), (4096, 4096), (4096,), (1000, 4096), (1000,)]


def config(case: Case, **more: Any) -> TrainConfig:
    """The joint captioner of a whole-model case: VGG16 and NIC, without dropout, whose masks differ between sides."""
    hidden = case.shape.get("H", 512)
    return TrainConfig(
        cnn="vgg16",
        image_size=224,
        rnn_size=hidden,
        input_encoding_size=hidden,
        drop_prob_lm=0.0,
        drop_prob_cnn=0.0,
        precision="bf16" if case.dtype == "bfloat16" else "fp32",
        **more,
    )


def captioner(case: Case, **more: Any) -> tuple[NIC, TrainConfig]:
    """pycap's captioner with weights of He's variance and small biases; the VGG16 cases use its `cnn`.

    The weights repeat one block of normal numbers: to draw all 146 million would take each side three seconds.
    """
    settings = config(case, **more)
    model = build_model(settings, case.shape.get("V", 16), draw=False)
    block = normal(np.random.default_rng(7), 1_048_573)  # a prime: rows of matrices begin at different places in it
    for name, parameter in model.named_parameters().items():
        shape = parameter.data.shape
        scale = (
            0.05 if len(shape) == 1 else 1.0 if name.startswith("word_embedding.") else (2 / np.prod(shape[1:])) ** 0.5
        )
        flat = parameter.data.reshape(-1)
        for start in range(0, flat.size, block.size):
            part = flat[start : start + block.size]
            np.multiply(block[: part.size], np.float32(scale), out=part)
    if case.op in ("caption", "cold"):
        model.projection.bias.data[END] = END_BIAS
    return model, settings


def images(case: Case) -> np.ndarray:
    """Normalised images, float32 [N,224,224,3]; the first ones are the same at every batch size."""
    return normal(np.random.default_rng(11), case.shape["N"], 224, 224, 3)


def photographs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images uint8 [N,256,256,3] with some structure, and their centre crops int32 [N,3]."""
    rng = np.random.default_rng(13)
    coarse = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    pixels = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)
    return pixels, np.tile(np.array([16, 16, 0], np.int32), (count, 1))


def batch(case: Case) -> Batch:
    """A training batch of the joint step: captions of 8 to T-2 words, START and END, then padding."""
    s = case.shape
    rng = generator(case)
    pixels, crops = photographs(s["B"])
    tokens = np.zeros((s["T"], s["B"] * s["S"]), np.int32)
    for column in range(tokens.shape[1]):
        words = rng.integers(UNK + 1, s["V"], rng.integers(8, s["T"] - 1))
        tokens[: len(words) + 2, column] = [START, *words, END]
    return Batch(pixels, crops, tokens, (), (), (), 0, 0)
