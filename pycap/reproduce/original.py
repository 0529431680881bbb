"""What a run's folder tells of it, read once and never written to; and the options with which the run is made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycap import checkpoint
from pycap.config import FIELDS, ConfigError, TrainConfig, did_you_mean, to_dict
from pycap.config import load as load_config
from pycap.config.options import PATHS
from pycap.reproduce.ending import RESULTS
from pycap.training import provenance

#: Options that say from where a run goes on and where its files lie, and none of which a result depends on.
PLACES = ("resume", "init_from", "out_dir", "data", "store", "workers", "save_checkpoint_every")


class ReproduceError(RuntimeError):
    """A run that cannot be made again; the text names what is missing or has changed, and the remedy."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint of the original: `last` or `best`, at which step."""

    folder: Path
    step: int


@dataclass(frozen=True)
class Segment:
    """A part of the run that was made with the same options. record: of the start that began it, where there is one.

    until: the position (`epoch`, `batch`) at which the run went on with other options; None: to its end. limited: whether
    its own options ended it there.
    """

    config: TrainConfig
    record: dict[str, Any] | None
    until: dict[str, int] | None = None
    limited: bool = False


@dataclass(frozen=True)
class Original:
    """rows: of log.jsonl. finished: whether it came to its end, whose results are there. remarks: what to know."""

    folder: Path
    records: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    saved: dict[str, Saved]
    finished: bool
    segments: list[Segment]
    remarks: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The last of which it tells."""
        return max([row["step"] for row in self.rows] + [saved.step for saved in self.saved.values()], default=0)

    @property
    def ranks(self) -> int:
        return int(self.records[-1]["ranks"]["size"]) if self.records else 1


def read(folder: Path) -> Original:
    """Read a run's folder. ReproduceError, ProvenanceError, ConfigError, CheckpointError for one that is none or is damaged."""
    if not (folder / "log.jsonl").is_file():
        there = "no such folder" if not folder.is_dir() else "holds no log.jsonl"
        raise ReproduceError(f"{folder}: {there}; give a run's folder (runs/NAME)")
    records, rows = provenance.read(folder), _rows(folder / "log.jsonl")
    states = {}
    for name in ("last", "best"):
        # Not `load(folder)`, which takes the other one where one is missing.
        if (found := _standing(folder / name)) is not None:
            states[name] = (found, checkpoint.load(found).state)
    saved = {name: Saved(found, int(state["trainer"]["step"])) for name, (found, state) in states.items()}
    segments, remarks = _segments(folder, records)
    remarks += _edited(folder, records)
    finished = "last" in states and any((folder / name).is_file() for name in RESULTS)
    finished = finished and _ended(states["last"][1], segments[-1].config)
    return Original(folder, records, rows, saved, finished, segments, remarks)


def _standing(folder: Path) -> Path | None:
    """The checkpoint's folder, or the whole one beside it that an interrupted save left."""
    try:
        return checkpoint.find(folder)
    except checkpoint.CheckpointError:
        return None


def _rows(path: Path) -> list[dict[str, Any]]:
    *lines, _ = path.read_bytes().split(b"\n")  # behind the last line's end stands what a kill left of one
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8"))
            rows.append({**row, "kind": str(row["kind"]), "step": int(row["step"])})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ReproduceError(
                f"{path}: line {number} is no row of a log ({type(error).__name__}: {error}): the log is damaged; take it from "
                "a copy of the run, or give --until-step with a step before it"
            ) from error
    return rows


def _ended(state: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a run whose `last` holds this state had nothing left to train."""
    position, step = state["position"], state["trainer"]["step"]
    return bool(
        position["epoch"] >= config.pretrain_words + config.epochs
        or 0 < config.max_steps <= step
        or 0 < config.early_stop <= position.get("stale", 0)
    )


def _segments(folder: Path, records: list[dict[str, Any]]) -> tuple[list[Segment], list[str]]:
    """The parts of the run by their options. A start that another one replaced, which went on from the same step or an
    earlier one, has left nothing in the run."""
    if not records:
        config = load_config(folder / "config.yaml")
        if config.resume:
            raise ReproduceError(
                f"{folder}: was resumed, and made by a pycap that kept no {provenance.NAME}: how it began is not known; "
                "give --config with its options to pycap train"
            )
        remark = f"the run holds no {provenance.NAME}: with what it was made is not known, only its options"
        return [Segment(config, None)], [remark]
    first, kept = records[0], list[dict[str, Any]]()
    remarks = []
    if first["step"]:
        remarks.append(
            f"the run began before its first record, which is of step {first['step']}: it is made with those options from its "
            "beginning"
        )
    for record in records:
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        if not kept or _deciding(kept[-1]) != _deciding(record):
            kept.append(record)
    configs = [_config(record, folder) for record in kept]
    configs[0].init_from = _config(first, folder).init_from
    ends = [{name: int(later["position"][name]) for name in ("epoch", "batch")} for later in kept[1:]]
    limited = [0 < config.max_steps <= later["step"] for config, later in zip(configs, kept[1:], strict=False)]
    return [Segment(*part) for part in zip(configs, kept, [*ends, None], [*limited, False], strict=True)], remarks


def _edited(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """What config.yaml says otherwise than the record that was written with it."""
    if not records or not (folder / "config.yaml").is_file():
        return []
    says, began = to_dict(load_config(folder / "config.yaml")), records[-1]["config"]
    return [
        f"{folder / 'config.yaml'} says {name}: {says[name]}, and the run was made with {began[name]}, which counts"
        for name in says.keys() & began.keys()
        if says[name] != began[name]
    ]


def _deciding(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a start decides the bits of the steps that follow it."""
    options = {name: value for name, value in record["config"].items() if name not in PLACES}
    return {**options, "kernels": record["kernels"], "micro_batch": record["micro_batch"]}


def _config(record: Mapping[str, Any], folder: Path) -> TrainConfig:
    """The options of a start, with as many threads as it had; nothing of a recipe is laid under them."""
    where, options = folder / provenance.NAME, dict(record["config"])
    if unknown := options.keys() - FIELDS.keys():
        name = sorted(unknown)[0]
        raise ConfigError(
            f"{where}: the run has an option {name} that this pycap does not know{did_you_mean(name, FIELDS)}; use the pycap "
            f"that made it ({record['pycap'].get('version')})"
        )
    if options.get("seed") != record["seed"]:
        raise ConfigError(
            f"{where}: seed {record['seed']} is not that of its config, {options.get('seed')}: the record was edited; take it "
            "from a copy of the run"
        )
    options |= {name: Path(options[name]) for name in PATHS if options.get(name) is not None}
    config = TrainConfig(**options)
    config.given = frozenset(FIELDS)
    config.threads = config.threads or int(record["kernels"].get("threads", 0))
    config.resume = None
    try:
        return config.validate()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
