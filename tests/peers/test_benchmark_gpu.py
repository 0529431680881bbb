"""The GPU benchmarks rehearsed: pycap's kernels in Triton's interpreter and PyTorch's on the CPU come to the same results."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import gpu
from benchmarks.results import read

pytestmark = [pytest.mark.peers, pytest.mark.triton]

#: Relative L2 distance: rounding of each side's results, and of its factors where it rounds them.
ROUNDING = {"bfloat16": 5e-3, "tf32": 1e-5, "float32": 1e-5}


@pytest.mark.parametrize(
    "case", ["conv2d/conv4_3", "linear/", "softmax_xent/", "topk/", "lstm/", "embedding/", "pool/", "adam/"]
)
def test_both_sides_compute_the_same(case, tmp_path, capsys):
    path = tmp_path / "gpu.jsonl"
    assert gpu.main(["--rehearse", "--case", case, "--peers", "eager", "--json", str(path)]) == 0
    rows = [row for row in read(path) if row["peer"] == "torch eager"]
    assert rows
    for row in rows:
        name = f"{row['op']} {row['case']} {row['mode']} {row['dtype']}"
        assert row["err"] is not None and row["err"] <= ROUNDING[row["dtype"]], f"{name}: {row['err']} {row['note']}"
        assert not row["note"], f"{name}: {row['note']}"
        assert row["ratio"] > 0, name
    assert "TFLOP/s" in capsys.readouterr().out
