"""Checkpoints: folders of safetensors, JSON and YAML, replaced as a whole so that a whole one always exists."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pycap import config as configuration
from pycap.config import ConfigError, TrainConfig
from pycap.data import DataError
from pycap.data.disk import FULL, sync
from pycap.data.vocab import Vocabulary
from pycap.tensorfile import TensorFileError, map_arrays

FORMAT = "pycap-checkpoint"
VERSION = 1
MODEL, OPTIMIZER, STATE, VOCAB, CONFIG = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "vocab.json",
    "config.yaml",
)
_YAML_END = "...\n"  # YAML's end of document: shows that nothing was cut off


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is absent, damaged, or of another model; the text names file and remedy."""


@dataclass
class Checkpoint:
    """What `load` gives.

    folder: where it was read. model: arrays by parameter name; they lie in a private mapping of the file (see
    `tensorfile.map_arrays`), and what is written to them stays in memory. state: as saved. preprocess: how images are
    prepared.
    """

    folder: Path
    model: dict[str, np.ndarray]
    state: dict[str, Any]
    vocab: Vocabulary
    config: TrainConfig
    preprocess: dict[str, Any]
    save_id: str

    @cached_property
    def optimizer(self) -> dict[str, np.ndarray] | None:
        """The optimiser's arrays, read at first use; None where the checkpoint was saved without them."""
        path = self.folder / OPTIMIZER
        return _read_arrays(path, self.save_id) if path.is_file() else None


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

    model, optimizer: C-contiguous host arrays, written as they are. state: JSON values (NumPy scalars are taken too).

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints are whole then.
    """
    folder = Path(folder)
    temporary, old = _siblings(folder)
    save_id = f"{time.time_ns():x}-{os.getpid():x}"
    header = {"format": FORMAT, "version": VERSION, "save_id": save_id}
    state_text = json.dumps({**header, "state": dict(state)}, indent=1, default=_plain)
    config_text = configuration.to_yaml(config, {"preprocess": dict(preprocess)}) + _YAML_END
    if folder.exists() and _standing(folder) is None and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: holds other things than a checkpoint; give another --out-dir, or move it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        _check_space(folder.parent, model, optimizer)
        temporary.mkdir()
        _write_arrays(temporary / MODEL, model, save_id)
        if optimizer is not None:
            _write_arrays(temporary / OPTIMIZER, optimizer, save_id)
        _write_text(temporary / STATE, state_text)
        _write_text(temporary / CONFIG, config_text)
        vocab.save(temporary / VOCAB)
        sync(temporary / VOCAB)
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


def load(path: str | os.PathLike[str], prefer: str = "best") -> Checkpoint:
    """Read a checkpoint's folder, or from a run's folder its `prefer` ("best" or "last"), else the other one.

    A save that was interrupted between its renames is read from where it stands.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    for _ in range(10):
        folder = find(path, prefer)
        before = _identity(folder)
        try:
            found = _load(folder)
        except CheckpointError:
            if _identity(find(path, prefer)) == before:
                raise
        else:
            if _identity(find(path, prefer)) == before:
                return found
        # A save replaced the folder between two of our reads: read the new one.
    raise CheckpointError(f"{path}: is being replaced faster than it can be read; try again")


def find(path: str | os.PathLike[str], prefer: str = "best") -> Path:
    """The checkpoint folder that `load(path, prefer)` reads."""
    path = Path(path)
    others = [name for name in ("best", "last") if name != prefer]
    for folder in (path, path / prefer, *(path / name for name in others)):
        standing = _standing(folder)
        if standing is not None:
            return standing
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a checkpoint (runs/NAME/best) or a run (runs/NAME)")
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file; a checkpoint is a folder that holds {MODEL} and {STATE}")
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{path}: no checkpoint: neither {STATE} nor best/ or last/ in it (it holds {inside}); "
        "give a folder that training wrote"
    )


