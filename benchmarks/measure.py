"""Runs cases: opens the sides' processes, lets them take turns, and makes rows of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import machine, sides
from benchmarks.cases import Case
from benchmarks.results import Row
from benchmarks.sides import Unavailable
from benchmarks.timing import Budget, Samples, alternate
from benchmarks.worker import Remote, SideError, serve

#: Distributions whose versions a row tells.
DISTRIBUTIONS = (
    "pycap-captioning",
    "numpy",
    "scipy-openblas32",
    "ml_dtypes",
    "torch",
    "onnxruntime",
    "openvino",
    "ncnn",
)


@dataclass
class Outcome:
    """What one side came to on one case. reason: why it has no samples, else empty."""

    backend: str = ""
    variant: str = ""
    samples: Samples = field(default_factory=Samples)
    outputs: dict[str, Any] = field(default_factory=dict)
    peak_mib: float | None = None
    reason: str = ""


class Sides:
    """The processes of the sides, opened when first needed.

    open_remote(name): starts one (tests give stubs).
    """

    def __init__(self, threads: int, open_remote: Callable[[str], Any] | None = None) -> None:
        self._open = open_remote or (lambda name: Remote(name, serve, name, threads))
        self._remotes: dict[str, Any] = {}
        self.backends: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def get(self, name: str) -> Any:
        """The side's remote. Unavailable where it cannot start."""
        if name in self.missing:
            raise Unavailable(self.missing[name])
        if name not in self._remotes:
            remote = self._open(name)
            try:
                self.backends[name] = remote.receive()
            except Unavailable as reason:
                self.missing[name] = str(reason)
                remote.close()
                raise
            self._remotes[name] = remote
        return self._remotes[name]

    def drop(self, name: str) -> None:
        """End a side's process; the next `get` starts another."""
        remote = self._remotes.pop(name, None)
        if remote is not None:
            remote.close()

    def close(self) -> None:
        for name in list(self._remotes):
            self.drop(name)


def measure_ceilings(opened: Sides, names: Sequence[str], say: Callable[[str], None]) -> dict[str, float]:
    """The machine's limits: FLOP/s of a 4096^3 gemm by dtype and bytes/s of a copy, the best that any side reaches."""
    best: dict[str, float] = {}
    for name in names:
        say(f"ceilings: {sides.SIDES[name][2]}")
        try:
            seconds = opened.get(name).call("ceilings")
        except (Unavailable, SideError) as error:
            say(f"{name}: {_last_line(error)}")
            continue
        for what, value in seconds.items():
            amount = 2.0 * 2**29 if what == "copy" else 2.0 * 4096**3
            best[what] = max(best.get(what, 0.0), amount / value)
    return best


def groups(case: Case, names: Sequence[str], gib: float) -> list[list[str]]:
    """Who is in memory together: all where they fit into `gib`, else pycap with one peer at a time."""
    if case.gib * len(names) <= gib or len(names) <= 2:
        return [list(names)]
    return [[names[0], name] for name in names[1:]]


def run_case(
    case: Case, opened: Sides, names: Sequence[str], budget: Budget, say: Callable[[str], None]
) -> dict[str, Outcome]:
    """Prepare the sides one after the other, on a quiet machine, then let them take turns."""
    outcomes = {name: Outcome() for name in names}
    first: dict[str, float] = {}
    for name in names:
        say(f"{case.id}: {sides.SIDES[name][2]} gets ready")
        outcome = outcomes[name]
        try:
            remote = opened.get(name)
            outcome.variant, first[name] = remote.call("prepare", case)
            outcome.outputs = remote.call("outputs")
            remote.call("forget_peak")
        except (Unavailable, SideError) as error:
            _failed(opened, name, outcome, error)
            first.pop(name, None)
        outcome.backend = opened.backends.get(name, name)

    def turn(name: str) -> Callable[[int], list[float]]:
        def work(calls: int) -> list[float]:
            if outcomes[name].reason:
                return []
            try:
                return opened.get(name).call("turn", calls)
            except (Unavailable, SideError) as error:
                _failed(opened, name, outcomes[name], error)
                return []

        return work

    def progress(round_: int, samples: Mapping[str, Samples]) -> None:
        parts = [f"{n} {s.median * 1e3:.3g} ms" for n, s in samples.items() if s.seconds]
        say(f"{case.id}: round {round_ + 1}: {', '.join(parts)}")

    for name, samples in alternate({n: turn(n) for n in first}, first, budget, progress).items():
        outcomes[name].samples = samples
        if not outcomes[name].reason:
            outcomes[name].peak_mib = opened.get(name).call("peak_mib")
            opened.get(name).call("release")
    return outcomes


