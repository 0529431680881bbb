"""Frossard's vgg16_weights.npz: kernels HWIO, filters that read RGB, fc6 flattened H, W, C, means subtracted as Caffe does."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pycap.weights.canonical import CAFFE_MEAN, CAFFE_STD, VGGWeights, WeightsError, listed, need_shape

_NAME = re.compile(r"(conv[1-9]_[1-9]|fc[678])_([Wb])")
_KINDS = {"W": "weight", "b": "bias"}


def read(path: Path) -> VGGWeights:
    """Arrays named conv1_1_W, conv1_1_b ... fc8_b. Pickled arrays are refused. WeightsError names what is amiss."""
    arrays: dict[str, np.ndarray] = {}
    unknown, dropped = [], []
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                found = _NAME.fullmatch(name)
                if found is None:
                    unknown.append(name)
                elif found[1] == "fc8":
                    dropped.append(name)
                else:
                    arrays[f"{found[1]}.{_KINDS[found[2]]}"] = _ours(path, name, found[1], _array(file, name))
    except WeightsError:
        raise
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path}: not a whole .npz of arrays ({error}); fetch it again") from error
    if unknown or not arrays:
        what = f"unexpected {listed(unknown)}" if unknown else "no weights in it"
        raise WeightsError(f"{path}: not Frossard's VGG: {what}; wanted are conv1_1_W, conv1_1_b ... fc7_b")
    return VGGWeights(arrays, path, "frossard", CAFFE_MEAN, CAFFE_STD, dropped=tuple(dropped))


def _array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """ValueError for a member that is no array: NumPy gives its bytes."""
    array = file[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} in it is no array")
    return array


def _ours(path: Path, name: str, layer: str, array: np.ndarray) -> np.ndarray:
    if name.endswith("b"):
        return need_shape(path, name, array, (None,), "out")
    if layer.startswith("fc"):
        return need_shape(path, name, array, (None, None), "in, out").T
    inputs = 3 if layer == "conv1_1" else None
    return need_shape(path, name, array, (3, 3, inputs, None), "3, 3, in, out").transpose(3, 0, 1, 2)
