"""The registry of what is timed: each case with its real shapes, its work in FLOPs and bytes, and the peers that can do it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

#: VGG16's convolutions: name -> (side of the map in pixels, channels in, channels out).
VGG16 = {
    "conv1_1": (224, 3, 64),
    "conv1_2": (224, 64, 64),
    "conv2_1": (112, 64, 128),
    "conv2_2": (112, 128, 128),
    "conv3_1": (56, 128, 256),
    "conv3_2": (56, 256, 256),
    "conv3_3": (56, 256, 256),
    "conv4_1": (28, 256, 512),
    "conv4_2": (28, 512, 512),
    "conv4_3": (28, 512, 512),
    "conv5_1": (14, 512, 512),
    "conv5_2": (14, 512, 512),
    "conv5_3": (14, 512, 512),
}
FULLY_CONNECTED = {"fc6": (25088, 4096), "fc7": (4096, 4096)}
VOCABULARY, HIDDEN = 10_000, 512
SIZE = {"float32": 4, "bfloat16": 2}
TRAINING = ("torch",)
INFERENCE = ("torch", "onnxruntime", "openvino", "ncnn")
INFERENCE_BF16 = ("torch", "openvino", "ncnn")
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One thing that is timed, on every side alike.

    mode: forward (as in inference: nothing is kept for a backward, prepared forms of the weights may be), backward (data
    and weight), forward+backward or step. flops: of the plain algorithm, whatever a side
    does instead. nbytes: each operand and result moved once. gib: memory that a side needs, about. label: its row of
    the headline table, empty where it has none. tests: what `verify` runs before the timing, relative to tests/.
    """

    op: str
    name: str
    mode: str
    dtype: str
    shape: Mapping[str, int]
    flops: float
    nbytes: float
    peers: tuple[str, ...] = TRAINING
    gib: float = 0.5
    label: str = ""
    tests: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique in the registry: op/name/mode/dtype."""
        return f"{self.op}/{self.name}/{self.mode}/{self.dtype}"


# Single operations ----------------------------------------------------------------------------------------------------


def _convolutions() -> Iterator[Case]:
    for batch in (1, 8, 32):
        for name, (side, c, k) in VGG16.items():
            flops = 2.0 * batch * side * side * k * c * 9
            x, y, w = batch * side * side * c, batch * side * side * k, k * c * 9
            shape = {"N": batch, "H": side, "C": c, "K": k}
            for dtype, size in SIZE.items():
                base = Case("conv2d", f"{name}-b{batch}", "forward", dtype, shape, flops, size * (x + y + w))
                gib = 4 * size * (x + y) / GIB + 0.3
                yield replace(base, gib=gib, tests=("ops/test_conv2d.py",))
                # The images of the first layer get no gradient.
                passes = 1 if c == 3 else 2
                moved = size * (passes * x + 2.0 * y) + (passes + 3) * 4.0 * w
                yield replace(
                    base,
                    mode="backward",
                    flops=passes * flops,
                    nbytes=moved,
                    gib=2 * gib,
                    tests=("ops/test_conv2d.py",),
                )


def _linear() -> Iterator[Case]:
    for batch in (1, 8):
        for name, (inputs, outputs) in FULLY_CONNECTED.items():
            shape = {"M": batch, "I": inputs, "O": outputs}
            flops = 2.0 * batch * inputs * outputs
            for dtype, size in SIZE.items():
                maps = size * batch * (inputs + outputs)
                nbytes = size * inputs * outputs + maps
                base = Case("linear", f"{name}-b{batch}", "forward", dtype, shape, flops, nbytes, gib=1.0)
                base = replace(base, tests=("ops/test_linear.py",))
                yield base
                if batch > 1:
                    yield replace(
                        base, mode="backward", flops=2 * flops, nbytes=2 * (4.0 * inputs * outputs + maps), gib=1.5
                    )


def _others() -> Iterator[Case]:
    n, side, c = 8, 224, 64
    full = n * side * side * c
    for dtype, size in SIZE.items():
        shape = {"N": n, "H": side, "C": c}
        base = Case("pool", f"pool1-b{n}", "forward", dtype, shape, 0.0, size * full * 1.25 + full / 16, gib=1.0)
        base = replace(base, tests=("ops/test_pool.py",))
        yield base
        yield replace(base, mode="backward")
    steps = 20
    for batch in (64, 320):
        shape = {"T": steps, "N": batch, "I": HIDDEN, "H": HIDDEN}
        flops = 2.0 * steps * batch * 4 * HIDDEN * 2 * HIDDEN
        weights, states = 8 * HIDDEN * HIDDEN, steps * batch * HIDDEN
        nbytes = 4.0 * (weights * steps / 2 + 7 * states)
        label = "LSTM 512, 20 steps, batch 64, forward + backward" if batch == 64 else ""
        base = Case("lstm", f"T{steps}-b{batch}", "forward", "float32", shape, flops, nbytes)
        base = replace(base, tests=("ops/test_lstm.py",))
        yield base
        yield replace(base, mode="forward+backward", flops=3 * flops, nbytes=3 * nbytes, label=label)
    words = 1280
    shape = {"V": VOCABULARY, "E": HIDDEN, "M": words}
    nbytes = 4.0 * 2 * words * HIDDEN
    base = Case("embedding", f"V{VOCABULARY}-{words}", "forward", "float32", shape, 0.0, nbytes)
    base = replace(base, tests=("ops/test_embedding.py",))
    yield base
    yield replace(base, mode="backward", nbytes=1.5 * nbytes)
    shape = {"M": words, "H": HIDDEN, "V": VOCABULARY}
    yield Case(
        "softmax_xent",
        f"{words}x{HIDDEN}x{VOCABULARY}",
        "forward+backward",
        "float32",
        shape,
        6.0 * words * HIDDEN * VOCABULARY,
        4.0 * (3 * words * VOCABULARY + 3 * VOCABULARY * HIDDEN + 3 * words * HIDDEN),
        label="vocabulary loss, 1280 x 512 x 10,000, forward + backward",
        tests=("ops/test_softmax_xent.py",),
    )
    count = vgg16_parameters()
    yield Case(
        "adam", f"vgg16-{count / 1e6:.0f}M", "step", "float32", {}, 12.0 * count, 28.0 * count, gib=2.5,
        tests=("ops/test_optimiser_steps.py",),
    )  # fmt: skip


# Whole models ---------------------------------------------------------------------------------------------------------

_MODEL_TESTS = ("ops/test_conv2d.py", "ops/test_pool.py", "ops/test_linear.py", "models/test_vgg.py")
_JOINT_TESTS = (*_MODEL_TESTS, "ops/test_lstm.py", "ops/test_softmax_xent.py", "ops/test_embedding.py")
_JOINT_TESTS = (*_JOINT_TESTS, "ops/test_optimiser_steps.py", "models/test_nic.py")


def vgg16_parameters() -> int:
    """Parameters of VGG16, its 1000-way classifier included: 138,357,544."""
    convolutions = sum(c * k * 9 + k for _, c, k in VGG16.values())
    return convolutions + sum(i * o + o for i, o in FULLY_CONNECTED.values()) + 4096 * 1000 + 1000


def vgg16_flops(batch: int) -> float:
    """FLOPs of VGG16 forward up to fc7, at 224 x 224."""
    convolutions = sum(2.0 * side * side * c * k * 9 for side, c, k in VGG16.values())
    return batch * (convolutions + sum(2.0 * i * o for i, o in FULLY_CONNECTED.values()))


def _vgg16_bytes(batch: int, size: int, weights: int) -> float:
    """Weights once, at `weights` bytes each; each layer's map written once and read once, at `size` bytes a number."""
    maps = sum(side * side * k for side, _, k in VGG16.values())
    return weights * (vgg16_parameters() - 4097000.0) + 2.0 * size * batch * maps


