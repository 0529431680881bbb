"""Pre-trained VGGs: Keras' .h5, torchvision's and timm's safetensors and .pth, Frossard's .npz, and pycap's runs, in one form.

`load` knows a file by its first bytes. What it gives has pycap's names and layouts, RGB filters, and the preprocessing that
the weights were trained with. docs/weights.md tells what each file holds and what is done to it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from pycap.weights import canonical, frossard, keras, stored, torchvision, trained
from pycap.weights.canonical import VGGWeights, WeightsError, fit
from pycap.weights.stored import save

__all__ = ["VGGWeights", "WeightsError", "fit", "load", "save"]

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_KINDS = "Keras' .h5, safetensors of torchvision or timm, torchvision's .pth, Frossard's .npz, or what pycap import-vgg wrote"


def load(path: str | os.PathLike[str]) -> VGGWeights:
    """Read a file of any of the forms, or a run's or checkpoint's folder, and check that it is a whole VGG.

    Raises:
        WeightsError: names the file, what is wrong with it (missing, unexpected or misshapen arrays by name), the remedy.
    """
    path = Path(path)
    try:
        return canonical.check(_reader(path)(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _reader(path: Path) -> Callable[[Path], VGGWeights]:
    if path.is_dir():
        return trained.read
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(_HDF5):
        return _hashed(keras.read)
    if start.startswith(_ZIP):
        return _hashed(frossard.read if _holds_npy(path) else torchvision.read_pth)
    if start.startswith(torchvision.LEGACY):
        return _hashed(torchvision.read_pth)
    if start[8:9] == b"{":
        return lambda path: stored.read(path) or _hashed(torchvision.read_safetensors)(path)
    raise WeightsError(f"{path}: of no form that pycap reads (it begins with {start[:8]!r}); give {_KINDS}")


def _holds_npy(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except (
        zipfile.BadZipFile,
        ValueError,
        RuntimeError,
        EOFError,
        struct.error,
    ) as error:  # RuntimeError: of another version
        raise WeightsError(
            f"{path}: not a whole zip file ({str(error)[:300]}); it is damaged, fetch it again"
        ) from error


def _hashed(read: Callable[[Path], VGGWeights]) -> Callable[[Path], VGGWeights]:
    """The reader, which also notes the file's hash."""

    def reader(path: Path) -> VGGWeights:
        weights = read(path)
        with open(path, "rb") as file:
            weights.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return weights

    return reader
