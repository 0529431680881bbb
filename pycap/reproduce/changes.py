"""What is otherwise now than it was when a run was made, and whether the bits of its results depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycap.training.provenance import flat

#: What is compared: its name in words, and whether bits depend on it. Of several beginnings the longest counts.
#: "rounding": sums may be made in another order, so that results differ by their rounding. "yes": results may be others.
#: "no": shown because a person may want to know.
_MATTERS: dict[str, tuple[str, str]] = {
    "config": ("option", "yes"),
    "seed": ("seed", "yes"),
    "pycap.version": ("pycap", "yes"),
    "pycap.commit": ("commit", "no"),  # its files say whether that matters
    "pycap.dirty": ("checkout changed", "no"),
    "pycap.sources": ("pycap's sources", "yes"),
    "pycap.compiled": ("compiled kernels", "rounding"),
    "python": ("Python", "no"),
    "packages": ("package", "no"),
    "packages.numpy": ("package", "yes"),  # draws the initial weights and the order of images
    "packages.scipy-openblas32": ("package", "rounding"),
    "packages.pillow": ("package", "yes"),
    "packages.libjpeg": ("package", "yes"),
    "packages.libjpeg-turbo": ("package", "yes"),
    "packages.cupy": ("package", "rounding"),
    "packages.triton": ("package", "rounding"),
    "machine.cpu": ("CPU", "rounding"),  # OpenBLAS chooses its kernels by it
    "machine.features": ("instruction sets", "rounding"),
    "machine.gpu": ("GPU", "rounding"),
    "machine.driver": ("driver", "no"),
    "kernels": ("kernels", "rounding"),
    "kernels.device": ("device", "rounding"),
    "kernels.threads": ("threads", "rounding"),
    "kernels.isa": ("instruction set", "rounding"),
    "kernels.bf16": ("unit for bfloat16", "rounding"),
    "environment": ("environment", "no"),  # what it decides stands among the kernels
    "micro_batch": ("images a pass", "rounding"),
    "ranks": ("ranks", "rounding"),
    "data.digest": ("data", "yes"),
    "files": ("weights read", "yes"),
    "weights": ("initial weights", "yes"),
}
#: Not compared: when and where, what has its own line, and what nothing depends on.
_LEFT_OUT = (
    "format", "version", "time", "argv", "cwd", "step", "position", "data.folders", "machine", "environment.PYCAP_CACHE",
    "files.init_from.path", "files.vgg_weights.path", "files.features.path",
    *(f"config.{name}" for name in ("out_dir", "resume", "init_from", "data", "store", "workers", "save_checkpoint_every")),
    "config.threads", "config.device", "config.backend", "config.micro_batch", "config.picks", "config.vgg_weights",
    "config.features",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """matters: to bits, "yes", "rounding" or "no". then, now: None where it was, or is, not there."""

    what: str
    then: Any
    now: Any
    matters: str


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What two records of `pycap.training.provenance` tell otherwise, what matters most first."""
    before, after = flat(then), flat(now)
    found = []
    for name in dict.fromkeys((*before, *after)):
        known = _known(name)
        if known is not None and before.get(name) != after.get(name):
            what, matters = known
            detail = name.partition(".")[2]
            what = (
                f"{what} {detail}"
                if detail and what in ("option", "package", "kernels", "environment", "weights read")
                else what
            )
            found.append(Change(what, before.get(name), after.get(name), matters))
    return sorted(found, key=lambda change: ("yes", "rounding", "no").index(change.matters))


def _known(name: str) -> tuple[str, str] | None:
    """What is to be said of a dotted name, by the longest entry that it is, or lies in."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in _LEFT_OUT:
            return None
        if prefix in _MATTERS:
            return _MATTERS[prefix]
    return None


def table(found: list[Change]) -> list[str]:
    """Lines for people: what, then, now, and whether bits depend on it."""
    rows = [("", "then", "now", "do bits depend on it?")]
    rows += [(change.what, _short(change.then), _short(change.now), _WORDS[change.matters]) for change in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]


_WORDS = {"yes": "yes", "rounding": "by their rounding", "no": "no"}


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 44 else f"{text[:41]}..."
