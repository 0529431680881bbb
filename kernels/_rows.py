"""Rows of the configuration table: block sizes for a kernel on an architecture, and the choice among them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration of a kernel.

    blocks: its compile-time constants (block sizes). warps: of 32 threads, a program. stages: of the software pipeline.
    types: the element types (of the type variable T) that it is for; empty: any. upto: it is for sizes up to these, by
    the names that the caller of `choose` gives; {"odd": 0}: only where the kernel's form for aligned arrays serves, which
    larger blocks fit.
    """

    blocks: dict[str, int | bool | str]
    warps: int = 4
    stages: int = 3
    types: tuple[str, ...] = ()
    upto: dict[str, int] = field(default_factory=dict)

    def serves(self, element: str, sizes: dict[str, int]) -> bool:
        """Whether it is for elements of this type and arrays of these sizes."""
        return (not self.types or element in self.types) and all(sizes[k] <= most for k, most in self.upto.items())


Table = dict[str, dict[str, tuple[Row, ...]]]

#: Where an architecture has no rows of its own, whose it takes. Machine code for sm_80 runs on every sm_8x, so the rows
#: for sm_80 stay within 99 KB of shared memory, which is what sm_86 and sm_89 have.
FALLBACK = {
    "sm_90": "sm_80",
    "sm_100": "sm_80",
    "sm_103": "sm_80",
    "sm_120": "sm_80",
    "sm_86": "sm_80",
    "sm_89": "sm_80",
}


def find(table: Table, kernel: str, arch: str) -> tuple[Row, ...]:
    """The rows of a kernel on an architecture ("sm_90", "interpreter"), in the order they are tried; () for none."""
    of_kernel = table.get(kernel, {})
    return of_kernel.get(arch) or of_kernel.get(FALLBACK.get(arch, "sm_80") if arch != "interpreter" else "") or ()


def choose(table: Table, kernel: str, arch: str, element: str, **sizes: int) -> Row:
    """The first row for elements of this type and arrays of these sizes. KeyError where there is none."""
    for row in find(table, kernel, arch):
        if row.serves(element, sizes):
            return row
    raise KeyError(
        f"kernels/configs.py has no row for {kernel} on {arch} with {element} and {sizes}; "
        f"it has some for {', '.join(table.get(kernel, {}))}"
    )


#: What `python -m benchmarks.tune` measured: rows that stand in place of those that arithmetic chose.
TUNED = Path(__file__).with_name("tuned.json")


def tuned(path: Path = TUNED) -> Table:
    """The rows in a file that `write_tuned` wrote; none where there is no file."""
    if not path.is_file():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        kernel: {arch: tuple(_from_json(row) for row in entry["rows"]) for arch, entry in by_arch.items()}
        for kernel, by_arch in entries.items()
    }


def write_tuned(kernel: str, arch: str, rows: Iterable[Row], about: dict[str, Any], path: Path = TUNED) -> None:
    """Put a kernel's rows for an architecture into the file, whole or not at all. about: hardware, commit, versions."""
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entries.setdefault(kernel, {})[arch] = {**about, "rows": [_to_json(row) for row in rows]}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def _to_json(row: Row) -> dict[str, Any]:
    return {
        "blocks": row.blocks, "warps": row.warps, "stages": row.stages, "types": list(row.types), "upto": row.upto,
    }  # fmt: skip


def _from_json(entry: dict[str, Any]) -> Row:
    return Row(entry["blocks"], entry["warps"], entry["stages"], tuple(entry["types"]), entry["upto"])
