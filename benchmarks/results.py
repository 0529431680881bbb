"""Rows of results: their keys, and how they are written and read (JSON Lines while measuring, CSV beside it)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Of every row, in this order; a key that has no value is null. Times in seconds. ratio: peer_median_s / median_s.
#: gflops: of the plain algorithm; gbps: GB/s of compulsory traffic; ceiling_pct: the least time that the measured
#: ceilings allow the plain algorithm, per cent of median_s (an algorithm with fewer multiplications may pass 100). err:
#: relative L2 distance from the peer's result. ceilings: FLOP/s of a gemm by dtype, and bytes/s of a copy (as copy), that
#: the run measured. form: of the LSTM's recurrence, by the names of kernels/configs.py; step_us, peer_step_us: microseconds
#: that each further step takes, step_ratio: peer_step_us / step_us (benchmarks/gpu_lstm.py). Of whole steps on a GPU
#: (benchmarks/peers/joint_gpu.py): images_per_s (of captions: captions/s), device_mib: memory of the GPU that the process
#: takes, joules: of the whole GPU, an image; stall_pct: how much of a step's time goes when batches lie in memory already.
#: note: why something is missing.
KEYS = (
    "op",
    "case",
    "mode",
    "dtype",
    "backend",
    "peer",
    "median_s",
    "q20_s",
    "q80_s",
    "peer_median_s",
    "ratio",
    "gflops",
    "gbps",
    "ceiling_pct",
    "err",
    "commit",
    "hardware",
    "versions",
    "peer_q20_s",
    "peer_q80_s",
    "peer_variant",
    "calls",
    "peer_calls",
    "peak_mib",
    "peer_peak_mib",
    "flops",
    "bytes",
    "ceilings",
    "form",
    "step_us",
    "peer_step_us",
    "step_ratio",
    "peer_ceiling_pct",
    "images_per_s",
    "peer_images_per_s",
    "device_mib",
    "peer_device_mib",
    "joules",
    "peer_joules",
    "stall_pct",
    "peer_stall_pct",
    "label",
    "note",
)


class Writer:
    """Appends each row to FILE.jsonl as it comes, so that an interrupted run keeps what it has; `close` writes FILE.csv.

    path: either file's name. An earlier file of the name is replaced at the first row.
    """

    def __init__(self, path: Path) -> None:
        self.jsonl, self.csv = path.with_suffix(".jsonl"), path.with_suffix(".csv")
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Write a row. ValueError for a key that no row has."""
        unknown = row.keys() - set(KEYS)
        if unknown:
            raise ValueError(f"a result's row has no key {', '.join(sorted(unknown))}; results.KEYS lists them")
        complete = {key: row.get(key) for key in KEYS}
        self.jsonl.parent.mkdir(parents=True, exist_ok=True)
        with self.jsonl.open("a" if self.rows else "w", encoding="utf-8") as file:
            file.write(json.dumps(complete) + "\n")
        self.rows.append(complete)

    def close(self) -> None:
        """Write the CSV, if there is a row."""
        if self.rows:
            write_csv(self.csv, self.rows)


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """The rows with the same keys as columns; dictionaries become JSON, null an empty field."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, KEYS)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()})


def read(path: Path) -> list[Row]:
    """The rows of a .jsonl file. ValueError names a line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: no row of results ({error})") from error
        rows.append(row)
    return rows
