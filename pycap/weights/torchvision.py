"""torchvision's and timm's VGGs, as safetensors or .pth: kernels OIHW, filters that read RGB, fc6 flattened C, H, W."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pycap.tensorfile import map_arrays
from pycap.weights import pickled
from pycap.weights.canonical import (
    LAYERS,
    TORCH_MEAN,
    TORCH_STD,
    VGGWeights,
    WeightsError,
    convolutions,
    dense_from_channels_first,
    listed,
    need_shape,
    which,
)

LEGACY = pickled.LEGACY
_FEATURE = re.compile(r"(features\.\d+)\.(weight|bias)")
# torchvision's names of the fully connected layers, and timm's, to which fc6 is a convolution over the whole map.
_DENSE = {"classifier.0": "fc6", "classifier.3": "fc7", "pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7"}
_CLASSIFIERS = ("classifier.6", "head.fc")
_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")


def read_safetensors(path: Path) -> VGGWeights:
    """A safetensors file with torchvision's or timm's names."""
    try:
        arrays, _ = map_arrays(path)
    except ValueError as error:  # TensorFileError among them
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error
    return _translate(path, arrays, "safetensors")


def read_pth(path: Path) -> VGGWeights:
    """A state dict that torch.save wrote; nothing that its pickle asks for is run (see `pickled`)."""
    return _translate(path, pickled.read_state_dict(path), "pth")


def _translate(path: Path, arrays: Mapping[str, np.ndarray], form: str) -> VGGWeights:
    if any(name.rpartition(".")[2] in _BATCH_NORM for name in arrays):
        raise WeightsError(
            f"{path}: a VGG with batch normalisation, which pycap's has not; give the plain one (no _bn)"
        )
    features = {found[1] for name in arrays if (found := _FEATURE.fullmatch(name))}
    layers = _layers(which(path, features, {cnn: _layers(cnn) for cnn in LAYERS})) if features else {}
    ours: dict[str, np.ndarray] = {}
    unknown, dropped = [], []
    for name, array in arrays.items():
        module, _, kind = name.rpartition(".")
        if found := _FEATURE.fullmatch(name):
            layer = layers[found[1]]
            ours[f"{layer}.{kind}"] = _kernel(path, name, layer, array)
        elif module in _DENSE and kind in ("weight", "bias"):
            ours[f"{_DENSE[module]}.{kind}"] = array if kind == "bias" else _matrix(path, name, array)
        elif module in _CLASSIFIERS and kind in ("weight", "bias"):
            dropped.append(name)
        else:
            unknown.append(name)
    if unknown or not features:
        what = f"unexpected {listed(unknown)}" if unknown else "no features.0.weight in it"
        raise WeightsError(f"{path}: not torchvision's or timm's VGG: {what}; wanted are features.N and the classifier")
    if "fc6.weight" in ours and ours["fc6.weight"].ndim == 2:
        _reorder(path, ours, [*layers.values()][-1])
    maker = "timm" if any(name.startswith(("pre_logits.", "head.")) for name in arrays) else "torchvision"
    return VGGWeights(ours, path, f"{maker}-{form}", TORCH_MEAN, TORCH_STD, dropped=tuple(dropped))


def _layers(cnn: str) -> dict[str, str]:
    """Our names of a VGG's convolutions by their place in `features`, where a ReLU follows each, and a pool each block."""
    places = [2 * n + block for block, n in _numbered(cnn)]
    return {f"features.{place}": ours for place, ours in zip(places, convolutions(cnn), strict=True)}


def _numbered(cnn: str) -> list[tuple[int, int]]:
    """(block from 0, number of the convolution in the whole net from 0) of each convolution."""
    blocks = [block for block, count in enumerate(LAYERS[cnn]) for _ in range(count)]
    return [(block, n) for n, block in enumerate(blocks)]


def _kernel(path: Path, name: str, layer: str, array: np.ndarray) -> np.ndarray:
    if name.endswith("bias"):
        return need_shape(path, name, array, (None,), "out")
    inputs = 3 if layer == "conv1_1" else None
    return need_shape(path, name, array, (None, inputs, 3, 3), "out, in, 3, 3").transpose(0, 2, 3, 1)


def _matrix(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """[out, in]; timm's convolutions [out, in, side, side] flattened C, H, W, as torchvision's are."""
    if name.startswith("pre_logits."):
        return need_shape(path, name, array, (None, None, None, None), "out, in, side, side").reshape(len(array), -1)
    return need_shape(path, name, array, (None, None), "out, in")


def _reorder(path: Path, ours: dict[str, np.ndarray], last: str) -> None:
    """fc6's inputs from C, H, W to H, W, C."""
    weight, bias = ours["fc6.weight"], ours.get(f"{last}.bias")
    if bias is None:
        return  # `canonical.check` tells what is missing
    reordered = dense_from_channels_first(weight, len(bias))
    if reordered is None:
        raise WeightsError(
            f"{path}: fc6 reads {weight.shape[1]} values, which is no square map of the last convolution's {len(bias)} "
            "channels; give an unaltered file"
        )
    ours["fc6.weight"] = reordered
