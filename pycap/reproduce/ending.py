"""The folders of two runs that have ended, compared: checkpoints' states, vocabulary, results, the page of samples."""

from __future__ import annotations

from pathlib import Path

from pycap import checkpoint
from pycap.reproduce.differences import compare_arrays, same
from pycap.training.provenance import flat

#: What a run's end leaves: captions, or what a classifier (stage pretrain) takes the held-out images for.
RESULTS = ("captions.jsonl", "predictions.jsonl")
#: Files of a run's folder that are the same bytes in two runs that are the same.
FILES = ("vocab.json", *RESULTS, "samples.html")


def compare_folders(then: Path, now: Path) -> list[str]:
    """In what the folders differ, a sentence each."""
    found = []
    for name in FILES:
        one, other = (folder / name for folder in (then, now))
        if one.is_file() != other.is_file():
            found.append(f"{name}: only in {then if one.is_file() else now}")
        elif one.is_file() and one.read_bytes() != other.read_bytes():
            found.append(f"{name}: {_first_line(one, other)}")
    for name in ("last", "best"):
        found += _compare_checkpoints(then / name, now / name, name)
    return found


def _first_line(one: Path, other: Path) -> str:
    lines, others = (path.read_text("utf-8", "replace").splitlines() for path in (one, other))
    number = next((i for i, pair in enumerate(zip(lines, others, strict=False), 1) if pair[0] != pair[1]), None)
    if number is None:
        return f"{len(lines)} lines then, {len(others)} now"
    differ = sum(a != b for a, b in zip(lines, others, strict=False)) + abs(len(lines) - len(others))
    return f"{differ} of {max(len(lines), len(others))} lines differ, first line {number}"


def _compare_checkpoints(then: Path, now: Path, name: str) -> list[str]:
    one, other = checkpoint.load(then), checkpoint.load(now)
    before, after = flat(one.state), flat(other.state)
    found = [
        f"{name}/state.json: {key} was {before.get(key)}, is {after.get(key)}"
        for key in dict.fromkeys((*before, *after))
        if key.startswith(("trainer.", "position.", "scores.")) and not same(before.get(key), after.get(key))
    ]
    for what, arrays, others in (("model", one.model, other.model), ("optimizer", one.optimizer, other.optimizer)):
        if differing := compare_arrays(arrays or {}, others or {}):
            found.append(f"{name}/{what}: {len(differing)} of {len(arrays or {})} arrays differ")
    return found
