"""Tiny checkpoints for tests: saved, read back whole, as version 1 wrote them, and vouched for after a test changed them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pycap import checkpoint
from pycap.config import TrainConfig, to_yaml
from pycap.data.vocab import Vocabulary

VOCAB = Vocabulary(["a", "dog", "runs"], threshold=2)
PREPROCESS = {"size": 64, "mean": [0.485, 0.456, 0.406], "resize": "squash"}
#: In the order of SHA256SUMS, which stands beside them.
LISTED = ("config.yaml", "model.safetensors", "optimizer.safetensors", "state.json", "vocab.json")
FILES = ("SHA256SUMS", *LISTED)


def arrays(number: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(number))
    return {
        "cnn.conv1.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "lm.embed.weight": np.full((7, 5), number, np.float32),
        "lm.bias": rng.standard_normal(5),
        "empty": np.zeros((0, 4), np.float32),
    }


def parts(number: float) -> dict[str, Any]:
    """What a save of this number is given."""
    return {
        "model": arrays(number),
        "optimizer": {"lm.bias.m": np.full(5, number), "lm.bias.step": np.array(int(number), np.int64)},
        "state": {"iteration": number, "rng": {"state": 2**127 + 3}, "best": 0.1 + 0.2},
        "vocab": VOCAB,
        "config": TrainConfig(stage="coco", learning_rate=1e-5, seed=int(number)),
        "preprocess": PREPROCESS,
    }


def save(folder: Path, number: float, **changes: Any) -> None:
    checkpoint.save(folder, **{**parts(number), **changes})


def whole(path: Path, prefer: str = "best") -> float:
    """Load, check that every part is of the same save, and give its number."""
    found = checkpoint.load(path, prefer)
    number = found.state["iteration"]
    for name, array in arrays(number).items():
        np.testing.assert_array_equal(found.model[name], array)
    assert found.optimizer is not None and (found.optimizer["lm.bias.m"] == number).all()
    assert found.config.seed == int(number) and len(found.vocab) == len(VOCAB)
    return number


def save_version_1(folder: Path, number: float, save_id: str = "18c-2a") -> None:
    """What pycap wrote before checkpoints had checksums."""
    given = parts(number)
    folder.mkdir(parents=True)
    for name in ("model", "optimizer"):
        save_file(given[name], folder / f"{name}.safetensors", metadata={"save_id": save_id})
    header = {"format": "pycap-checkpoint", "version": 1, "save_id": save_id}
    (folder / "state.json").write_text(json.dumps({**header, "state": given["state"]}, indent=1))
    (folder / "config.yaml").write_text(to_yaml(given["config"], {"preprocess": PREPROCESS}) + "...\n")
    VOCAB.save(folder / "vocab.json")


def vouch(folder: Path) -> None:
    """Make SHA256SUMS for the files as they are now, as `sha256sum config.yaml ... > SHA256SUMS` would."""
    present = [name for name in LISTED if (folder / name).exists()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in present]
    (folder / "SHA256SUMS").write_text("".join(lines))
