"""The smallest run that has all parts of a real one, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pycap.config import TrainConfig


def tiny(data: Path, out: Path, **options: object) -> TrainConfig:
    """A config that trains on `data` (a demo set of 64x64 images) in a second or two, on one thread (more wait for each
    other where the machine has other work); options: other than the defaults."""
    base: dict[str, object] = {
        "stage": "coco", "data": data, "out_dir": out, "cnn": "vgg_micro", "cnn_width": 0.25, "fc_size": 24,
        "image_size": 64, "resize": 64, "flip": False, "rnn_size": 24, "input_encoding_size": 16, "batch_size": 8,
        "word_count_threshold": 1, "epochs": 2, "log_every": 1, "learning_rate": 1e-3, "threads": 1, "workers": 1,
    }  # fmt: skip
    return TrainConfig(**(base | options))  # type: ignore[arg-type]


def lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON Lines."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """A run's log, of one kind: train, val, remark."""
    return [row for row in lines(run / "log.jsonl") if row["kind"] == kind]
