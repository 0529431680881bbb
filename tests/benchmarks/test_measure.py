"""A case's rows: ratios, rates and errors are right, and a side that is missing, refuses or dies leaves its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.measure import Sides, groups, measure_ceilings, rates, rows_of, run_case
from benchmarks.results import KEYS
from benchmarks.timing import Budget
from tests.benchmarks.stubs import CASE, StubRemote

BUDGET = Budget(rounds=3, most_rounds=3, seconds=0, turn_s=0)
ABOUT = {"commit": "abc", "hardware": "a CPU, 2 threads", "versions": {"python": "3"}}


def rows(*remotes: StubRemote, ceilings: dict[str, float] | None = None, case: Any = CASE) -> list[dict[str, Any]]:
    stubs = {remote.name: remote for remote in remotes}
    opened = Sides(2, stubs.__getitem__)
    outcomes = run_case(case, opened, list(stubs), BUDGET, lambda text: None)
    return list(rows_of(case, outcomes, ceilings or {}, ABOUT))


def test_a_row_says_all() -> None:
    ours, peer = StubRemote("pycap", 0.5, [3.0, 4.0]), StubRemote("torch", 1.25, [3.0, 4.5])
    [row] = rows(ours, peer, ceilings={"float32": 1.6e7, "copy": 1e7})
    assert set(row) <= set(KEYS)
    assert (row["median_s"], row["q20_s"], row["q80_s"], row["peer_median_s"]) == (0.5, 0.5, 0.5, 1.25)
    assert row["ratio"] == 2.5
    assert row["gflops"] == pytest.approx(4e6 / 0.5 / 1e9)
    assert row["gbps"] == pytest.approx(2e6 / 0.5 / 1e9)
    assert row["ceiling_pct"] == pytest.approx(100 * 0.25 / 0.5), "the gemm takes 0.25 s, the copy 0.2 s"
    assert row["err"] == pytest.approx(0.5 / (9 + 20.25) ** 0.5)
    assert (row["backend"], row["peer"], row["peer_variant"]) == ("pycap 1.0", "torch 1.0", "plain")
    assert (row["commit"], row["label"], row["note"]) == ("abc", "tiny work", "")


def test_sides_alternate_after_all_are_ready() -> None:
    log: list[tuple[str, str]] = []
    rows(StubRemote("pycap", 1.0, log=log), StubRemote("torch", 1.0, log=log))
    turns = [name for name, method in log if method == "turn"]
    assert turns == ["pycap", "torch", "torch", "pycap", "pycap", "torch"]
    assert log.index(("torch", "prepare")) < log.index(("pycap", "turn"))


def test_a_missing_peer_is_said_and_the_run_goes_on() -> None:
    missing = StubRemote("openvino", 1.0, missing="openvino is not installed")
    first, second = rows(StubRemote("pycap", 0.5), missing, StubRemote("torch", 1.0))
    assert first["note"] == "openvino: openvino is not installed"
    assert first["median_s"] == 0.5 and first["peer_median_s" if "peer_median_s" in first else "note"]
    assert first.get("peer_median_s") is None and first.get("ratio") is None
    assert second["ratio"] == 2.0 and second["note"] == ""
    assert missing.closed


def test_pycap_that_cannot_leaves_the_peers_time() -> None:
    [row] = rows(StubRemote("pycap", 0.5, refuses="no bfloat16 kernel"), StubRemote("torch", 1.0))
    assert row["note"] == "pycap: no bfloat16 kernel"
    assert row["peer_median_s"] == 1.0
    assert row.get("median_s") is None and row.get("ratio") is None and row.get("err") is None


def test_a_side_that_dies_keeps_its_samples_and_is_started_anew() -> None:
    started: list[StubRemote] = []

    def start(name: str) -> StubRemote:
        started.append(StubRemote(name, 1.0, breaks=1 if name == "torch" else None))
        return started[-1]

    opened = Sides(2, start)
    for _ in range(2):
        outcomes = run_case(CASE, opened, ["pycap", "torch"], BUDGET, lambda text: None)
        assert outcomes["torch"].reason == "ValueError: broken"
        assert len(outcomes["torch"].samples.seconds) == 1
        assert len(outcomes["pycap"].samples.seconds) == 3
    assert [remote.name for remote in started] == ["pycap", "torch", "torch"]
    opened.close()
    assert all(remote.closed for remote in started)


def test_results_of_other_shapes_are_said_to_be() -> None:
    [row] = rows(StubRemote("pycap", 0.5, [1.0]), StubRemote("torch", 1.0, [1.0, 2.0]))
    assert "cannot be compared" in row["note"] and row.get("err") is None


def test_without_peers_there_is_one_row() -> None:
    [row] = rows(StubRemote("pycap", 0.5))
    assert row["median_s"] == 0.5 and row.get("peer") is None


def test_rates_without_work_or_ceilings() -> None:
    assert rates(replace(CASE, flops=0.0, nbytes=0.0), 1.0, {"float32": 1.0, "copy": 1.0}) == {}
    assert "ceiling_pct" not in rates(CASE, 1.0, {})
    assert rates(CASE, 1.0, {"copy": 1e6})["ceiling_pct"] == 200


def test_ceilings_are_the_best_of_the_sides() -> None:
    stubs = {"pycap": StubRemote("pycap", 2.0), "torch": StubRemote("torch", 1.0)}
    found = measure_ceilings(Sides(2, stubs.__getitem__), ["pycap", "torch"], lambda text: None)
    assert found == {"float32": 2.0 * 4096**3, "copy": 2.0**30 / 2}


def test_sides_that_do_not_fit_into_memory_come_in_pairs() -> None:
    case = replace(CASE, gib=2.0)
    assert groups(case, ["pycap", "torch", "ncnn"], 6.0) == [["pycap", "torch", "ncnn"]]
    assert groups(case, ["pycap", "torch", "ncnn"], 5.9) == [["pycap", "torch"], ["pycap", "ncnn"]]
    assert groups(case, ["pycap", "torch"], 1.0) == [["pycap", "torch"]]
    assert groups(case, ["pycap"], 1.0) == [["pycap"]]
