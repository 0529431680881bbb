"""What a person is told of a step that was not finite: where, the likely cause, what to try; and the whole of it, in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from pycap.backends import kernels
from pycap.config import TrainConfig
from pycap.data.disk import write_whole
from pycap.distributed import Ranks
from pycap.training import diagnosis
from pycap.training.diagnosis import Finding
from pycap.training.shares import led
from pycap.training.trainer import Diverged, StepResult, Trainer

FILE = "diverged.json"

_GROWN = 5.0  # a norm this many times the usual one grew
_LATE = 8  # steps before the failure that count as the last ones


def explain(
    error: Diverged, trainer: Trainer, config: TrainConfig, history: Sequence[StepResult], ranks: Ranks, started_at: int
) -> str:
    """The reason of `error`, in three to six lines; the whole of it is written to `FILE` in the run's folder.

    Every rank calls this; each looks at its share, and the one that has the first cause is told of. history: the last steps
    that went well. started_at: how many steps had been made when this process began.
    """
    assert error.attempt is not None
    found = diagnosis.find(trainer, error.attempt)
    each = ranks.each((diagnosis.KINDS.index(found.kind), found))
    rank = min(range(ranks.size), key=lambda r: (each[r][0], r))
    found = each[rank][1]
    grown = _growth(history)
    cause, remedy = _cause(found, config, grown, error.attempt.number - 1 == started_at)
    file = config.run_dir / FILE
    batch = error.attempt.batch
    files = [name for own in ranks.each(batch.file_names) for name in own]
    row = {
        "step": error.attempt.number, "epoch": batch.epoch + 1, "batch": batch.index + 1, "error": str(error), "rank": rank,
        "ranks": ranks.size, "kind": found.kind, "where": found.where, "layer": found.layer, "images": found.images,
        "cause": cause, "try": remedy, "files": files, "not_finite": [asdict(a) for a in found.arrays],
        "layer_inputs": [asdict(a) for a in found.inputs], "activations": [asdict(a) for a in found.activations],
        "gradients": [asdict(a) for a in found.gradients], "optimizer_state_not_finite": [a.name for a in found.state],
        "learning_rates": {group.name: group.lr for group in trainer.optimizer.groups}, "precision": config.precision,
        "last_steps": [{"step": r.step, "loss": r.loss, "norms": r.norms, "lr": r.lr} for r in history],
    }  # fmt: skip
    led(ranks, lambda: write_whole(file, json.dumps(_plain(row), indent=1, allow_nan=False, ensure_ascii=False) + "\n"))
    lines = [f"where: {f'rank {rank} of {ranks.size}: ' if ranks.size > 1 else ''}{found.where}"]
    if found.images:
        more = f" and {len(found.images) - 4} more" if len(found.images) > 4 else ""
        lines[0] += f"; images {', '.join(found.images[:4])}{more}"
    if found.inputs:
        lines.append(f"given: {'; '.join(f'{a.name} {a}' for a in found.inputs)}")
    if before := _before(history, grown):
        lines.append(f"before: {before}")
    lines += [f"likely: {cause}", f"try: {remedy}", f"all of it: {file}"]
    return "\n".join(f"  {line}" for line in lines)


def broken(trainer: Trainer, config: TrainConfig, what: str, value: float, begins: bool) -> str:
    """Why nothing may be saved now: a weight is not finite, or `value` of `what`; else nothing. begins: before the first
    step of this process."""
    tensors = trainer.model.named_parameters()
    if math.isfinite(value) and math.isfinite(kernels.sum_squares([t.data for t in tensors.values()])):
        return ""
    step, lower = trainer.step_number, f"lower --learning-rate ({config.learning_rate:g}), or set --grad-clip"
    bad = [name for name, tensor in tensors.items() if not math.isfinite(kernels.sum_squares([tensor.data]))]
    if not bad:
        return (
            f"after step {step}: {what} is {value}, though all weights are finite: they have grown too large; {lower}"
        )
    told = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    if begins:
        given = (
            config.resume or config.init_from or config.vgg_weights or f"the weights that --seed {config.seed} draws"
        )
        return f"{given}: {told} holds NaN or infinity before the first step; start from other weights"
    return f"after step {step}: {told} holds NaN or infinity, written by an update of finite gradients; {lower}"


def _growth(history: Sequence[StepResult]) -> dict[str, float]:
    """By group, the largest norm of the last steps over the usual one before them; "loss" likewise."""
    late, early = list(history)[-_LATE:], list(history)[:-_LATE]
    if not early:
        return {}
    grown = {}
    for name in late[-1].norms:
        usual = median(r.norms.get(name, 0.0) for r in early)
        if usual > 0:
            grown[name] = max(r.norms.get(name, 0.0) for r in late) / usual
    usual = median(r.loss for r in early)
    if usual > 0:
        grown["loss"] = max(r.loss for r in late) / usual
    return grown


def _before(history: Sequence[StepResult], grown: dict[str, float]) -> str:
    if not history:
        return "no step had been made"
    last = history[-1]
    norms = ", ".join(f"{name} {norm:.3g}" for name, norm in last.norms.items())
    told = f"step {last.step}: loss {last.loss:.4g}, gradient norms {norms}"
    rose = [f"{name} {times:.0f} times" for name, times in grown.items() if times > _GROWN]
    return told + (f"; in the last {_LATE} steps up to {' and '.join(rose)} the usual" if rose else "")


def _cause(found: Finding, config: TrainConfig, grown: dict[str, float], first: bool) -> tuple[str, str]:
    """(the likely cause, what to try). first: whether no step had been made by this process."""
    rates = f"--learning-rate {config.learning_rate:g}"
    if config.cnn_learning_rate is not None:
        rates += f", --cnn-learning-rate {config.cnn_learning_rate:g}"
    lower = f"a tenth of {rates}"
    clip = (
        "--grad-clip 5 --grad-clip-mode norm"
        if not config.grad_clip
        else f"a lower --grad-clip than {config.grad_clip:g}"
    )
    slow = f"{lower}, {clip}, or more --warmup-steps"
    if found.kind == "weights":
        given = config.resume or config.init_from or config.vgg_weights
        if first and given:
            return f"the weights that the run starts from are broken: {given}", "another checkpoint, or the file anew"
        if first:
            return (
                "initial weights that are not finite",
                "another --seed; if that does not help, this is a fault of pycap",
            )
        bad = found.arrays
        if len(bad) == 1 and bad[0].bad <= bad[0].of // 50 and not any(times > _GROWN for times in grown.values()):
            cause = "something other than the training wrote these few numbers between two steps: memory that errs"
            return cause, "--resume from the last checkpoint, and test the machine's memory"
        state = f", as is its state ({found.state[0].name} ...)" if found.state else ""
        return (
            f"an update of finite gradients wrote them, so it was too large{state}: the learning rate ({rates})",
            slow,
        )
    if found.kind == "input":
        if "features" in found.where:
            kept = "features.h5 in the run's folder" if config.features == "auto" else config.features
            return f"a damaged row of {kept}", "delete that file, so that it is made anew"
        return "a reward that is no number", "look at the captions of these images: pycap doctor DIR"
    if found.kind == "none":
        return (
            "not the batch nor the weights: memory that errs, or a kernel that depends on what lies beside its arrays",
            "--resume; if it comes again at another step, --backend reference, and test the machine's memory",
        )
    if not diagnosis.moderate(found):
        half = f", in {config.precision} sooner than in fp32" if config.precision != "fp32" else ""
        what = "values" if found.kind == "forward" else "gradients"
        large = max(found.inputs, key=lambda a: a.largest)
        return f"{what} grew until they overflowed{half} ({large.name}: {large}): the learning rate ({rates})", slow
    if any(times > _GROWN for times in grown.values()):
        return f"gradients that exploded in the last steps: the learning rate ({rates})", slow
    return (
        f"finite and moderate numbers went into {found.layer}, so it is its computation that fails, not the training",
        "--backend reference, or another --device; pycap doctor tells who computes what",
    )


def _plain(value: Any) -> Any:
    """As JSON knows it: what is no finite number, as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
