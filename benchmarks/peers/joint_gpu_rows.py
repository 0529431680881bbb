"""Rows of the whole-step comparison, and what has to hold before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results import Row

if TYPE_CHECKING:
    from benchmarks.peers.joint_gpu import Comparison, Side

#: How far losses of the same step may lie apart, relatively, by precision. A loss is a mean over hundreds of words, of
#: logits that passed 16 layers. fp32: roundings of 2^-24, magnified by sums of up to 25,000 products; tf32: factors
#: rounded to 2^-12; bf16: to 2^-9, five of them in a row.
BOUNDS = {"fp32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
#: The same search on nearly the same numbers: some captions differ, their mean log-probability hardly.
SEARCH_BOUND = 0.03
#: With dropout each side draws its own masks; the mean loss over a first turn hardly depends on them.
DRAWN_BOUND = 0.05
DTYPES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}


class Disagreement(RuntimeError):
    """Two sides do not compute the same, so that their times must not be compared; the text has the numbers."""


def check(what: str, ours: np.ndarray, theirs: np.ndarray, bound: float) -> float:
    """The largest relative distance. Disagreement where it is above `bound` or no number."""
    if ours.shape != theirs.shape:
        raise Disagreement(f"{what}: {ours.shape} numbers against {theirs.shape}; nothing is compared")
    far = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
    if not far <= bound:
        raise Disagreement(
            f"{what} differ by {far:.2g} of their size, allowed {bound:.2g}: {np.round(ours, 5).tolist()} against "
            f"{np.round(theirs, 5).tolist()}; nothing is compared"
        )
    return far


def _quantiles(prefix: str, seconds: Sequence[float]) -> Row:
    low, middle, high = (float(np.quantile(seconds, q)) for q in (0.2, 0.5, 0.8))
    return {f"{prefix}median_s": middle, f"{prefix}q20_s": low, f"{prefix}q80_s": high}


def step_rows(made: Comparison, base: Row, flops: float, err: float) -> list[Row]:
    """One row a peer, with a note where a peer has none."""
    config, ours = made.task.config, made.sides["pycap"]
    mode = "frozen" if config.freeze_cnn else "step"
    base = {**base, "op": "joint", "mode": mode, "flops": flops, "ceilings": made.ceilings, "err": err}
    base |= _quantiles("", ours.seconds) | {"calls": ours.steps, "peak_mib": ours.peak_mib}
    base |= _rates("", ours, flops, made) | {"note": "; ".join(ours.info.get("said", ())) or None}
    base["gflops"] = flops / base["median_s"] / 1e9
    rows = []
    for name in made.options.sides[1:]:
        row = {**base, "peer": name}
        if name in made.failed:
            row["note"] = "; ".join(filter(None, [base["note"], made.failed[name]]))
        else:
            peer = made.sides[name]
            row |= _quantiles("peer_", peer.seconds) | _rates("peer_", peer, flops, made)
            row |= {"peer_calls": peer.steps, "peer_peak_mib": peer.peak_mib, "peer_variant": peer.info["variant"]}
            row["ratio"] = row["peer_median_s"] / row["median_s"]
        rows.append(row)
    return rows or [base]


def input_rows(made: Comparison, base: Row) -> list[Row]:
    """Steps from JPEGs, a row a peer; stall_pct beside the same side's steps on batches in memory."""
    seconds, size = made.inputs(), made.task.config.batch_size

    def told(name: str, prefix: str) -> Row:
        row = _quantiles(prefix, seconds[name])
        median, held = row[f"{prefix}median_s"], float(np.median(made.sides[name].seconds))
        stall = 100 * (1 - held / median)
        return {**row, f"{prefix}images_per_s": size / median, f"{prefix}stall_pct": max(stall, 0.0)}

    ours = {**base, "op": "joint", "mode": "input", **told("pycap", "")}
    rows = [{**ours, "peer": name, **told(name, "peer_")} for name in seconds if name != "pycap"]
    return [{**row, "ratio": row["peer_median_s"] / row["median_s"]} for row in rows] or [ours]


def _rates(prefix: str, side: Side, flops: float, made: Comparison) -> Row:
    config, median = made.task.config, float(np.median(side.seconds))
    ceiling = made.ceilings.get(DTYPES[config.precision])
    return {
        f"{prefix}images_per_s": config.batch_size / median,
        f"{prefix}ceiling_pct": 100 * flops / ceiling / median if ceiling else None,
        f"{prefix}device_mib": side.device_mib,
        f"{prefix}joules": float(np.median(side.joules)) if side.joules else None,
    }


def caption_row(made: Comparison, base: Row, beam: int) -> Row:
    """The searches of one width.

    Disagreement where the peer gives pycap's captions other log-probabilities than pycap does, or where one side's captions
    are less probable than the other's. Captions themselves may differ: where two words are equally probable, one bit decides.
    """
    seconds, said = made.captions(beam)
    config = made.task.config
    row = {**base, "op": "captions", "mode": f"beam{beam}" if beam > 1 else "greedy"}
    row |= _quantiles("", seconds["pycap"])
    row["images_per_s"] = config.batch_size / row["median_s"]
    if "torch eager" not in seconds:
        return row
    ours, theirs = (np.array([logprob for _, logprob in said[name]]) for name in ("pycap", "torch eager"))
    scored = made.sides["torch eager"].remote.call("score", [text for text, _ in said["pycap"]])
    row["err"] = check(f"log-probabilities of beam {beam}", ours, np.array(scored), 2 * BOUNDS[config.precision])
    means = (values.mean(keepdims=True) for values in (ours, theirs))
    check(f"mean log-probabilities of beam {beam}", *means, SEARCH_BOUND)
    row |= {"peer": "torch eager", **_quantiles("peer_", seconds["torch eager"])}
    row["peer_images_per_s"] = config.batch_size / row["peer_median_s"]
    row["ratio"] = row["peer_median_s"] / row["median_s"]
    same = sum(a == b for (a, _), (b, _) in zip(said["pycap"], said["torch eager"], strict=True))
    words = np.mean([len(text.split()) for text, _ in said["pycap"]])
    row["note"] = f"{same} of {len(ours)} captions word for word; {words:.1f} words each"
    return row


def summary(row: Row) -> str:
    """What the table does not show."""
    parts = []
    for key, form, unit in (
        ("images_per_s", ".0f", "/s"), ("ceiling_pct", ".1f", "% of the ceiling"), ("peak_mib", ".0f", "MiB reserved"),
        ("device_mib", ".0f", "MiB of the GPU"), ("joules", ".3f", "J an image"), ("stall_pct", ".1f", "% waiting for input"),
    ):  # fmt: skip
        if row.get(key) is not None:
            peer = row.get(f"peer_{key}")
            beside = f" (peer {peer:{form}})" if peer is not None else ""
            parts.append(f"{row[key]:{form}}{beside} {unit}")
    return f"{row['op']} {row['mode']} beside {row.get('peer')}: {', '.join(parts)}"