def _failed(opened: Sides, name: str, outcome: Outcome, error: Exception) -> None:
    outcome.reason = _last_line(error)
    if isinstance(error, SideError):  # whatever state its process is in, the next case gets a new one
        opened.drop(name)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def rows_of(
    case: Case, outcomes: Mapping[str, Outcome], ceilings: Mapping[str, float], about: Mapping[str, Any]
) -> Iterator[Row]:
    """One row for each peer, or a single one where there is no peer. about: commit, hardware, versions."""
    names = list(outcomes)
    ours = outcomes[names[0]]
    base: Row = {"op": case.op, "case": case.name, "mode": case.mode, "dtype": case.dtype, "backend": ours.backend}
    base |= {"flops": case.flops, "bytes": case.nbytes, "ceilings": dict(ceilings), "label": case.label, **about}
    if ours.samples.seconds:
        s = ours.samples
        base |= {"median_s": s.median, "q20_s": s.quantile(0.2), "q80_s": s.quantile(0.8), "calls": len(s.seconds)}
        base |= {"peak_mib": ours.peak_mib, **rates(case, s.median, ceilings)}
    notes = [f"pycap: {ours.reason}"] if ours.reason else []
    if len(names) == 1:
        yield {**base, "note": "; ".join(notes)}
    for name in names[1:]:
        peer = outcomes[name]
        row = {**base, "peer": peer.backend, "peer_variant": peer.variant}
        said = [*notes, *([f"{name}: {peer.reason}"] if peer.reason else [])]
        if peer.samples.seconds:
            s = peer.samples
            row |= {"peer_median_s": s.median, "peer_q20_s": s.quantile(0.2), "peer_q80_s": s.quantile(0.8)}
            row |= {"peer_calls": len(s.seconds), "peer_peak_mib": peer.peak_mib}
            if ours.samples.seconds:
                row["ratio"] = s.median / ours.samples.median
            if ours.outputs and peer.outputs:
                try:
                    row["err"] = sides.distance(ours.outputs, peer.outputs)
                except ValueError as error:
                    said.append(f"results cannot be compared: {error}")
        yield {**row, "note": "; ".join(said)}


def rates(case: Case, seconds: float, ceilings: Mapping[str, float]) -> Row:
    """gflops, gbps and ceiling_pct of a case that took `seconds`."""
    found: Row = {}
    least = []
    if case.flops:
        found["gflops"] = case.flops / seconds / 1e9
        if case.dtype in ceilings:
            least.append(case.flops / ceilings[case.dtype])
    if case.nbytes:
        found["gbps"] = case.nbytes / seconds / 1e9
        if "copy" in ceilings:
            least.append(case.nbytes / ceilings["copy"])
    if least:
        found["ceiling_pct"] = 100 * max(least) / seconds
    return found


def about_this_run(threads: int) -> dict[str, Any]:
    """What every row says of where it was measured."""
    plural = "" if threads == 1 else "s"
    return {
        "commit": machine.commit(),
        "hardware": f"{machine.cpu_name()}, {threads} thread{plural}",
        "versions": machine.versions(DISTRIBUTIONS),
    }
