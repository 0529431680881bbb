"""Room on the disks: what is free where a run writes and reads, what it needs there, and what these disks are."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycap.doctor.rows import row

if TYPE_CHECKING:
    from pycap.config import TrainConfig

#: Images of the public data sets, which a run is told to read before anybody has looked what is there.
IMAGES = {"coco": 123_287, "coco_all": 123_287, "flickr8k": 8_000, "flickr30k": 31_783, "imageclef": 2_000,
          "picks": 1_000, "pretrain": 1_331_167}  # fmt: skip
_STATE = 4 << 20  # of a checkpoint: vocabulary, configuration, headers
_LOG = 64 << 20  # log, samples, captions
_STORED = 0.6  # bytes a pixel of a stored image: 0.56 on 160 photographs of COCO
_INODES = 1000  # files that should be free; a run makes some thirty
_IN_MEMORY = ("tmpfs", "ramfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "afs")
_MOUNTS = Path("/proc/self/mountinfo")


def places(config: TrainConfig | None = None) -> list[dict[str, Any]]:
    """Where a run writes and reads, plain JSON values: for, path, free_bytes, total_bytes, free_inodes (None where the file
    system counts none), kind (of the file system), writable (whether a run may write there)."""
    out = config.run_dir if config else Path("runs")
    found = [("run", out)]
    if config is not None and config.store not in ("auto", "none"):
        found.append(("store", Path(config.store)))
    if config is not None and config.features not in ("auto", "none"):
        found.append(("features", Path(config.features)))
    found += [("data", (config.data if config else None) or Path("data")), ("cache", cache())]
    return [_place(name, path) for name, path in found]


def cache() -> Path:
    """Where compiled kernels of GPUs are kept (docs/env.md)."""
    own = os.environ.get("PYCAP_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pycap"


def needs(config: TrainConfig, vocabulary: int) -> dict[str, int]:
    """Bytes that a run needs in its folder, by what for. checkpoint: of `last`, which has the optimiser's state. checkpoints:
    of the moment when most are there: `best`, `last`, and the new `last` before it takes the other's place."""
    from pycap.training import plan

    weights, optimizer = plan.saved_bytes(config, vocabulary)
    checkpoint = weights + optimizer + _STATE
    images = _images(config)
    side = config.resize_to
    stored = round(images * side * side * _STORED) if _stores(config, images) else 0
    features = images * config.fc_size * 4 if config.features != "none" else 0
    return {
        "checkpoint": checkpoint,
        "checkpoints": 2 * checkpoint + weights + _STATE,
        "store": stored,
        "features": features,
        "log": _LOG,
    }


def check(config: TrainConfig, vocabulary: int) -> dict[str, Any]:
    """places and needs as above, and findings: severity, what, remedy, for what a run would fail with, or should know of."""
    where = places(config)
    wanted = needs(config, vocabulary)
    by_name = {place["for"]: place for place in where}
    asked: dict[str, int] = {"run": wanted["checkpoints"] + wanted["log"]}
    for name in ("store", "features"):
        asked[name if name in by_name else "run"] = asked.get(name if name in by_name else "run", 0) + wanted[name]
    found = [*_taken(config), *_shortages(by_name, asked, wanted), *remarks(where)]
    return {"places": where, "needs": wanted, "findings": found}


def _taken(config: TrainConfig) -> Iterable[dict[str, str]]:
    """The folder of a run must be none, empty, or an earlier run's, which is moved aside."""
    out = config.run_dir
    try:
        names = os.listdir(out) if os.path.isdir(out) else []
    except OSError as error:
        yield finding(
            "error", f"{out} (run) cannot be read ({error.strerror})", "chmod u+rwx, or give another --out-dir"
        )
        return
    if names and not config.resume and "log.jsonl" not in names:
        what = f"{out} (run) holds other things than an earlier run, so that no run starts there"
        yield finding("error", what, "give another --out-dir")


