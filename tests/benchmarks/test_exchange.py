"""The timing of sums between GPUs, on the stand-in for one."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks import exchange
from pycap import backends, device
from tests import cupy_nccl, cupy_standin


def test_a_row_for_each_bucket_and_one_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", cupy_nccl)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setenv("PYCAP_BACKEND", "reference")
    with backends.use("reference"):
        assert exchange.main(["--rounds", "2", "--cnn", "vgg_micro"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r" {2,}| (?=bucket|MB|ms|all|GB)", line.strip()) for line in lines]
    names = [row[1] for row in rows if row[0] == "bfloat16"]
    assert names == [*(f"bucket {n}" for n in range(1, len(names))), "all"] and len(rows) == 2 * len(names) > 4
    sizes = {(row[0], row[1]): float(row[2]) for row in rows}
    for (dtype, name), size in sizes.items():
        assert size == pytest.approx(sizes["float32", name] / (2 if dtype == "bfloat16" else 1), abs=0.1)
        assert name != "all" or size == pytest.approx(sum(s for (d, n), s in sizes.items() if d == dtype) / 2, abs=0.5)
