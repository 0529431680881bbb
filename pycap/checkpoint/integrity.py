"""Checksums: SHA-256 of each file in SHA256SUMS, as sha256sum writes it, and of each tensor in the header of its file.

What the list says is compared with whole files, so that every byte of the folder counts; those of tensors then say which one
is damaged. Checksums tell of accidents: who may write the folder can make others.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pycap.checkpoint.layout import CONFIG, MODEL, OPTIMIZER, STATE, SUMS, VOCAB, CheckpointError, contents
from pycap.tensorfile import TensorFileError, arrays_of, bytes_of, little_endian, map_file, shown

#: A checkpoint's files that have a line in SHA256SUMS, in its order; the optimiser's only where there is one.
LISTED = (CONFIG, MODEL, OPTIMIZER, STATE, VOCAB)
_LINE = re.compile(r"([0-9a-f]{64})  ([a-z.]+)\n")
_PREFIX = "sha256:"  # of a tensor's name, in the metadata of its file
_REMEDY = "use another checkpoint of the run, or copy this one again"
_THREADS = 4  # SHA-256 frees Python's lock; more would wait for memory
# Digests of different bytes agree in some 4 of 64 digits. One that differs in a few only was itself damaged.
_DAMAGED_DIGITS = 16


def sums_text(digests: Mapping[str, str]) -> str:
    """SHA256SUMS of files by name, which `sha256sum -c` reads."""
    return "".join(f"{digests[name]}  {name}\n" for name in LISTED if name in digests)


def read_sums(folder: Path) -> dict[str, str] | None:
    """SHA-256 by file name, as SHA256SUMS has them; None without such a file.

    CheckpointError where it is not, to the byte, as it was written: other files, another order, capital letters.
    """
    path = folder / SUMS
    if not path.exists():
        return None
    text = contents(path).decode("ascii", "replace")
    digests = {name: digest for digest, name in _LINE.findall(text)}
    lacks = [name for name in LISTED if name not in digests and name != OPTIMIZER]
    if sums_text(digests) != text or lacks:
        why = f"no line of {lacks[0]}" if lacks else "not as sha256sum writes it, a line a file, in the files' order"
        raise CheckpointError(f"{path}: damaged ({why}); {_REMEDY}")
    return digests


def check_listed(folder: Path, sums: Mapping[str, str]) -> None:
    """CheckpointError where the folder holds an optimiser's state that SHA256SUMS does not know."""
    if OPTIMIZER not in sums and (folder / OPTIMIZER).exists():
        raise CheckpointError(
            f"{folder / OPTIMIZER}: not in {SUMS}, so of another save, or {SUMS} is damaged; {_REMEDY}"
        )


def check(path: Path, data: bytes | mmap.mmap, sums: Mapping[str, str], save_id: str | None = None) -> None:
    """Compare a file's bytes with its line.

    save_id: of the save that the folder is of, for safetensors. CheckpointError names the file, and of safetensors the
    tensors that are damaged.
    """
    found, noted = hashlib.sha256(data).hexdigest(), sums[path.name]
    if found == noted:
        return
    if _nearly(found, noted):
        raise CheckpointError(
            f"{path.with_name(SUMS)}: damaged: it has SHA-256 {noted} for {path.name}, whose own is {found}; {_REMEDY}"
        )
    if isinstance(data, mmap.mmap):
        raise CheckpointError(f"{path}: {_what_is_damaged(data, save_id)}; {_REMEDY}")
    raise CheckpointError(
        f"{path}: damaged: its bytes are not those that were saved (SHA-256 {found[:16]}..., and {SUMS} has {noted[:16]}...); "
        f"{_REMEDY}"
    )


def tensor_digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What a file's metadata says of its tensors: "sha256:NAME" to the SHA-256 of the bytes that are stored."""

    def hashed(array: np.ndarray) -> str:
        return hashlib.sha256(bytes_of(little_endian(array))).hexdigest()

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        return dict(zip((_PREFIX + name for name in arrays), threads.map(hashed, arrays.values()), strict=True))


def has_tensor_digests(metadata: Mapping[str, str]) -> bool:
    """Whether a file says of any tensor what its bytes are."""
    return any(name.startswith(_PREFIX) for name in metadata)


def sha256(path: Path, sums: Mapping[str, str] | None) -> str:
    """Hexadecimal SHA-256 of one of a folder's files: as its list has it, or, where there is none, of its bytes."""
    if sums is not None:
        return sums[path.name]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_back(folder: Path, sums: Mapping[str, str]) -> None:
    """Read a folder that was just written, and compare it with the checksums of what was in memory. CheckpointError."""
    for name in sums:
        path = folder / name
        check(path, map_file(path) if path.suffix == ".safetensors" else path.read_bytes(), sums)
    if read_sums(folder) != sums:
        raise CheckpointError(f"{folder / SUMS}: reads otherwise than it was written")


def _nearly(found: str, noted: str) -> bool:
    return sum(a != b for a, b in zip(found, noted, strict=True)) <= _DAMAGED_DIGITS


def _what_is_damaged(data: mmap.mmap, save_id: str | None) -> str:
    """Of a safetensors file that is not as it was saved: what of it."""
    try:
        arrays, metadata = arrays_of(data)
    except TensorFileError as error:
        return f"truncated or damaged ({error})"
    if save_id is not None and metadata.get("save_id") != save_id:
        return f"of another save than {STATE} beside it (files of two checkpoints mixed)"
    now = tensor_digests(arrays)
    damaged = [
        name
        for name, found in now.items()
        if len(metadata.get(name, "")) == len(found) and not _nearly(found, metadata[name])
    ]
    if not damaged:
        return "its header is damaged: it is not as it was saved, and the tensors are"
    names = ", ".join(shown(name.removeprefix(_PREFIX)) for name in damaged[:5])
    if len(damaged) == 1:
        return f"tensor {names} is damaged: its bytes are not those that were saved"
    more = f", and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    return f"tensors {names}{more} are damaged: their bytes are not those that were saved"
