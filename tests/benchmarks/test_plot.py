"""The picture names every side and work, fits into a README, and says when there is nothing to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install -e '.[plots]' installs it")

from benchmarks import plot
from benchmarks.cases import registry, select
from benchmarks.measure import rates

CEILINGS = {"float32": 360e9, "bfloat16": 2.1e12, "copy": 26e9}


def rows() -> list[dict[str, Any]]:
    """The headline's rows with invented times; the last peer of each case has none."""
    made = []
    for i, case in enumerate(select(registry(), headline=True)):
        ours = (case.flops or 1e11) / 7e11
        for k, peer in enumerate(case.peers):
            theirs = None if len(case.peers) > 1 and k == len(case.peers) - 1 else ours * (0.7 + 0.3 * i + k)
            made.append(
                {
                    "op": case.op,
                    "case": case.name,
                    "mode": case.mode,
                    "dtype": case.dtype,
                    "label": case.label,
                    "peer": f"{peer} 1.0",
                    "median_s": ours,
                    "peer_median_s": theirs,
                    "ratio": theirs and theirs / ours,
                    "flops": case.flops,
                    "bytes": case.nbytes,
                    "ceilings": CEILINGS,
                    "hardware": "a CPU, 2 threads",
                    "gflops": None,
                    **rates(case, ours, CEILINGS),
                }
            )
    return made


def test_the_picture_shows_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "picture.svg"
    plot.draw(rows(), file)
    text = file.read_text("utf-8")
    assert len(text) < 200_000
    for row in rows():
        assert row["label"] in text
    assert all(name in text for name in ("PyTorch", "ONNX Runtime", "OpenVINO", "0.70x", "sgemm", "copy: 26 GB/s"))
    assert "ncnn" not in text, "it has no time"
    assert "a CPU, 2 threads" in text


def test_a_png_too(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    plot.draw(rows()[:1], file)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size < 200_000


def test_rows_without_labels_are_named_by_their_case(tmp_path: Path) -> None:
    file = tmp_path / "picture.svg"
    plot.draw([{**rows()[0], "label": ""}], file)
    assert "vgg16 b1 forward float32" in file.read_text("utf-8")


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.draw([{**rows()[0], "ratio": None}], tmp_path / "picture.svg")
