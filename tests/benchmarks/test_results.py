"""Rows survive the way to disk and back, in both forms, whatever interrupts the run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmarks.results import KEYS, Writer, read


def test_rows_are_on_disk_as_soon_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    writer = Writer(file)
    writer.add({"op": "conv2d", "ratio": 2.5, "versions": {"python": "3.11"}})
    assert read(file)[0]["ratio"] == 2.5, "before close"
    writer.add({"op": "lstm"})
    writer.close()
    first, second = read(file)
    assert list(first) == list(KEYS) == list(second)
    assert first["versions"] == {"python": "3.11"} and second["ratio"] is None
    with file.with_suffix(".csv").open(newline="", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert [row["op"] for row in table] == ["conv2d", "lstm"]
    assert json.loads(table[0]["versions"]) == {"python": "3.11"}
    assert table[1]["ratio"] == ""


def test_the_first_keys_are_those_that_every_benchmark_shares() -> None:
    shared = "op case mode dtype backend peer median_s q20_s q80_s peer_median_s ratio gflops gbps ceiling_pct err"
    assert KEYS[:18] == (*shared.split(), "commit", "hardware", "versions")


def test_an_earlier_file_is_replaced_by_the_first_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for op in ("conv2d", "lstm"):
        Writer(file).close()
        writer = Writer(file)
        writer.add({"op": op})
    assert [row["op"] for row in read(file)] == ["lstm"]
    assert not file.with_suffix(".csv").exists()


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="meidan_s"):
        Writer(tmp_path / "rows.jsonl").add({"meidan_s": 1.0})


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"op": "conv2d"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read(file)
