"""A whole run on the GPU backend's kernels, in Triton's interpreter: trained, validated, captioned, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pycap
from pycap import backends, config
from tests.train.runs import tiny

pytestmark = [pytest.mark.triton, pytest.mark.slow]
SMALL = {"val_images_use": 2, "beam_size": 1, "batch_size": 4}


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("val_loss")) for row in rows]


def test_a_run_gives_the_references_losses(data: Path, tmp_path: Path) -> None:
    for backend in ("reference", "triton"):
        with backends.use(backend):
            pycap.train(tiny(data, tmp_path / backend, device="cpu", backend=backend, max_steps=1, **SMALL))
    assert losses(tmp_path / "triton") == pytest.approx(losses(tmp_path / "reference"), rel=1e-4)
    pycap.train(config.resumed(tmp_path / "triton", max_steps=2))
    rows = losses(tmp_path / "triton")
    assert len(rows) > len(losses(tmp_path / "reference")) and all(0 < loss < 10 for loss in rows)
