"""Versions of the format: the one that is written, those that are read, and the words for the others.

Version 2 (what `save` writes) has a checksum for every file and every tensor. Version 1 had none: it is read, with a warning.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from pycap.checkpoint import integrity
from pycap.checkpoint.layout import STATE, SUMS, CheckpointError, contents
from pycap.tensorfile import shown, unique

FORMAT = "pycap-checkpoint"
VERSION = 2


class CheckpointWarning(UserWarning):
    """A checkpoint was read, and something about it should be known."""


def header(save_id: str) -> dict[str, Any]:
    """What state.json begins with, in every version: a pycap of any age can say by it what it was given."""
    from pycap import __version__

    return {"format": FORMAT, "version": VERSION, "pycap": __version__, "save_id": save_id}


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """(state.json with its header, as version 2 has it; the checksums, or None for version 1).

    CheckpointError for a damaged file, another version, or what is no checkpoint's state.
    """
    path = folder / STATE
    content = contents(path)
    try:
        sums = integrity.read_sums(folder)
    except CheckpointError:
        _parsed(path, content)  # refuses a newer version, whose list may have another form
        raise
    if sums is not None:
        integrity.check(path, content, sums)
    found = _parsed(path, content)
    version = found.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"{path}: checkpoint version {shown(version)}, which no pycap wrote (versions are 1 to {VERSION}); the "
            "checkpoint is damaged, use another one of the run"
        )
    if not isinstance(found.get("state"), dict) or not isinstance(found.get("save_id"), str):
        raise CheckpointError(
            f"{path}: no state or no save_id in it; the checkpoint is damaged, use another one of the run"
        )
    if version == 1 and sums is not None:
        raise CheckpointError(
            f"{path}: checkpoint version 1, which had no {SUMS}, and one stands beside it: of two checkpoints; use another one"
        )
    if version > 1 and sums is None:
        raise CheckpointError(
            f"{folder / SUMS}: missing, so nothing says whether the other files are whole; copy it with them, or use another "
            "checkpoint of the run"
        )
    return found, sums


def warn_of_version_1(folder: Path) -> None:
    """Told once for each folder (Python's warnings), when all of it has been read."""
    warnings.warn(
        f"{folder}: a checkpoint of version 1, without checksums: it was read, and nothing vouches for its bytes; what is "
        f"saved from now on has them (version {VERSION})",
        CheckpointWarning,
        stacklevel=2,
    )


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    """What state.json holds. CheckpointError where it is none, or of a version that is yet to come."""
    try:
        found = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise CheckpointError(f"{path}: not JSON ({error}); the checkpoint is damaged, use another one") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the state of a pycap checkpoint (no format: {FORMAT}); give a run's folder")
    version, writer = found.get("version"), found.get("pycap")
    if type(version) is int and version > VERSION:
        from pycap import __version__

        by = f", written by pycap {shown(writer)}" if isinstance(writer, str) else ""
        raise CheckpointError(
            f"{path}: checkpoint version {shown(version)}{by}; this pycap, {__version__}, reads versions 1 to {VERSION}: "
            "update it (pip install --upgrade pycap-captioning), or use the pycap that wrote the checkpoint"
        )
    return found
