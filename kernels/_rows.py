"""Rows of the configuration table: block sizes for a kernel on an architecture, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration of a kernel.

    blocks: its compile-time constants (block sizes). warps: of 32 threads, a program. stages: of the software pipeline.
    types: the element types (of the type variable T) that it is for; empty: any. upto: it is for sizes up to these, by
    the names that the caller of `choose` gives. ctas: blocks of a cluster.
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


def rows(table: Table, kernel: str, arch: str) -> tuple[Row, ...]:
    """The rows of a kernel on an architecture ("sm_90", "interpreter"), in the order they are tried.

    Raises KeyError where the table has none, naming both.
    """
    of_kernel = table.get(kernel, {})
    found = of_kernel.get(arch) or of_kernel.get(FALLBACK.get(arch, "sm_80") if arch != "interpreter" else "")
    if not found:
        raise KeyError(f"kernels/configs.py has no row for {kernel} on {arch}; it has some for {', '.join(of_kernel)}")
    return found


def choose(table: Table, kernel: str, arch: str, element: str, **sizes: int) -> Row:
    """The first row for elements of this type and arrays of these sizes. KeyError where there is none."""
    for row in rows(table, kernel, arch):
        if row.serves(element, sizes):
            return row
    raise KeyError(f"kernels/configs.py has no row for {kernel} on {arch} with {element} and {sizes}")