_NAMES = {"float32": "float32", "bfloat16": "bf16"}
_FIRST_DGRAD = 2.0 * 224 * 224 * 3 * 64 * 9  # FLOPs an image that training leaves out: the images get no gradient


def _vgg16() -> Iterator[Case]:
    for dtype, size in SIZE.items():
        short = _NAMES[dtype]
        peers = INFERENCE if dtype == "float32" else INFERENCE_BF16
        for batch in (1, 8):
            flops, nbytes = vgg16_flops(batch), _vgg16_bytes(batch, size, size)
            label = f"VGG16 forward, batch {batch}, {short}"
            base = Case("vgg16", f"b{batch}", "forward", dtype, {"N": batch}, flops, nbytes, peers, 1.6, label)
            yield replace(base, tests=_MODEL_TESTS)
        trained = 3 * flops - 8 * _FIRST_DGRAD
        yield Case(
            "vgg16", "b8", "forward+backward", dtype, {"N": 8}, trained, 3 * _vgg16_bytes(8, size, 4), TRAINING, 3.0,
            f"VGG16 forward + backward, batch 8, {short}", _MODEL_TESTS,
        )  # fmt: skip


def _captioners() -> Iterator[Case]:
    for dtype, size in SIZE.items():
        images, captions, steps = 4, 5, 18
        words = images * captions * steps
        flops = 3 * vgg16_flops(images) - images * _FIRST_DGRAD
        flops += 6.0 * words * (8 * HIDDEN * HIDDEN + HIDDEN * VOCABULARY) + 6.0 * images * 4096 * HIDDEN
        weights = vgg16_parameters() - 4097000 + 2 * VOCABULARY * HIDDEN + 8 * HIDDEN * HIDDEN + 4096 * HIDDEN
        nbytes = 3 * _vgg16_bytes(images, size, 4) + 28.0 * weights
        shape = {"B": images, "S": captions, "T": steps, "V": VOCABULARY, "H": HIDDEN}
        yield Case(
            "joint", f"vgg16-nic{HIDDEN}-{images}x{captions}", "step", dtype, shape, flops, nbytes, TRAINING, 3.2,
            f"joint step, VGG16 + NIC 512, 4 images x 5 captions, {_NAMES[dtype]}", _JOINT_TESTS,
        )  # fmt: skip
    images, beam, words = 64, 3, 20
    flops = vgg16_flops(images) + 2.0 * images * beam * words * (8 * HIDDEN * HIDDEN + HIDDEN * VOCABULARY)
    shape = {"N": images, "beam": beam, "T": words, "V": VOCABULARY, "H": HIDDEN, "batch": 16}
    tests = (*_MODEL_TESTS, "models/test_nic.py", "models/test_decode.py")
    yield Case(
        "caption", f"beam{beam}-{images}", "forward", "float32", shape, flops, _vgg16_bytes(images, 4, 4), TRAINING, 2.5,
        "beam-3 captioning of 64 images, VGG16 + NIC 512", tests,
    )  # fmt: skip
    yield Case(
        "cold", "first-caption", "forward", "float32", {**shape, "N": 1, "batch": 1}, 0.0, 0.0, TRAINING, 2.0,
        "cold process: import, load VGG16 captioner, first caption", tests,
    )  # fmt: skip


def registry() -> list[Case]:
    """Every case, in the order in which they are run."""
    return [*_convolutions(), *_linear(), *_vgg16(), *_others(), *_captioners()]


def select(
    cases: Iterable[Case],
    *,
    ops: Iterable[str] = (),
    name: str = "",
    modes: Iterable[str] = (),
    dtypes: Iterable[str] = (),
    headline: bool = False,
) -> list[Case]:
    """The cases that have one of `ops`, `modes` and `dtypes` (empty: any) and `name` in their id; headline: a label too."""
    kept = [
        case
        for case in cases
        if (not ops or case.op in ops)
        and (not modes or case.mode in modes)
        and (not dtypes or case.dtype in dtypes)
        and name in case.id
        and (case.label or not headline)
    ]
    return kept