def remarks(where: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """What should be known of the file systems that a run writes to."""
    found = []
    for place in where:
        name = f"{place['path']} ({place['for']})"
        if place["for"] in ("data", "cache"):
            continue
        if not place["writable"]:
            found.append(finding("error", f"{name} cannot be written", "chmod u+w, or give another --out-dir"))
        if place["kind"] in _IN_MEMORY:
            what = f"{name} lies in memory ({place['kind']}): it is gone after a restart, and takes what training needs"
            found.append(finding("warning", what, "give an --out-dir on a disk"))
        if place["kind"] in _REMOTE:
            what = (
                f"{name} lies on a network disk ({place['kind']}), which may know no locks, and be slow at small files"
            )
            found.append(
                finding("warning", what, "let no two runs share a folder or a store, or give a local --out-dir")
            )
        if place["free_inodes"] is not None and place["free_inodes"] < _INODES:
            what = f"{name} has room for {place['free_inodes']} more files only"
            found.append(finding("warning", what, "remove files that are not needed, or give another --out-dir"))
    return found


def _shortages(
    by_name: dict[str, dict[str, Any]], asked: dict[str, int], wanted: dict[str, int]
) -> Iterable[dict[str, str]]:
    disks: dict[Any, int] = {}
    for name, count in asked.items():
        disks[by_name[name]["disk"]] = disks.get(by_name[name]["disk"], 0) + count
    for name in asked:
        place = by_name[name]
        count, free = disks.pop(place["disk"], 0), place["free_bytes"]
        if free >= count:
            continue
        if name == "run" and free < wanted["checkpoint"]:
            what = f"{place['path']} has {size(free)} free, and one checkpoint takes {size(wanted['checkpoint'])}"
            yield finding("error", f"{what}: the run would end at its first", _room())
        else:
            yield finding(
                "error",
                f"{place['path']} has {size(free)} free, and a run needs {size(count)}: it would end half way",
                _room(),
            )


def _room() -> str:
    return "free space, give an --out-dir on another disk, or train less (--freeze-cnn, --optimizer sgd, --store none)"


def finding(severity: str, what: str, remedy: str) -> dict[str, str]:
    """Plain JSON values."""
    return {"severity": severity, "what": what, "remedy": remedy}


def _images(config: TrainConfig) -> int:
    if config.classifies:
        return IMAGES["pretrain"]
    from pycap.data import datasets

    return sum(IMAGES[part.kind] for part in datasets.parse(config.reads, config.data, config.picks))


def _stores(config: TrainConfig, images: int) -> bool:
    """Whether a run of so many images keeps them resized: as `training.sources.loaders` decides."""
    from pycap.training.sources import stores_automatically

    if config.store == "none" or config.features != "none":
        return False
    return config.store != "auto" or stores_automatically(images, config.resize_to)


def _place(name: str, path: Path) -> dict[str, Any]:
    there = path.expanduser().absolute()
    while not os.path.exists(there):  # false too where a folder above may not be entered
        there = there.parent
    usage = shutil.disk_usage(there)
    inodes = os.statvfs(there) if hasattr(os, "statvfs") else None
    return {
        "for": name,
        "path": str(path),
        "free_bytes": usage.free,
        "total_bytes": usage.total,
        "free_inodes": inodes.f_favail if inodes and inodes.f_files else None,
        "kind": file_system(there),
        "writable": os.access(there, os.W_OK),
        "disk": os.stat(there).st_dev,
    }


def file_system(path: Path) -> str:
    """The kind of the file system that a path lies on (ext4, tmpfs, nfs4); empty where the system does not tell."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # no Linux
        return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        # Blanks and the like are written as \040. The last mount of a place hides the others.
        point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), before.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind


def size(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def as_lines(found: dict[str, Any], more: Iterable[dict[str, str]] = ()) -> list[str]:
    """What `check` or `default` found, for people. more: findings of other things."""
    lines: list[str] = []
    uses = {"run": "checkpoints, log", "data": "images", "cache": "compiled kernels of GPUs"}
    for place in found["places"]:
        kind = f", {place['kind']}" if place["kind"] else ""
        used = uses.get(place["for"], place["for"])
        lines.append(
            row("disk" if not lines else "", f"{size(place['free_bytes'])} free for {place['path']} ({used}{kind})")
        )
    if needs := found["needs"]:
        parts = [
            f"{size(needs['checkpoints'])} of checkpoints (the best, the last of {size(needs['checkpoint'])}, and the next one "
            "before it takes its place)"
        ]
        parts += [f"{name} of about {size(needs[name])}" for name in ("store", "features") if needs[name]]
        whole = sum(needs[name] for name in ("checkpoints", "store", "features", "log"))
        lines.append(row("", f"{found.get('of') or 'the run'} needs {size(whole)}: {', '.join(parts)}"))
    elif found.get("obstacle"):
        lines.append(row("", f"what a run needs cannot be told here: {found['obstacle']}"))
    for each in (*found["findings"], *more):
        lines.append(row(each["severity"], f"{each['what']}; remedy: {each['remedy']}"))
    return lines


def default() -> dict[str, Any]:
    """`check` of the recipe that `pycap train` takes without options, with 10,000 words; or, under "obstacle", which package is
    missing, and the places alone."""
    try:
        from pycap.config import TrainConfig, with_recipe

        config = with_recipe(TrainConfig(), "coco")
        return {"obstacle": "", "of": "the recipe coco with 10,000 words", **check(config, 10_000)}
    except ImportError as error:
        where = places()
        return {"obstacle": str(error), "of": "", "places": where, "needs": {}, "findings": remarks(where)}
