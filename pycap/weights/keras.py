"""Keras' VGG weights (HDF5), with and without top: kernels HWIO, filters that read BGR, fc6 flattened H, W, C."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pycap.weights.canonical import (
    CAFFE_MEAN,
    CAFFE_STD,
    VGGWeights,
    WeightsError,
    listed,
    need_shape,
)

_BLOCK = re.compile(r"block([1-9])_conv([1-9])")
_DENSE = {"fc1": "fc6", "fc2": "fc7"}
_CLASSIFIER = "predictions"
# The last part of a dataset's name: Keras 1's "fc1_W_1:0", Keras 2's "kernel:0", Keras 3's "vars/0".
_KINDS = {"w": "weight", "kernel": "weight", "0": "weight", "b": "bias", "bias": "bias", "1": "bias"}


def read(path: Path) -> VGGWeights:
    """Weights as `save_weights` wrote them, or a whole saved model. WeightsError names what does not belong to a VGG."""
    arrays: dict[str, np.ndarray] = {}
    unknown, dropped = [], []
    for name, array in _datasets(path).items():
        parts = [part for part in name.split("/") if _BLOCK.fullmatch(part) or part in (*_DENSE, _CLASSIFIER)]
        kind = _kind(name, parts[-1]) if parts else None
        if kind is None:
            unknown.append(name)
        elif parts[-1] == _CLASSIFIER:
            dropped.append(name)
        else:
            layer = parts[-1]
            block = _BLOCK.fullmatch(layer)
            ours = f"{f'conv{block[1]}_{block[2]}' if block else _DENSE[layer]}.{kind}"
            if ours in arrays:
                raise WeightsError(
                    f"{path}: {ours} stands in it twice, the second time as {name}; give an unaltered file"
                )
            arrays[ours] = _ours(path, name, ours, array)
    if unknown or not arrays:
        raise WeightsError(
            f"{path}: not Keras' VGG: {f'unexpected {listed(unknown)}' if unknown else 'no weights in it'}; wanted are "
            "block1_conv1 ... fc2, as keras.applications' VGG16 and VGG19 name them"
        )
    return VGGWeights(arrays, path, "keras", CAFFE_MEAN, CAFFE_STD, dropped=tuple(dropped))


def _datasets(path: Path) -> dict[str, np.ndarray]:
    """Every array of the file by its whole name, those of an optimiser left out."""
    import h5py

    from pycap.data import hdf5

    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in ("optimizer_weights", "optimizer"):
            found[name] = np.asarray(item[()])

    try:
        hdf5.require_sound(path)
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py's, of damaged files
        raise WeightsError(f"{path}: not a whole HDF5 file ({str(error)[:300]}); fetch it again") from error
    return found


def _kind(name: str, layer: str) -> str | None:
    last = name.rpartition("/")[2].split(":")[0].lower().removeprefix(f"{layer}_")
    return _KINDS.get(re.sub(r"_\d+$", "", last))


def _ours(path: Path, name: str, ours: str, array: np.ndarray) -> np.ndarray:
    if ours.endswith("bias"):
        return need_shape(path, name, array, (None,), "out")
    if ours.startswith("fc"):
        return need_shape(path, name, array, (None, None), "in, out").T
    first = 3 if ours == "conv1_1.weight" else None
    need_shape(path, name, array, (3, 3, first, None), "3, 3, in, out: TensorFlow's ordering of dimensions")
    kernel = array.transpose(3, 0, 1, 2)
    return kernel[..., ::-1] if first else kernel
