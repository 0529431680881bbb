"""The GPU benchmarks as far as they go without a GPU: the registry, rows from stubs, the table, turns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import gpu, gpu_cases, gpu_pycap, gpu_turns, tune
from benchmarks.cases import Case, select
from benchmarks.sides import Work
from benchmarks.timing import Samples
from pycap import device
from pycap.backends import reference

SMALL = gpu_cases.registry(2, 32)


def test_the_registry_has_real_sizes_and_each_case_once():
    cases = gpu_cases.registry()
    assert len({case.id for case in cases}) == len(cases)
    (block,) = select(cases, name="conv3_3-b64/block/bfloat16")
    assert block.shape == {"N": 64, "H": 56, "C": 256, "K": 256, "pool": 1}
    assert block.flops == 2 * 64 * 56 * 56 * 256 * 256 * 9 and block.peers == ("eager", "compile")
    assert {case.op for case in cases} == {
        "conv2d", "linear", "softmax_xent", "topk", "lstm", "embedding", "pool", "adam",
    }  # fmt: skip


@pytest.mark.parametrize("case", [c for c in SMALL if c.dtype != "bfloat16"], ids=lambda case: case.id)
def test_every_case_runs_on_a_backend_for_arrays_of_numpy(case):
    """pycap's side calls the primitives as they are: here those of the reference."""
    work = gpu_pycap.prepare(case, gpu_cases.arrays(case, np), np, reference)
    outputs = work.outputs(work.run())
    assert outputs
    for name, array in outputs.items():
        assert np.isfinite(array).all() and np.abs(array).max() > 0, name


def _samples(*seconds):
    return Samples(list(seconds))


CASE = Case("conv2d", "small", "block", "bfloat16", {}, 4e9, 1e6, ("eager", "compile"))


def test_a_row_has_the_ratio_the_rates_and_what_is_missing():
    peers = {"eager": (_samples(0.003, 0.004, 0.005), 0.01), "compile": "no compiler"}
    ceilings = {"bfloat16": 8e12, "copy": 1e12}
    eager, compiled = gpu.rows_of(CASE, _samples(0.002, 0.001, 0.002), peers, "", ceilings, {"commit": "abc"})
    assert (eager["peer"], eager["ratio"], eager["median_s"], eager["err"]) == ("torch eager", 2.0, 0.002, 0.01)
    assert eager["gflops"] == 2000.0 and eager["ceiling_pct"] == 25.0 and eager["commit"] == "abc"
    assert compiled["note"] == "compile: no compiler" and "ratio" not in compiled
    (alone,) = gpu.rows_of(CASE, None, {}, "it broke", ceilings, {})
    assert alone["note"] == "pycap: it broke" and "median_s" not in alone


def test_a_side_that_fails_leaves_a_note_and_the_others_their_times(monkeypatch):
    def broken(*arguments):
        raise ValueError("first line\nout of registers")

    monkeypatch.setattr(gpu_pycap, "prepare", broken)
    monkeypatch.setattr(gpu_cases, "arrays", lambda case, xp: {})
    peer = SimpleNamespace(prepare=lambda case, arrays, name: Work(lambda: np.ones(3), lambda y: {"y": y}))
    monkeypatch.setitem(__import__("sys").modules, "benchmarks.peers.torch_gpu", peer)
    monkeypatch.setattr("benchmarks.peers.torch_gpu", peer, raising=False)
    where = SimpleNamespace(xp=np, synchronize=lambda: None, host=np.asarray)
    ours, found, problem = gpu.run_case(CASE, where, ["eager"], None, gpu.ONCE)
    assert ours is None and problem == "ValueError: out of registers"
    assert found["eager"][0].seconds and "compile" not in found


def test_a_turn_waits_for_the_device_before_and_after():
    said = []
    turn = gpu_turns.timed(lambda: said.append("run"), lambda: said.append("wait"))
    (seconds,) = turn(3)
    assert said == ["wait", "run", "run", "run", "wait"] and seconds > 0


def test_the_table_shows_what_there_is():
    peers = {"eager": (_samples(0.004), 0.01), "compile": "no compiler"}
    rows = gpu.rows_of(CASE, _samples(0.002), peers, "", {}, {})
    header, first, second = gpu.table([{**dict.fromkeys(("peer", "note")), **row} for row in rows]).splitlines()
    assert "ratio" in header and "2.00" in first and "torch eager" in first
    assert second.rstrip().endswith("torch compile compile: no compiler")


@pytest.mark.parametrize("program", [gpu, tune])
def test_without_a_gpu_it_says_so(monkeypatch, capsys, program):
    monkeypatch.setattr(device, "obstacle", lambda: "no NVIDIA driver")
    with pytest.raises(SystemExit):
        program.main(["--op", "topk"])
    assert "error: device cuda cannot be used: no NVIDIA driver" in capsys.readouterr().err
