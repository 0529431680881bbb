"""A drawn data set's folder: made beside its place and renamed into it, kept while whole, never put over anything else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pycap.data import DataError


def ensure(
    folder: Path,
    manifest: str,
    wanted: dict[str, Any],
    build: Callable[[Path], None],
    *,
    whole: Callable[[Path], bool],
    ours: Callable[[set[str]], bool],
) -> Path:
    """Have `folder` hold the set that `wanted` identifies, and return it; do nothing where it stands there already.

    manifest: the file in the folder that holds `wanted`, written last. build: fills an empty folder. whole: whether nothing of
    a set whose manifest is right has gone. ours: whether a folder with these names in it is a drawn set, which may be
    replaced. What an interrupted call left is cleared away; concurrent calls wait for each other. Raises DataError where
    the folder holds something else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent):
        if _read(folder / manifest) == wanted and whole(folder):
            return folder
        if folder.exists() and not (folder.is_dir() and _replaceable(set(os.listdir(folder)), ours)):
            raise DataError(f"{folder} holds something that is no demo set; name another folder or remove it")
        building, outdated = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "outdated"))
        for leftover in (building, outdated):
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            building.mkdir()
            build(building)
            (building / manifest).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(outdated)
            building.rename(folder)
        finally:
            for leftover in (building, outdated):
                shutil.rmtree(leftover, ignore_errors=True)
    return folder


def _replaceable(names: set[str], ours: Callable[[set[str]], bool]) -> bool:
    return not names or ours(names)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # none, or cut off: then this is no finished set, which is all that the caller asks


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Hold a lock on the parent folder, which ends with the process even if that is killed."""
    handle = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
