"""The LSTM's GPU benchmark as far as it goes without a GPU: its registry, packed lengths, and what a step takes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import gpu, gpu_cases, gpu_lstm
from benchmarks.sides import Unavailable, Work
from benchmarks.timing import Budget, Samples
from pycap.backends.triton import launching

CASES = gpu_lstm.registry()
CASE = gpu_cases.sequence(4, 8, "float32", "forward", steps=5)


def test_what_is_timed_beside_cudnn():
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {f"lstm/T20-b{n}-h512/forward/{d}" for n in (64, 128, 320) for d in gpu_lstm.DTYPES}
    assert "lstm/T20-b64-h512-packed/forward+backward/bfloat16" in ids and "lstm/T20-b64-h1024/forward/float16" in ids
    own = {case.id for case in gpu_cases.registry() if case.op == "lstm"}
    assert own and own < set(ids)  # the training step's, in their places there


def test_flops_are_of_the_cells_that_run():
    assert CASE.flops == 2 * 5 * 4 * 32 * 16
    packed = gpu_cases.sequence(3, 8, "float32", "forward", steps=5, packed=True)
    assert gpu_cases.lengths(5, 3) == [5, 3, 1] and packed.flops == 2 * 9 * 32 * 16
    assert gpu_cases.lengths(20, 1) == [20]


def test_a_packed_batch_has_a_mask_and_no_gradient_past_the_end():
    made = gpu_cases.arrays(gpu_cases.sequence(3, 8, "float16", "forward+backward", steps=5, packed=True), np)
    assert made["mask"].sum(0).tolist() == [5, 3, 1] and made["mask"][0].all()
    assert not made["dy"][made["mask"] == 0].any() and made["dy"][made["mask"] != 0].all()
    assert {made[name].dtype.name for name in ("x", "dy", "w_x", "w_h")} == {"float16"}
    np.testing.assert_array_equal(made["b"], made["b"].astype(np.float16))


def test_a_step_is_what_more_steps_add():
    """At lengths that hide the host's work, all that is done once a call being in both."""
    case = gpu_cases.sequence(4, 8, "float32", "forward")
    ends = {"step, 100 steps": 0.003, "step, 200 steps": 0.005, "eager, 100 steps": 0.01, "eager, 200 steps": 0.022}
    samples = {name: Samples([seconds]) for name, seconds in ends.items()}
    row = gpu_lstm.steps_of(case, samples, "step", "eager")
    assert row == pytest.approx({"step_us": 20.0, "peer_step_us": 120.0, "step_ratio": 6.0})
    del samples["eager, 200 steps"]
    assert gpu_lstm.steps_of(case, samples, "step", "eager") == pytest.approx({"step_us": 20.0})


def test_each_form_has_a_row_and_one_that_cannot_is_no_failure(monkeypatch):
    """Every side sees each length; what is unavailable leaves a note, what breaks fails the case."""
    seen = []

    def form_work(case, arrays, xp, form):
        seen.append((form, case.shape["T"]))
        if form == "cluster":
            raise Unavailable("no clusters here")
        if form == broken:
            raise RuntimeError("out of registers")
        return Work(lambda: np.ones(3), lambda y: {"y": y})

    monkeypatch.setattr(gpu_lstm, "form_work", form_work)
    monkeypatch.setattr(gpu_lstm, "peer_work", lambda *_: Work(lambda: np.ones(3), lambda y: {"y": y}))
    monkeypatch.setattr(gpu_lstm, "_variant", lambda case, peer: "cuDNN standard")
    where = SimpleNamespace(xp=np, synchronize=lambda: None, host=np.asarray)
    broken = ""
    rows, failed = gpu_lstm.run_case(CASE, where, ["eager"], gpu.ONCE, {}, {"commit": "abc"})
    assert not failed and seen == [(form, t) for t in (5, 6, 7) for form in gpu_lstm.FORMS]
    assert [(row["form"], row["backend"]) for row in rows] == list(gpu_lstm.FORMS.items())
    assert all(row["err"] == 0 and "step_us" in row and row["commit"] == "abc" for row in rows[:3])
    assert rows[3]["note"] == "pycap: no clusters here" and "step_us" not in rows[3] and rows[3]["peer_median_s"] > 0
    broken = "step"
    rows, failed = gpu_lstm.run_case(CASE, where, ["eager"], Budget(1, 1, 0.0, 0.0), {}, {})
    assert failed and rows[0]["note"] == "pycap: RuntimeError: out of registers"


@pytest.mark.triton
def test_a_forms_work_prefers_it_only_while_it_runs(monkeypatch):
    """And is none where the form would not serve."""
    import pycap.backends.triton as kernels

    forced = []
    monkeypatch.setattr(kernels, "lstm_forward", lambda *_: forced.append(launching.forced["lstm.form"].blocks["FORM"]))
    arrays = gpu_cases.arrays(CASE, np)
    work = gpu_lstm.form_work(CASE, arrays, np, "step")
    work.run()
    assert forced == ["step"] and "lstm.form" not in launching.forced
    with pytest.raises(Unavailable, match="H = 8"):
        gpu_lstm.form_work(CASE, arrays, np, "persistent")
