"""`pycap reproduce RUN`: the run made again in a folder beside it, and in words where the two first differ."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from contextlib import chdir, nullcontext, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pycap import distributed
from pycap.config import TrainConfig
from pycap.distributed import Ranks
from pycap.reproduce import ending
from pycap.reproduce.differences import LARGEST, Difference
from pycap.reproduce.follow import Ended, Findings, Follow, Row
from pycap.reproduce.original import Original, ReproduceError, Segment, read
from pycap.training import run as training
from pycap.training.shares import led

_SHOWN = 6  # quantities of a row, arrays of a checkpoint, files of a batch
_DEMO = Path("data") / "demo"


def reproduce(args: argparse.Namespace) -> int:
    """`pycap reproduce`. Status 0: the same, bit for bit; 1: not; 128 + n: stopped by signal n, and what was compared is told.

    Nothing is written to the run's folder. Raises ReproduceError, ProvenanceError, and what training raises.
    """
    ranks = distributed.current()
    run = Path(args.run).resolve()
    folder = (Path(args.out_dir) if args.out_dir else run.with_name(f"{run.name}-reproduced")).resolve()
    if folder == run or folder in run.parents or run in folder.parents:
        raise ReproduceError(
            f"--out-dir {folder}: holds {run}, or lies in it, and the run stays as it is; give another one"
        )
    original = led(ranks, lambda: read(run))
    _require_ranks(original, ranks, args.run)
    until = min(args.until_step or original.step, original.step)
    if not until:
        raise ReproduceError(f"{run}: its log tells of no step: there is nothing to compare")
    say = _told if ranks.rank == 0 else _untold
    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        for remark in original.remarks:
            say(remark)
        say(f"{run}: made again up to step {until} of {original.step}, in {folder}")
        follow = Follow(original, folder, until, ranks, say, keep_going=args.keep_going)
        stopped = _again(original, follow, folder, args, ranks)
    found = follow.found
    kept = bool(args.out_dir) or not (found.same or stopped)
    if not kept:
        led(ranks, lambda: shutil.rmtree(folder))
    if ranks.rank == 0:
        told = _as_json(found, run, folder if kept else None, stopped)
        print(
            json.dumps(told, indent=1)
            if args.json
            else "\n".join(_as_text(found, original, folder if kept else None, stopped))
        )
    return 128 + stopped if stopped else 0 if found.same else 1


def _again(original: Original, follow: Follow, folder: Path, args: argparse.Namespace, ranks: Ranks) -> int:
    """Make the run again. Returns the signal that stopped it, or 0."""
    record = original.segments[0].record
    _require_there(original, args)
    where = Path(record["cwd"]) if record and Path(record["cwd"]).is_dir() else Path.cwd()
    with chdir(where):  # paths in the options are relative to where they were typed
        try:
            for number, segment in enumerate(original.segments):
                follow.enter(segment)
                config = _config(original, segment, folder, args)
                if number:
                    config = replace(config, resume=folder, init_from=None)
                    config.given = segment.config.given
                try:
                    training.run(config, follow)
                except training.Stopped as stop:
                    if not follow.left:
                        return stop.signal_number
        except Ended:
            return 0
        except BaseException:
            if follow.begun and not args.out_dir:  # what is left of it is of no use
                led(ranks, lambda: shutil.rmtree(folder, ignore_errors=True))
            raise
    if follow.finish():
        follow.found.ending = led(ranks, lambda: ending.compare_folders(original.folder, folder))
    return 0


def _config(original: Original, segment: Segment, folder: Path, args: argparse.Namespace) -> TrainConfig:
    """The options of a part of the run, for the folder in which it is made again."""
    config, record = segment.config, segment.record
    changed: dict[str, Any] = {"out_dir": folder}
    if record is not None:
        files, folders = record["files"] or original.segments[0].record["files"], record["data"]["folders"]  # type: ignore[index]
        changed |= {name: Path(files[name]["path"]) for name in ("init_from", "vgg_weights") if name in files}
        if config.data is None and len(folders) == 1 and Path(folders[0]).exists():
            changed["data"] = Path(folders[0])
        changed |= {"device": record["kernels"]["device"], "micro_batch": record["micro_batch"]}
    for name, fallback in (("store", "auto"), ("features", "auto")):
        value = getattr(config, name)
        if value not in ("auto", "none") and original.folder in Path(value).resolve().parents:
            changed[name] = fallback  # it would be written to
    changed |= {name: getattr(args, name) for name in ("data", "threads", "device", "backend") if getattr(args, name)}
    changed |= {"data": Path(changed["data"]).resolve()} if changed.get("data") else {}
    new = replace(config, **changed)
    new.given = config.given
    return new


def _require_ranks(original: Original, ranks: Ranks, typed: str) -> None:
    if original.ranks != ranks.size:
        how = (
            f"mpirun -n {original.ranks} pycap reproduce {typed}" if original.ranks > 1 else f"pycap reproduce {typed}"
        )
        raise ReproduceError(
            f"{original.folder}: was made by {original.ranks} rank{'s' if original.ranks > 1 else ''}, and this is "
            f"{ranks.size}, whose sums would be others: start {how}"
        )


def _require_there(original: Original, args: argparse.Namespace) -> None:
    """ReproduceError for what the run read and is gone."""
    for segment in original.segments[:1]:
        if segment.record is None:
            continue
        for name, told in segment.record["files"].items():
            if not Path(told["path"]).exists():
                raise ReproduceError(
                    f"{name}: {told['path']}, from which {original.folder} began, is gone; put it back"
                )
        config = segment.config
        drawn = config.stage == "coco" and config.data is None and not config.datasets
        for place in map(Path, segment.record["data"]["folders"]):
            if not place.exists() and not args.data and not (drawn and place.parts[-2:] == _DEMO.parts):
                raise ReproduceError(
                    f"data: {place}, on which {original.folder} was trained, is gone; put it back, or give where it is "
                    "with --data"
                )


# What comes of it, in words -------------------------------------------------------------------------------------------


def verdict(found: Findings, stopped: int = 0) -> tuple[str, str]:
    """A word, "same", "rounding", "differs" or "stopped", and the sentence."""
    compared = f"{_count(found.steps, 'step')}, {_count(found.rows, 'row')} of the log" + "".join(
        f", {name}/ at step {step}" for name, step in found.compared.items()
    )
    reasons = sorted({change.what for change in found.changes if change.matters != "no"})
    if stopped and found.same:
        return "stopped", f"stopped by signal {stopped}; so far bit for bit the same: {compared}"
    if found.same:
        return "same", f"bit for bit the same: {compared}"
    begins = f"from step {found.first.found[0].step} on" if found.first else ""
    begins = begins or (f"at step {found.tensors[0].step}" if found.tensors else "at its end")
    if found.beyond is None and found.first is not None:
        by, others = f"largest relative difference {found.largest:.1e}", " and ".join(reasons)
        if found.grown is not None:
            grown = f"by rounding, which has grown past {LARGEST:.0%} at step {found.grown.found[0].step} and makes another run"
            why = f", as other {others} explain" if reasons else ", and nothing that was compared explains it"
            return "rounding" if reasons else "differs", f"differs {begins} {grown}{why}"
        if reasons:
            return "rounding", f"the same within rounding ({by}), as other {others} explain: {compared}"
        return (
            "differs",
            f"differs {begins}, by no more than rounding ({by}), but nothing that was compared explains that",
        )
    explained = f"; what is otherwise: {', '.join(reasons)}" if reasons else ""
    more = ", more than rounding explains" if found.beyond is not None else ""
    return "differs", f"differs {begins}{more}{explained}"


def _as_text(found: Findings, original: Original, folder: Path | None, stopped: int) -> list[str]:
    lines = []
    if found.first is not None:
        lines += _row_lines("first difference", found.first)
    if found.beyond is not None and found.beyond is not found.first:
        lines += _row_lines("first that rounding does not explain", found.beyond)
    for tensors in found.tensors:
        lines.append(f"{tensors.what} at step {tensors.step}: {_count(len(tensors.found), 'array')} of it differ")
        lines += [
            f"  {array.name}: {array.values:,} of {array.of:,} values, by {_number(array.largest)} at most "
            f"({_number(array.relative)} of its largest)"
            for array in tensors.found[:_SHOWN]
        ]
    missed = [f"{name}/ at step {saved.step}" for name, saved in original.saved.items() if saved.step > found.steps]
    if found.first is not None and missed:
        lines.append(f"not reached: {', '.join(missed)}; --keep-going goes on, and compares the tensors there")
    lines += found.ending
    lines.append(verdict(found, stopped)[1])
    if folder is not None:
        lines.append(f"the run made again is in {folder}")
    return lines


def _row_lines(title: str, row: Row) -> list[str]:
    first = row.found[0]
    lines = [f"{title}: step {first.step}{f' (epoch {first.epoch})' if first.epoch else ''}"]
    lines += [f"  {_told_of(difference)}" for difference in row.found[:_SHOWN]]
    if len(row.found) > _SHOWN:
        lines.append(f"  and {len(row.found) - _SHOWN} more quantities")
    if row.after < first.step - 1:
        lines.append(
            f"  the log has no row between step {row.after} and this one: it began in one of {row.after + 1} to {first.step}"
        )
    for step, files in row.files.items():
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        lines.append(f"  images of step {step}: {', '.join(files[:_SHOWN])}{more}")
    return lines


def _told_of(difference: Difference) -> str:
    apart = "" if difference.relative is None else f" (relative difference {_number(difference.relative)})"
    return f"{difference.quantity}: {difference.then} then, {difference.now} now{apart}"


def _as_json(found: Findings, run: Path, folder: Path | None, stopped: int) -> dict[str, Any]:
    word, sentence = verdict(found, stopped)
    plain = {
        name: asdict(row) if row else None for name, row in (("first", found.first), ("beyond_rounding", found.beyond))
    }
    told = {
        "run": str(run),
        "reproduced": str(folder) if folder else None,
        "verdict": word,
        "told": sentence,
        "steps": found.steps,
        "rows": found.rows,
        "checkpoints": found.compared,
        "largest_relative_difference": found.largest,
        "changes": [asdict(change) for change in found.changes],
        **plain,
        "tensors": [asdict(tensors) for tensors in found.tensors],
        "ending": found.ending,
    }
    return _finite(told)


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:.2g}"


def _told(text: str) -> None:
    print(text, flush=True)


def _untold(text: str) -> None:
    """Of several ranks the first one speaks."""
