"""A checkpoint's folder: its files, where it stands while a save replaces it, and files read within a bound."""

from __future__ import annotations

from pathlib import Path

MODEL, OPTIMIZER, STATE, VOCAB, CONFIG, SUMS = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "vocab.json",
    "config.yaml",
    "SHA256SUMS",
)
#: The most bytes of each text: room for half a million words, and twenty times and more what states and options take. Parsed,
#: hostile JSON takes some 25 times its size.
LIMITS = {STATE: 1 << 20, VOCAB: 4 << 20, CONFIG: 64 << 10, SUMS: 1 << 10}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is absent, damaged, or of another model; the text names file and remedy."""


def find(path: str | Path, prefer: str = "best") -> Path:
    """The checkpoint folder that `load(path, prefer)` reads."""
    path = Path(path)
    others = [name for name in ("best", "last") if name != prefer]
    for folder in (path, path / prefer, *(path / name for name in others)):
        found = standing(folder)
        if found is not None:
            return found
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a checkpoint (runs/NAME/best) or a run (runs/NAME)")
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file; a checkpoint is a folder that holds {MODEL} and {STATE}")
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{path}: no checkpoint: neither {STATE} nor best/ or last/ in it (it holds {inside}); "
        "give a folder that training wrote"
    )


def siblings(folder: Path) -> tuple[Path, Path]:
    """Where a checkpoint is written, and where the one before it waits to be deleted."""
    return folder.with_name(f".{folder.name}.pycap-new"), folder.with_name(f".{folder.name}.pycap-old")


def standing(folder: Path) -> Path | None:
    """`folder` if it is a checkpoint, else the whole one that an interrupted save left beside it, else None.

    Between the renames of `save` the folder is absent and both siblings are whole, the temporary one being newer.
    """
    if _is_checkpoint(folder):
        return folder
    temporary, old = siblings(folder)
    if not folder.exists() and _is_checkpoint(old):
        return temporary if _is_checkpoint(temporary) else old
    return folder if _is_checkpoint(folder) else None  # again: a save may just have moved it in


def _is_checkpoint(folder: Path) -> bool:
    return (folder / STATE).exists() or (folder / MODEL).exists()


def require(path: Path) -> None:
    """CheckpointError unless `path` is a file that is not empty, and no larger than what a checkpoint has by that name."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, use another one of the run")
    size, most = path.stat().st_size, LIMITS.get(path.name)
    if size == 0:
        raise CheckpointError(f"{path}: zero bytes; the checkpoint is damaged, use another one of the run")
    if most is not None and size > most:
        raise CheckpointError(
            f"{path}: {size} bytes, and no more than {most} are read; the checkpoint is damaged, use another one of the run"
        )


def contents(path: Path) -> bytes:
    """The bytes of one of the files in `LIMITS`. CheckpointError as `require`."""
    require(path)
    with open(path, "rb") as file:
        return file.read(LIMITS[path.name] + 1)
