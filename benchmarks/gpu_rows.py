"""What is told of the GPU cases: rows of results, and the rows as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.cases import Case
from benchmarks.gpu_turns import Found
from benchmarks.measure import rates
from benchmarks.results import Row
from benchmarks.sides import distance
from benchmarks.timing import Samples


def against(case: Case, found: Found, ours: str) -> dict[str, tuple[Samples, float] | str]:
    """By peer, its samples and how far the side `ours` is from its result, or why there are none."""
    outcome: dict[str, tuple[Samples, float] | str] = {}
    for name in case.peers:
        if name in found.samples:
            both = ours in found.outputs
            far = distance(found.outputs[ours], found.outputs[name]) if both else float("nan")
            outcome[name] = (found.samples[name], far)
        elif found.reason(name):
            outcome[name] = found.reason(name)
    return outcome


def rows_of(
    case: Case,
    ours: Samples | None,
    peers: Mapping[str, tuple[Samples, float] | str],
    problem: str,
    ceilings: Mapping[str, float],
    about: Row,
) -> list[Row]:
    """One row a peer; where there is none, one row."""
    base: Row = {"op": case.op, "case": case.name, "mode": case.mode, "dtype": case.dtype, **about}
    base |= {"flops": case.flops, "bytes": case.nbytes, "ceilings": dict(ceilings)}
    if problem:
        base["note"] = f"pycap: {problem}"
    if ours is not None:
        base |= {"median_s": ours.median, "q20_s": ours.quantile(0.2), "q80_s": ours.quantile(0.8)}
        base |= {"calls": len(ours.seconds), **rates(case, ours.median, ceilings)}
    rows = []
    for name, outcome in peers.items():
        row = {**base, "peer": f"torch {name}"}
        if isinstance(outcome, str):
            row["note"] = "; ".join(filter(None, [base.get("note", ""), f"{name}: {outcome}"]))
        else:
            samples, far = outcome
            row |= {"peer_median_s": samples.median, "peer_q20_s": samples.quantile(0.2), "err": far}
            row |= {"peer_q80_s": samples.quantile(0.8), "peer_calls": len(samples.seconds)}
            if ours is not None:
                row["ratio"] = samples.median / ours.median
        rows.append(row)
    return rows or [base]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one line a case and peer."""
    lines = [f"{'case':44}{'pycap ms':>10}{'peer ms':>10}{'ratio':>7}{'TFLOP/s':>9}{'GB/s':>7}{'limit':>7}  peer, note"]
    for row in rows:
        cells = [f"{row['op']} {row['case']} {row['mode']} {row['dtype']}".ljust(44)]
        for key, form, scale, width in (
            ("median_s", ".3f", 1e3, 10), ("peer_median_s", ".3f", 1e3, 10), ("ratio", ".2f", 1, 7),
            ("gflops", ".1f", 1e-3, 9), ("gbps", ".0f", 1, 7), ("ceiling_pct", ".0f", 1, 6),
        ):  # fmt: skip
            value = row.get(key)
            cells.append((f"{value * scale:{form}}" if value is not None else "-").rjust(width))
        said = (row.get("peer"), row.get("peer_variant"), row.get("form"), _steps(row), row.get("note"))
        lines.append("".join(cells) + f"%  {' '.join(filter(None, said))}".rstrip())
    return "\n".join(lines)


def _steps(row: Row) -> str:
    """What a step more takes, where it was measured."""
    if row.get("step_us") is None:
        return ""
    beside = f", peer {row['peer_step_us']:.2f}" if row.get("peer_step_us") is not None else ""
    ratio = f" ({row['step_ratio']:.2f}x)" if row.get("step_ratio") is not None else ""
    return f"{row['step_us']:.2f} us a step{beside}{ratio}"
