"""`save`: a checkpoint written beside its place, read back, and renamed there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pycap import config as configuration
from pycap import tensorfile
from pycap.checkpoint import integrity
from pycap.checkpoint.layout import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    STATE,
    SUMS,
    VOCAB,
    CheckpointError,
    siblings,
    standing,
)
from pycap.checkpoint.versions import header
from pycap.config import TrainConfig
from pycap.data.disk import FULL, sync
from pycap.data.vocab import Vocabulary

YAML_END = "...\n"  # YAML's end of document: shows that nothing was cut off


def save(
    folder: str | os.PathLike[str],
    *,
    model: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray] | None,
    state: Mapping[str, Any],
    vocab: Vocabulary,
    config: TrainConfig,
    preprocess: Mapping[str, Any],
) -> None:
    """Write a checkpoint over `folder`; whatever happens, a whole one stands there or beside it, where `load` finds it.

    It takes the place of the one before when it has been read back and has the checksums of what is in memory.
    model, optimizer: host arrays, written as they are. state: JSON values (NumPy scalars are taken too).

    Raises:
        CheckpointError: the disk is full, keeps other bytes than it was given, or the folder cannot be written; earlier
            checkpoints are whole then.
    """
    folder = Path(folder)
    temporary, old = siblings(folder)
    save_id = f"{time.time_ns():x}-{os.getpid():x}"
    state_text = json.dumps({**header(save_id), "state": dict(state)}, indent=1, default=_plain)
    config_text = configuration.to_yaml(config, {"preprocess": dict(preprocess)}) + YAML_END
    if folder.exists() and standing(folder) is None and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: holds other things than a checkpoint; give another --out-dir, or move it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        _check_space(folder.parent, model, optimizer)
        temporary.mkdir()
        sums = {MODEL: _write_arrays(temporary / MODEL, model, save_id)}
        if optimizer is not None:
            sums[OPTIMIZER] = _write_arrays(temporary / OPTIMIZER, optimizer, save_id)
        sums[STATE] = _write_text(temporary / STATE, state_text)
        sums[CONFIG] = _write_text(temporary / CONFIG, config_text)
        vocab.save(temporary / VOCAB)
        sums[VOCAB] = hashlib.sha256((temporary / VOCAB).read_bytes()).hexdigest()
        _write_text(temporary / SUMS, integrity.sums_text(sums))
        _read_back(folder, temporary, sums)
        sync(temporary)
        if folder.exists():
            os.rename(folder, old)
        os.rename(temporary, folder)
        sync(folder.parent)
        if old.exists():
            shutil.rmtree(old)
    except BaseException as error:
        swapping = old.exists() and not folder.exists()
        if not swapping:  # else both siblings are whole, and `load` finds the new one
            shutil.rmtree(temporary, ignore_errors=True)  # the error on hand matters more than one of cleaning up
        if not isinstance(error, OSError):
            raise
        if error.errno in FULL:
            raise CheckpointError(
                f"{folder}: the disk is full ({_size(_free(folder))} free); "
                "earlier checkpoints are whole; free space or give another --out-dir"
            ) from error
        raise CheckpointError(f"{folder}: cannot save: {error}; earlier checkpoints are whole") from error


def recover(folder: Path) -> None:
    """Finish what an interrupted save left: put the whole checkpoint in its place, delete the rest."""
    found = standing(folder)
    if found is not None and found != folder:
        os.rename(found, folder)
    for sibling in siblings(folder):
        if sibling.exists():
            shutil.rmtree(sibling)


def _check_space(parent: Path, *parts: Mapping[str, np.ndarray] | None) -> None:
    needed = sum(array.nbytes for part in parts if part for array in part.values()) + (4 << 20)
    free = _free(parent)
    if free < needed:
        raise CheckpointError(
            f"{parent}: a checkpoint needs {_size(needed)} and the disk has {_size(free)} free; "
            "free space or give another --out-dir"
        )


def _free(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or will."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], save_id: str) -> str:
    return tensorfile.write(path, arrays, {"save_id": save_id, **integrity.tensor_digests(arrays)})


def _write_text(path: Path, text: str) -> str:
    content = text.encode("utf-8")
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _read_back(folder: Path, temporary: Path, sums: Mapping[str, str]) -> None:
    try:
        integrity.read_back(temporary, sums)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: cannot save: the disk keeps other bytes than it was given ({error}); earlier checkpoints are whole; "
            "check the disk, or give another --out-dir"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"state holds {type(value).__name__}, which JSON cannot; put arrays into model or optimizer")
