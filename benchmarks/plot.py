"""The picture of a run: how long each peer takes beside pycap, and how near pycap comes to the machine's ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.report import peer_name, seconds
from benchmarks.results import Row

COLOURS = {"PyTorch": "#d1603d", "ONNX Runtime": "#5b8e7d", "OpenVINO": "#4a6fa5", "ncnn": "#8d6a9f"}
PYCAP = "#1b1b1e"
GREY = "#6b6b6b"
#: More groups of bars than this would not be readable.
MOST_GROUPS = 24


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw rows of results as bars and a roofline; path: .svg or .png. The headline's works, or else the first cases.

    Raises ValueError where no row has a ratio.
    """
    compared = [row for row in rows if row["ratio"]]
    if not compared:
        raise ValueError("no row has times of both pycap and a peer: there is nothing to draw")
    shown = [row for row in compared if row["label"]] or compared
    groups: dict[str, list[Row]] = {}
    for row in shown:
        groups.setdefault(_work(row), []).append(row)
    groups = dict(list(groups.items())[:MOST_GROUPS])
    lines = sum(len(group) + 1.1 for group in groups.values())
    style = {"font.size": 8.5, "svg.fonttype": "none", "font.family": "sans-serif", "axes.edgecolor": GREY}
    with pyplot.rc_context(style):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(11.5, max(4.2, 0.215 * lines + 1.0)), width_ratios=[1.25, 1], facecolor="white"
        )
        _bars(left, groups)
        _roofline(right, [group[0] for group in groups.values()])
        figure.suptitle(f"{rows[0]['hardware']}, each side alone at work, in turns", fontsize=8.5, color=GREY)
        figure.tight_layout(w_pad=2.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
        pyplot.close(figure)


def _work(row: Row) -> str:
    return row["label"] or f"{row['op']} {row['case']} {row['mode']} {row['dtype']}"


def _bars(axes: Axes, groups: dict[str, list[Row]]) -> None:
    """One group a work, one bar a peer, as long as the peer takes in units of pycap's time."""
    longest = max(row["ratio"] for group in groups.values() for row in group)
    limit = longest * 1.42
    y = 0.0
    for work, group in groups.items():
        name = axes.text(0, y, work, va="center", fontweight="bold")
        time = f"  pycap {seconds(group[0]['median_s'])}"
        axes.annotate(time, (1, 0.5), xycoords=name, va="center", color=PYCAP, annotation_clip=False)
        axes.plot([1, 1], [y + 0.5, y + 0.95 * len(group) + 0.45], color=PYCAP, linewidth=1.2)
        y += 0.95
        for row in group:
            peer = peer_name(row)
            colour = COLOURS.get(peer, GREY)
            axes.barh(y, row["ratio"], height=0.82, color=colour, alpha=0.85 if row["ratio"] >= 1 else 0.45)
            text = f" {peer} {row['ratio']:.2f}x, {seconds(row['peer_median_s'])}"
            axes.text(max(row["ratio"], 1.0), y, text, va="center", color=colour)
            y += 0.95
        y += 0.25
    axes.set_xlim(0, limit)
    axes.set_ylim(y - 0.2, -0.8)
    axes.set_yticks([])
    axes.set_xlabel("peer's time / pycap's (the line: pycap)")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _roofline(axes: Axes, rows: Sequence[Row]) -> None:
    """GFLOP/s of the plain algorithm over its FLOPs a byte; filled: pycap, hollow: PyTorch, joined by a line."""
    points = [row for row in rows if row["gflops"] and row["bytes"]]
    ceilings: dict[str, float] = rows[0]["ceilings"] or {}
    if not points:
        axes.set_axis_off()
        return
    intensity = [row["flops"] / row["bytes"] for row in points]
    low, high = min(intensity) / 3, max(intensity) * 12
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    names = {"float32": "sgemm 4096³", "bfloat16": "bf16 gemm 4096³"}
    for dtype, name in names.items():
        if dtype in ceilings and any(row["dtype"] == dtype for row in points):
            peak = ceilings[dtype] / 1e9
            knee = ceilings[dtype] / ceilings["copy"] if "copy" in ceilings else low
            axes.plot([max(knee, low), high], [peak, peak], color=GREY, linewidth=1)
            axes.text(high, peak * 1.04, f"{name}: {peak:.0f} ", ha="right", va="bottom", color=GREY)
    if "copy" in ceilings:
        rate = ceilings["copy"] / 1e9
        top = max((ceilings[d] for d in names if d in ceilings), default=ceilings["copy"] * high)
        end = min(high, top / ceilings["copy"])
        axes.plot([low, end], [low * rate, end * rate], color=GREY, linewidth=1)
        axes.text(low * 1.1, low * 1.1 * rate * 1.15, f"copy: {rate:.0f} GB/s", color=GREY, va="bottom")
    labels: list[Any] = []
    for x, row in zip(intensity, points, strict=True):
        axes.plot(x, row["gflops"], "o", color=PYCAP, markersize=5)
        if row["peer_median_s"] and peer_name(row) == "PyTorch":
            theirs = row["flops"] / row["peer_median_s"] / 1e9
            axes.plot([x, x], [theirs, row["gflops"]], color=COLOURS["PyTorch"], linewidth=0.8)
            axes.plot(x, theirs, "o", markerfacecolor="white", markeredgecolor=COLOURS["PyTorch"], markersize=5)
        labels.append((row["gflops"], x, _short(row)))
    _place_labels(axes, labels)
    axes.set_xlabel("FLOP / byte of the plain algorithm")
    axes.set_ylabel("GFLOP/s of the plain algorithm (filled: pycap, hollow: PyTorch)")
    axes.spines[["top", "right"]].set_visible(False)


def _place_labels(axes: Axes, labels: list[Any]) -> None:
    """Names in a column at the right edge, from the top down in the order of the points, a thin line to each."""
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.6)
    right = axes.get_xlim()[1]
    free = float("inf")
    step = (high * 1.6 / low) ** (1 / 27)
    for y, x, text in sorted(labels, key=lambda label: (-label[0], -label[1])):
        at = min(y, free / step)
        axes.annotate(
            text,
            (x, y),
            (right * 1.02, at),
            va="center",
            fontsize=7.5,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "alpha": 0.6},
        )
        free = at


def _short(row: Row) -> str:
    """A work's name for a point."""
    dtype = "" if row["dtype"] == "float32" else " bf16"
    mode = {"forward": "fwd", "backward": "bwd", "forward+backward": "fwd+bwd", "step": "step"}[row["mode"]]
    case = "" if row["op"] in ("joint", "softmax_xent", "cold") else f" {row['case']}"
    return f"{row['op']}{case} {mode}{dtype}"
