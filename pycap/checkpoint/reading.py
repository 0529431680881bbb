"""`load`: a checkpoint as one save wrote it, every byte of what is used compared with its checksum; and `match`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pycap import config as configuration
from pycap.checkpoint import integrity, versions
from pycap.checkpoint.layout import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    STATE,
    SUMS,
    VOCAB,
    CheckpointError,
    contents,
    find,
    require,
)
from pycap.checkpoint.writing import YAML_END
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError
from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from pycap.tensorfile import TensorFileError, arrays_of, map_file

_CAPTIONS = (MODEL, VOCAB, CONFIG)  # what captions depend on


@dataclass
class Checkpoint:
    """What `load` gives.

    folder: where it was read. model: arrays by parameter name; they lie in a private mapping of the file (see
    `tensorfile.map_arrays`), and what is written to them stays in memory. state: as saved. preprocess: how images are
    prepared. sha256: of the files that captions depend on (weights, vocabulary, config), by name. sums: of all files, as
    SHA256SUMS has them; None where nothing vouches for them (version 1).
    """

    folder: Path
    model: dict[str, np.ndarray]
    state: dict[str, Any]
    vocab: Vocabulary
    config: TrainConfig
    preprocess: dict[str, Any]
    save_id: str
    sha256: dict[str, str]
    sums: dict[str, str] | None = None

    @property
    def spec(self) -> PreprocessSpec:
        """How images are prepared. CheckpointError where `preprocess` does not say it."""
        try:
            return PreprocessSpec.from_dict(self.preprocess)
        except DataError as error:
            raise CheckpointError(f"{self.folder / CONFIG}: {error}; use another checkpoint of the run") from error

    @property
    def digest(self) -> str:
        """SHA-256 of what captions depend on: of the digests of weights, vocabulary and config, in this order."""
        return hashlib.sha256(b"".join(bytes.fromhex(self.sha256[name]) for name in _CAPTIONS)).hexdigest()

    @cached_property
    def optimizer(self) -> dict[str, np.ndarray] | None:
        """The optimiser's arrays, read and compared with their checksums at first use; None where the checkpoint was saved
        without them. CheckpointError as `load`."""
        return _read_optimizer(self.folder, self.save_id, self.sums)


def load(path: str | os.PathLike[str], prefer: str = "best", *, optimizer: bool = False) -> Checkpoint:
    """Read a checkpoint's folder, or from a run's folder its `prefer` ("best" or "last"), else the other one.

    A save that was interrupted between its renames is read from where it stands. optimizer: read and check its state now;
    else at first use, and what only captions never reads it. A checkpoint of version 1 is told by a `CheckpointWarning`.

    Raises:
        CheckpointError: names the file, of tensors the tensor, and what is wrong with it.
    """
    for _ in range(10):
        folder = find(Path(path), prefer)
        before = _identity(folder)
        try:
            found = _load(folder, optimizer)
        except CheckpointError:
            if _identity(find(Path(path), prefer)) == before:
                raise
        else:
            if _identity(find(Path(path), prefer)) == before:
                if found.sums is None:
                    versions.warn_of_version_1(folder)
                return found
        # A save replaced the folder between two of our reads: read the new one.
    raise CheckpointError(f"{path}: is being replaced faster than it can be read; try again")


def match(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], where: str | Path = "checkpoint"
) -> None:
    """Check that arrays have exactly the names and shapes that a model expects.

    Raises:
        CheckpointError: names what is missing, what is left over, and each differing shape on both sides.
    """
    missing = [name for name in expected if name not in arrays]
    extra = [name for name in arrays if name not in expected]
    shapes = [
        f"{name} is {tuple(arrays[name].shape)} there, {tuple(shape)} in the model"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(shape)
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
        for what, found in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{where}: of another architecture than this model ({'; '.join(problems)}); "
            "use the options it was trained with (its config.yaml) or another checkpoint"
        )


def _load(folder: Path, optimizer: bool) -> Checkpoint:
    try:
        return _read(folder, optimizer)
    except (DataError, ConfigError) as error:
        raise CheckpointError(f"{folder}: {error}; use another checkpoint of the run") from error
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error


def _read(folder: Path, optimizer: bool) -> Checkpoint:
    state, sums = versions.read_state(folder)
    save_id = state["save_id"]
    if sums is not None:
        integrity.check_listed(folder, sums)
        for name in (VOCAB, CONFIG):
            integrity.check(folder / name, contents(folder / name), sums)
    model = _read_arrays(folder / MODEL, save_id, sums)
    moments = _read_optimizer(folder, save_id, sums) if optimizer else None
    require(folder / VOCAB)
    if not contents(folder / CONFIG).rstrip().endswith(YAML_END.strip().encode()):
        raise CheckpointError(
            f"{folder / CONFIG}: truncated (its last line is not {YAML_END.strip()}); use another checkpoint"
        )
    vocab = Vocabulary.load(folder / VOCAB)
    config = configuration.load(folder / CONFIG)
    preprocess = configuration.load_extra(folder / CONFIG, "preprocess")
    sha256 = {name: integrity.sha256(folder / name, sums) for name in _CAPTIONS}
    found = Checkpoint(folder, model, state["state"], vocab, config, preprocess, save_id, sha256, sums)
    if optimizer:
        found.optimizer = moments
    return found


def _read_optimizer(folder: Path, save_id: str, sums: Mapping[str, str] | None) -> dict[str, np.ndarray] | None:
    path = folder / OPTIMIZER
    if sums is not None and OPTIMIZER in sums and not path.is_file():
        raise CheckpointError(
            f"{path}: missing, and {SUMS} lists it; copy it too, or take the weights alone with --init-from"
        )
    return _read_arrays(path, save_id, sums) if path.is_file() else None


def _identity(folder: Path) -> tuple[Path, int, int]:
    """Differs where a save has replaced the folder (inode numbers alone are used again)."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return folder, -1, -1
    return folder, status.st_ino, status.st_ctime_ns


def _read_arrays(path: Path, save_id: str, sums: Mapping[str, str] | None) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file, mapped copy-on-write; it must be of the same save as the rest."""
    require(path)
    try:
        data = map_file(path)
        if sums is not None:
            integrity.check(path, data, sums, save_id)
        arrays, metadata = arrays_of(data)
    except TensorFileError as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error}); use another checkpoint of the run") from error
    if metadata.get("save_id") != save_id:
        raise CheckpointError(
            f"{path}: of another save than {STATE} beside it (files of two checkpoints mixed); use another checkpoint"
        )
    if sums is None and integrity.has_tensor_digests(metadata):
        raise CheckpointError(
            f"{path}: has checksums, which checkpoints of version 1 had not, and {STATE} says version 1: it is damaged, or of "
            "another checkpoint; use another one of the run"
        )
    return arrays
