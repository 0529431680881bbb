"""The runs that are killed: their options and data, and what two of them must have alike, bit for bit."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from PIL import Image
from safetensors import safe_open

from pycap import checkpoint
from pycap.data import demo

#: Of every run: `tests.train.runs.tiny` as options of the command line, with a checkpoint every other step.
COMMON = {
    "stage": "coco", "out-dir": "run", "cnn": "vgg_micro", "cnn-width": 0.25, "fc-size": 24, "image-size": 64, "resize": 64,
    "flip": "false", "rnn-size": 24, "input-encoding-size": 16, "batch-size": 8, "word-count-threshold": 1, "log-every": 1,
    "learning-rate": 1e-3, "threads": 1, "workers": 1, "device": "cpu", "save-checkpoint-every": 2,
}  # fmt: skip

#: Name -> what differs. Images are mirrored and words dropped at random; epochs of 3 steps; one image cannot be decoded.
RUNS: dict[str, dict[str, object]] = {
    "joint": {"epochs": 5, "flip": "true", "lr-schedule": "plateau", "plateau-patience": 1, "early-stop": 2,
              "learning-rate": 0.02, "cnn-learning-rate": 0.01, "val-every": 1},
    "stopped": {"epochs": 3, "max-steps": 7, "optimizer": "rmsprop", "lr-schedule": "cosine", "pretrain-words": 1},
    "features": {"epochs": 3, "features": "auto", "freeze-cnn": "true", "drop-prob-lm": 0.5},
    "merge": {"epochs": 2, "model": "merge", "finetune-cnn-after": 1},
    "scst": {"stage": "scst", "epochs": 1, "max-steps": 4, "datasets": "coco"},
    "pretrain": {"stage": "pretrain", "epochs": 3, "flip": "true", "save-best-on": "top-1"},
    "wild": {"epochs": 2, "learning-rate": 10},  # its loss jumps, which is told once
}  # fmt: skip
#: Trained by two processes, started with mpirun.
RANKS = "ranks"
#: Of the rows of a log, what is measured by a clock.
MEASURED = ("images_per_s", "waited")
#: Files that say of each start when and where it was; and checksums, which `checkpoint.load` compares: of ids of saves, too.
OF_THE_START = ("provenance.jsonl", checkpoint.SUMS)


def make_data(folder: Path) -> Path:
    """A demo set of 24 + 10 images, one of which cannot be decoded."""
    demo.generate(folder, train=24, val=10, size=64)
    victim = sorted((folder / "train2017").iterdir())[4]
    victim.write_bytes(victim.read_bytes()[:100])
    return folder


def make_classes(folder: Path) -> Path:
    """Noise around a colour for each of 3 classes, 8 + 3 images of each; one cannot be decoded."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, colour in (("red", (220, 40, 40)), ("green", (40, 220, 40)), ("blue", (40, 40, 220))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 60, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    victim = folder / "train" / "green" / "4.png"
    victim.write_bytes(victim.read_bytes()[:100])
    return folder


def options(name: str, data: Path, base: Path | None = None) -> list[str]:
    """The command line of a run. data: of `make_data`, for the stage pretrain of `make_classes`. base: a captioner that `scst`
    starts from."""
    own: dict[str, object] = {**COMMON, **(RUNS[name] if name != RANKS else {"epochs": 3}), "data": data}
    if base is not None:
        own["init-from"] = base
    return [text for key, value in own.items() for text in (f"--{key}", str(value))]


def is_resumable(run: Path) -> bool:
    try:
        return checkpoint.load(run, prefer="last").optimizer is not None
    except checkpoint.CheckpointError:
        return False


def differences(run: Path, reference: Path) -> list[str]:
    """What is not alike in two runs' folders; empty where nothing differs by a bit.

    Weights and the optimiser's state by their bytes, logs row by row, the other files by their bytes; not times and rates, ids
    of saves, and the note that a run was resumed.
    """
    found = []
    ours, theirs = ({str(p.relative_to(r)) for p in r.rglob("*")} for r in (run, reference))
    ours.discard("features.h5.corrupt")  # kept aside by intention
    found += [f"{name}: only in {run.name}" for name in sorted(ours - theirs)]
    found += [f"{name}: missing" for name in sorted(theirs - ours)]
    for name in sorted(ours & theirs):
        file, expected = run / name, reference / name
        if file.is_dir():
            continue
        if file.name in OF_THE_START:
            continue
        form = _state if file.name == "state.json" else _FORMS.get(file.suffix, Path.read_bytes)
        if form(file) != form(expected):
            found.append(f"{name}: {_first(form(file), form(expected))}")
    for name in ("best", "last"):
        checkpoint.load(run / name)  # raises where it is not whole
    return found


def _arrays(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


def _log(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def _state(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_text("utf-8"))
    body.pop("save_id")
    return body


def _config(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    body.update(resume=None, init_from=None)  # a resumed run does not start from other weights again
    return body


def _vectors(path: Path) -> list[tuple[bytes, bytes]]:
    """Of a file of features, in the order of their keys: a kill leaves rows that are made again behind the others."""
    with h5py.File(path, "r") as file:
        rows = zip(file["index"], file["data"], strict=False)
        return sorted((row["key"].tobytes(), v.tobytes()) for row, v in rows if zlib.crc32(v.data) == row["crc"])


_FORMS: dict[str, Any] = {".safetensors": _arrays, ".jsonl": _log, ".yaml": _config, ".h5": _vectors}


def _first(ours: Any, theirs: Any) -> str:
    """Where two values differ first."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
        return f"{key}: {_first(ours.get(key), theirs.get(key))}"
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return f"{len(ours)} rows, not {len(theirs)}"
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        return f"row {at}: {_first(ours[at], theirs[at])}"
    return re.sub(r"\s+", " ", f"{str(ours)[:80]}, not {str(theirs)[:80]}")
