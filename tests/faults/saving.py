"""What a process does that is to save one checkpoint, or to write one file of each kind, under a disk that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save_file

from pycap.checkpoint import CheckpointError
from tests.train.checkpoints import save


def over(arguments: list[str]) -> None:
    """FOLDER NUMBER: save the checkpoint of that number over the folder; an error ends the process as it ends `train.py`."""
    folder, number = arguments
    try:
        save(Path(folder), float(number))
    except CheckpointError as error:
        sys.exit(f"error: {error}")


def one_of_each(arguments: list[str]) -> None:
    """FOLDER: a file of Python's, one of safetensors, one of HDF5."""
    folder = Path(arguments[0])
    (folder / "plain.txt").write_text("words\n")
    save_file({"a": np.ones(100, np.float32)}, folder / "arrays.safetensors")
    with h5py.File(folder / "vectors.h5", "w") as file:
        file["data"] = np.ones(100)
