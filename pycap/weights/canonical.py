"""The one form of a pre-trained VGG: pycap's names and layouts, what is checked of it, and which of it fits a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycap.data import DataError
from pycap.data.images import PreprocessSpec

#: Convolutions in each block (as pycap.models.vgg.BLOCKS has them; this room knows no model).
LAYERS: dict[str, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
    "vgg_small6": (1, 1, 2, 2),
    "vgg_micro": (1, 1, 1, 1),
}
DENSE = ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
#: Means of ImageNet's pixels, RGB, as Caffe's VGGs had them subtracted; they divided by nothing.
CAFFE_MEAN, CAFFE_STD = (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)
#: torchvision's and timm's, of pixels 0..1 there.
TORCH_MEAN, TORCH_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_CONVOLUTION = re.compile(r"conv([1-9]\d?)_([1-9]\d?)\.(weight|bias)")
_NAMED, _LONGEST = 6, 100  # names, and letters of a name, in a message


class WeightsError(DataError):
    """A file of weights that cannot be used; the text names the file, what is wrong and what to do."""


@dataclass
class VGGWeights:
    """A VGG's weights as pycap has them.

    arrays: float32 by parameter name: ``conv<block>_<layer>.weight`` [out, 3, 3, in] and ``.bias``; ``fc6.weight``
    [out, side*side*in], its input flattened in the order H, W, C, and ``fc7.weight`` [out, in], each with its ``.bias``, or
    neither (files "without top"). The first filters read RGB. mean, std: what was done to pixels 0..255, RGB.
    path: the file; source: which form it has or had; sha256: of the file that others wrote; dropped: its arrays that a
    captioner has no use for (the classifier of ImageNet).
    """

    arrays: dict[str, np.ndarray]
    path: Path
    source: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str = ""
    dropped: tuple[str, ...] = ()

    @property
    def cnn(self) -> str:
        """Which VGG it is, by its convolutions. WeightsError for one that pycap lacks."""
        present = {name.rpartition(".")[0] for name in self.arrays if name not in DENSE}
        return which(self.path, present, {name: convolutions(name) for name in LAYERS})

    @property
    def has_dense(self) -> bool:
        return "fc6.weight" in self.arrays

    @property
    def image_size(self) -> int:
        """Side of the images that fc6 is for; 224 where the file has no fc6."""
        if not self.has_dense:
            return 224
        layers = LAYERS[self.cnn]
        channels = len(self.arrays[f"conv{len(layers)}_{layers[-1]}.weight"])
        return math.isqrt(self.arrays["fc6.weight"].shape[1] // channels) * 2 ** len(layers)

    def preprocess(self) -> PreprocessSpec:
        """How pixels must reach these weights; resize and crop are those of `image_size`, and another run may have others."""
        size = self.image_size
        return PreprocessSpec(resize=round(size * 8 / 7), crop=size, mean=self.mean, std=self.std)


def convolutions(cnn: str) -> list[str]:
    """Names of a VGG's convolutions, in order."""
    return [f"conv{block}_{layer}" for block, n in enumerate(LAYERS[cnn], 1) for layer in range(1, n + 1)]


def which(path: Path, present: set[str], layers: Mapping[str, Iterable[str]]) -> str:
    """The VGG whose layers these are. layers: of each VGG, by name. WeightsError tells how the nearest one differs."""
    for name, its in layers.items():
        if set(its) == present:
            return name
    name = min(layers, key=lambda name: len(present.symmetric_difference(layers[name])))
    missing, more = (
        [layer for layer in layers[name] if layer not in present],
        sorted(present.difference(layers[name])),
    )
    differing = [f"{what} {listed(found)}" for what, found in (("missing", missing), ("unexpected", more)) if found]
    raise WeightsError(
        f"{path}: the convolutions of none of {', '.join(layers)}; nearest is {name}: {'; '.join(differing)}; "
        "give an unaltered file of one of these"
    )