def digest(folder: Path) -> str:
    """SHA-256 of what captions depend on in a checkpoint's folder: weights, vocabulary, config with the images' preparation."""
    told = hashlib.sha256()
    for name in (MODEL, VOCAB, CONFIG):
        with open(folder / name, "rb") as file:
            told.update(hashlib.file_digest(file, "sha256").digest())
    return told.hexdigest()


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


def _siblings(folder: Path) -> tuple[Path, Path]:
    """Where a checkpoint is written, and where the one before it waits to be deleted."""
    return folder.with_name(f".{folder.name}.pycap-new"), folder.with_name(f".{folder.name}.pycap-old")


def _standing(folder: Path) -> Path | None:
    """`folder` if it is a checkpoint, else the whole one that an interrupted save left beside it, else None.

    Between the renames of `save` the folder is absent and both siblings are whole, the temporary one being newer.
    """
    if _is_checkpoint(folder):
        return folder
    temporary, old = _siblings(folder)
    if not folder.exists() and _is_checkpoint(old):
        return temporary if _is_checkpoint(temporary) else old
    return folder if _is_checkpoint(folder) else None  # again: a save may just have moved it in


def _is_checkpoint(folder: Path) -> bool:
    return (folder / STATE).exists() or (folder / MODEL).exists()


def _recover(folder: Path) -> None:
    """Finish what an interrupted save left: put the whole checkpoint in its place, delete the rest."""
    standing = _standing(folder)
    if standing is not None and standing != folder:
        os.rename(standing, folder)
    for sibling in _siblings(folder):
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


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], save_id: str) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        save_file(contiguous, path, metadata={"save_id": save_id})
    except SafetensorError as error:
        # It carries the operating system's error as text only: "... (os error 28)".
        code = next((c for c in FULL if f"(os error {c})" in str(error) or f"code: {c}," in str(error)), errno.EIO)
        raise OSError(code, str(error), str(path)) from error
    os.chmod(path, 0o644)  # safetensors' 0600 would hide the weights from the group
    sync(path)


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"state holds {type(value).__name__}, which JSON cannot; put arrays into model or optimizer")


def _load(folder: Path) -> Checkpoint:
    try:
        return _read(folder)
    except (DataError, ConfigError) as error:
        raise CheckpointError(f"{folder}: {error}; use another checkpoint of the run") from error
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error


def _read(folder: Path) -> Checkpoint:
    header = _read_state(folder / STATE)
    save_id = header["save_id"]
    model = _read_arrays(folder / MODEL, save_id)
    _require(folder / VOCAB)
    _require(folder / CONFIG)
    if not (folder / CONFIG).read_bytes().rstrip().endswith(_YAML_END.strip().encode()):
        raise CheckpointError(
            f"{folder / CONFIG}: truncated (its last line is not {_YAML_END.strip()}); use another checkpoint"
        )
    vocab = Vocabulary.load(folder / VOCAB)
    config = configuration.load(folder / CONFIG)
    preprocess = configuration.load_extra(folder / CONFIG, "preprocess")
    return Checkpoint(folder, model, header["state"], vocab, config, preprocess, save_id)


def _identity(folder: Path) -> tuple[Path, int, int]:
    """Differs where a save has replaced the folder (inode numbers alone are used again)."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return folder, -1, -1
    return folder, status.st_ino, status.st_ctime_ns


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, use another one of the run")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: zero bytes; the checkpoint is damaged, use another one of the run")


def _read_state(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        header = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); the checkpoint is damaged, use another one") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not {"state", "save_id"} <= header.keys():
        raise CheckpointError(f"{path}: not the state of a pycap checkpoint (no format: {FORMAT}); give a run's folder")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {header.get('version')!r}, and this pycap reads version {VERSION}; "
            "use the pycap that wrote it"
        )
    return header


def _read_arrays(path: Path, save_id: str) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file, mapped copy-on-write; it must be of the same save as the rest."""
    _require(path)
    try:
        arrays, metadata = map_arrays(path)
    except TensorFileError as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error}); use another checkpoint of the run") from error
    if metadata.get("save_id") != save_id:
        raise CheckpointError(
            f"{path}: of another save than {STATE} beside it (files of two checkpoints mixed); use another checkpoint"
        )
    return arrays
