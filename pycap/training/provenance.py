"""provenance.jsonl in a run's folder: for each start of the run, and each time it went on, with what, on what, and from where.

One JSON object a line, appended and synced before the first step; a run that is killed leaves at most the last line torn, and
the next start takes that away. Of all that is in a run's folder this file alone tells times and machines: two runs that are bit
for bit the same differ in it, and a run that was resumed has a line more (and in `images_per_s` and `waited` of log.jsonl).

An object's keys: `format`, `version`; `time` (of the start, UTC); `argv`, `cwd`; `seed`; `config`: all options; `step` and
`position`: from where the run goes on, 0 for a new one; `pycap`, `python`, `packages`, `machine`, `kernels`, `environment`: see
`pycap.provenance`, of rank 0; `micro_batch`: images a pass (0: all); `ranks`: how many, and `others`: in what each other rank
differs, by dotted key; `data`: its folders and `Source.digest`; `files`: what else the run reads, `init_from`, `vgg_weights`,
`features`, each with its place and what tells it from others; `weights`: SHA-256 of the weights with which the run began, or
goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pycap import config as configuration
from pycap import provenance
from pycap.config import TrainConfig
from pycap.data.disk import sync, writing
from pycap.device import cpu_count, to_host
from pycap.distributed import Ranks
from pycap.training.start import Start

NAME = "provenance.jsonl"
FORMAT, VERSION = "pycap-provenance", 1
_BLOCK = 16 << 20  # bytes


class ProvenanceError(ValueError):
    """A record that cannot be read; the text names file, line and remedy."""


def describe(
    config: TrainConfig, begun: Start, arrays: Mapping[str, Any], step: int, position: Mapping[str, int], ranks: Ranks
) -> dict[str, Any]:
    """The record of a run that is about to make the step after `step`, the same on all ranks, each of which calls this.

    config: the run's, with the micro-batch that fits; arrays: the model's.
    """
    own = {
        **provenance.software(),
        "machine": provenance.machine(),
        "kernels": provenance.kernels(),
        "environment": provenance.environment(),
    }
    first, *others = ranks.each(own)
    files: dict[str, Any] = {}
    if begun.saved is not None and not begun.resumed:
        files["init_from"] = {"path": str(begun.saved.folder.resolve()), "weights": weights_digest(begun.saved.model)}
    if begun.vgg is not None:
        files["vgg_weights"] = {"path": str(Path(begun.vgg.path).resolve()), "sha256": begun.vgg.sha256}
    if config.features not in ("none", "auto"):
        files["features"] = {"path": str(Path(config.features).resolve())}
    return {
        "format": FORMAT,
        "version": VERSION,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "seed": config.seed,
        "step": step,
        "position": dict(position),
        **first,
        "micro_batch": config.micro_batch,
        "ranks": {"size": ranks.size, "others": [_differing(first, other) for other in others]},
        "data": {
            "folders": [str(folder.resolve()) for folder in begun.source.folders],
            "digest": begun.source.digest(),
        },
        "files": files,
        "weights": weights_digest(arrays),
        "config": configuration.to_dict(begun.config),
    }


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Add a record to those of the run in `folder`, and have the system put it on the disk. WriteError where it cannot."""
    path = folder / NAME
    with writing(path), open(path, "ab+") as file:
        file.seek(0)
        held = file.read()
        if whole := len(held) - (held.rfind(b"\n") + 1):  # a start that was killed as it wrote
            file.truncate(len(held) - whole)
        file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of the run in `folder`, its first start's first; none where it was made by a pycap that kept none.

    Raises:
        ProvenanceError: names the line that is no record, or is of a newer pycap.
    """
    path = folder / NAME
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # behind the last line's end stands what a kill left of one
    return [_checked(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def _checked(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProvenanceError(
            f"{where} is no JSON ({error}): the record is damaged; take it from a copy of the run"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ProvenanceError(f"{where} is no record of a run (no format: {FORMAT}); take it from a copy of the run")
    if record.get("version") != VERSION:
        by = record["pycap"].get("version") if isinstance(record.get("pycap"), dict) else None
        raise ProvenanceError(
            f"{where} is of version {record.get('version')!r}, and this pycap reads version {VERSION}; use the pycap that "
            f"wrote it{f' ({by})' if by else ''}, or a newer one"
        )
    for name, kind in _KINDS.items():
        if not isinstance(record.get(name), kind):
            raise ProvenanceError(
                f"{where}: {name}: {record.get(name)!r} is not what a run writes there; take the record from a copy of the run"
            )
    return record


_KINDS = {
    "time": str, "argv": list, "cwd": str, "seed": int, "step": int, "position": dict, "pycap": dict, "python": str,
    "packages": dict, "machine": dict, "kernels": dict, "environment": dict, "micro_batch": int, "ranks": dict, "data": dict,
    "files": dict, "weights": str, "config": dict,
}  # fmt: skip


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record's values by dotted key."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What `other` has otherwise, by dotted key; None for what it lacks."""
    one, two = flat(first), flat(other)
    return {name: two.get(name) for name in (*one, *two) if one.get(name) != two.get(name)}


def weights_digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of arrays with their names, types and shapes, wherever they lie. It is made of hashes of their blocks, which as
    many threads make as there are CPUs."""
    told, blocks = hashlib.sha256(), []
    for name in sorted(arrays):
        array = to_host(arrays[name])
        told.update(f"{name} {array.dtype} {array.shape}\n".encode())
        raw = array.reshape(-1).view("u1") if array.flags.c_contiguous else array.tobytes()
        blocks += [raw[first : first + _BLOCK] for first in range(0, len(raw), _BLOCK)]
    with ThreadPoolExecutor(cpu_count()) as pool:
        for block in pool.map(lambda block: hashlib.sha256(block).digest(), blocks):
            told.update(block)
    return told.hexdigest()