def listed(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = [name.encode("ascii", "backslashreplace").decode()[:_LONGEST] for name in names]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def need_floats(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """float32 of an array of any floating dtype. WeightsError for others."""
    if not np.issubdtype(array.dtype, np.floating):
        raise WeightsError(f"{path}: {name} holds {array.dtype}, and weights are floating-point; give a VGG's weights")
    return np.ascontiguousarray(array, np.float32)


def need_shape(path: Path, name: str, array: np.ndarray, expected: tuple[int | None, ...], axes: str) -> np.ndarray:
    """The array, if its shape is the expected one (None: any length but 0). axes: what the axes are, for the message."""
    wrong = len(array.shape) != len(expected) or 0 in array.shape
    if wrong or any(e not in (None, n) for n, e in zip(array.shape, expected, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise WeightsError(
            f"{path}: {name} has the shape {list(array.shape)} and should have [{wanted}] ({axes}); give an unaltered file"
        )
    return array


def dense_from_channels_first(weight: np.ndarray, channels: int) -> np.ndarray | None:
    """fc6 [out, C*side*side], whose input is flattened C, H, W -> the same for H, W, C; None where no side fits."""
    outputs, inputs = weight.shape
    side = math.isqrt(inputs // channels)
    if side * side * channels != inputs:
        return None
    return np.ascontiguousarray(weight.reshape(outputs, channels, side, side).transpose(0, 2, 3, 1)).reshape(
        outputs, -1
    )


def check(weights: VGGWeights) -> VGGWeights:
    """Whole, of a known depth, each shape following from the one before, finite; returns it as float32."""
    path, arrays = weights.path, weights.arrays
    unknown = [name for name in arrays if name not in DENSE and not _CONVOLUTION.fullmatch(name)]
    if unknown:
        raise WeightsError(f"{path}: unexpected arrays: {listed(unknown)}; give a VGG's weights, nothing beside them")
    present = {name.rpartition(".")[0] for name in arrays if name not in DENSE}
    pairs = {f"{layer}.{kind}" for layer in present for kind in ("weight", "bias")}
    dense = set(DENSE) if any(name in arrays for name in DENSE) else set()
    missing = sorted((pairs | dense) - arrays.keys())
    if missing:
        raise WeightsError(f"{path}: {len(missing)} missing: {listed(missing)}; it is not a whole VGG, fetch it again")
    expected = convolutions(weights.cnn)
    arrays = {
        name: need_floats(path, name, arrays[name]) for name in [*_in_order(expected), *(d for d in DENSE if dense)]
    }
    inputs = 3
    for layer in expected:
        weight = need_shape(path, f"{layer}.weight", arrays[f"{layer}.weight"], (None, 3, 3, inputs), "out, 3, 3, in")
        inputs = len(weight)
        need_shape(path, f"{layer}.bias", arrays[f"{layer}.bias"], (inputs,), "out")
    if dense:
        _check_dense(path, arrays, inputs)
    infinite = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if infinite:
        raise WeightsError(f"{path}: not all finite: {listed(infinite)}; the file is damaged, fetch it again")
    weights.arrays = arrays
    return weights


def _in_order(layers: Iterable[str]) -> list[str]:
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def _check_dense(path: Path, arrays: Mapping[str, np.ndarray], channels: int) -> None:
    weight = need_shape(path, "fc6.weight", arrays["fc6.weight"], (None, None), "out, in")
    outputs, inputs = weight.shape
    if math.isqrt(inputs // channels) ** 2 * channels != inputs:
        raise WeightsError(
            f"{path}: fc6 reads {inputs} values, which is no square map of the last convolution's {channels} channels; "
            "give an unaltered file"
        )
    need_shape(path, "fc6.bias", arrays["fc6.bias"], (outputs,), "out")
    need_shape(path, "fc7.weight", arrays["fc7.weight"], (outputs, outputs), "out, in")
    need_shape(path, "fc7.bias", arrays["fc7.bias"], (outputs,), "out")


def fit(weights: VGGWeights, cnn: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], str]:
    """What of the weights a model takes: (arrays by name, why fc6 and fc7 are not among them, or "").

    cnn: the model's name; shapes: of all of its parameters. The convolutions must fit. fc6 and fc7 belong together and are
    taken only where both fit: fc6's size follows the images', and fc7 means nothing to another fc6.

    Raises:
        WeightsError: another depth, or convolutions of another width.
    """
    if weights.cnn != cnn:
        raise WeightsError(f"{weights.path}: holds a {weights.cnn}, and the model is a {cnn}; give --cnn {weights.cnn}")
    differing = [
        f"{name} is {list(array.shape)} there, {list(shapes[name])} in the model"
        for name, array in weights.arrays.items()
        if name not in DENSE and array.shape != tuple(shapes[name])
    ]
    if differing:
        raise WeightsError(
            f"{weights.path}: {differing[0]} ({len(differing)} differ); give the --cnn-width of the weights"
        )
    taken = {name: array for name, array in weights.arrays.items() if name not in DENSE}
    if not weights.has_dense:
        return taken, "the file has none"
    if all(weights.arrays[name].shape == tuple(shapes[name]) for name in DENSE):
        return dict(weights.arrays), ""
    there, here = weights.arrays["fc6.weight"].shape, shapes["fc6.weight"]
    return taken, (
        f"fc6 is {there[0]} x {there[1]} there, {here[0]} x {here[1]} in the model; to have them, give "
        f"--image-size {weights.image_size} --fc-size {there[0]}"
    )
