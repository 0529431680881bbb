"""Steps that several GPUs make together: one process's to rounding, and recorded the launched ones bit for bit, whatever
happens on one of them. GPUs are processes with a stand-in each, whose NCCL refuses what NCCL's guide does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends
from pycap.distributed.device_reducer import DeviceReducer
from pycap.training import plan
from tests.processes import Processes
from tests.train import rank_steps
from tests.train.runs import rows, tiny
from tests.train.test_step import OPTIONS, VOCABULARY, trainer

#: Images of a batch, steps of its captions: shares of 2 and 2, 1 and 2, 0 and 1; the ranks' captions differ in length.
SIZES = [(4, 9), (3, 9), (4, 5), (1, 7)]


@pytest.fixture(scope="module")
def pair() -> Iterator[Processes]:
    made = Processes(2)
    yield made
    made.close()


def both(pair: Processes, part: Any, *arguments: object) -> dict[str, Any]:
    """What both ranks have come to, which is the same."""
    first, second = pair.run(part, *arguments)
    assert first["losses"] == second["losses"] and first["weights"] == second["weights"]
    assert first["graphs"] == second["graphs"]
    return {**first, "said": [first["said"], second["said"]]}


@cache
def alone(
    sizes: tuple[tuple[int, int], ...] = tuple(SIZES), epochs: tuple[int, ...] = (0,), **options: Any
) -> list[float]:
    """The losses of one process."""
    with backends.use("reference"):
        return rank_steps.losses(trainer(True, **options), list(sizes), epochs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_losses_are_those_of_one_process(pair: Processes, options: dict[str, Any]) -> None:
    options = options | {"epsilon": 1e-3}  # else a first update is the sign of a gradient that may be rounding alone
    late = both(pair, rank_steps.steps, options, SIZES)
    assert late["losses"] == pytest.approx(alone(**options), rel=2e-6)
    assert late["graphs"] == len(SIZES) and late["said"] == [[], []]
    early = both(pair, rank_steps.steps, options, SIZES, "early")
    launched = both(pair, rank_steps.steps, options, SIZES, "late", False)
    assert late["losses"] == early["losses"] == launched["losses"] and launched["graphs"] == 0
    assert late["weights"] == early["weights"] == launched["weights"]


def test_bfloat16_recorded_is_launched(pair: Processes) -> None:
    options = {"precision": "bf16", "micro_batch": 1}
    late = both(pair, rank_steps.steps, options, SIZES)
    assert late["losses"][0] == pytest.approx(alone(**options)[0], rel=2e-6)  # the same sums of the same images' losses
    hows: list[tuple[object, bool]] = [("early", True), (0, True), (1, True), ("late", False)]
    for order, recorded in hows:
        other = both(pair, rank_steps.steps, options, SIZES, order, recorded)
        assert other["losses"] == late["losses"] and other["weights"] == late["weights"]
    assert late["graphs"] == len(SIZES) and late["said"] == [[], []]


def test_what_is_learned_changes(pair: Processes) -> None:
    """Words first, then captions of a frozen CNN, then all: other buckets, and the first ones again."""
    options: dict[str, Any] = {"pretrain_words": 1, "finetune_cnn_after": 1}
    sizes, epochs = ((4, 9),), (0, 1, 2, 0)
    found = both(pair, rank_steps.steps, options, list(sizes), "late", True, epochs)
    assert found["losses"] == pytest.approx(alone(sizes, epochs, **options), rel=2e-6)


SELF_CRITICAL = {
    "stage": "scst", "datasets": "coco", "learning_rate": 1e-4, "drop_prob_lm": 0.0, "drop_prob_cnn": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "narrow"),
    [({}, False), ({}, True), (SELF_CRITICAL, False)],
    ids=["captions", "one GPU has less memory", "scst"],
)
def test_a_run_is_one_processes(
    pair: Processes, data: Path, trained: Path, tmp_path: Path, options: dict[str, object], narrow: bool
) -> None:
    """Read, trained, validated, saved: the log of a run on two GPUs. Of 24 images in batches of 5 the last has 4."""
    options = options | ({"init_from": trained} if options else {}) | {"batch_size": 5, "epochs": 1, "optimizer": "sgd"}
    with backends.use("reference"):
        pycap.train(tiny(data, tmp_path / "one", backend="reference", **options))
    pair.run(rank_steps.run, tiny(data, tmp_path / "two", device="cuda", backend="reference", **options), narrow)
    for kind, names in (("train", ("step", "loss", "images", "lr")), ("val", ("step", "epoch", "val_loss", "BLEU-4"))):
        expected, got = (
            [[row[name] for name in names if name in row] for row in rows(tmp_path / run, kind)]
            for run in ("one", "two")
        )
        assert len(expected) == len(got) > 0 and len(got[0]) >= 3
        for a, b in zip(expected, got, strict=True):
            assert b == pytest.approx(a, rel=1e-5, abs=1e-6)


# Ranks that are not alike ---------------------------------------------------------------------------------------------


def test_where_one_cannot_record_none_does(pair: Processes) -> None:
    found = both(pair, rank_steps.one_cannot_record, SIZES)
    assert found["losses"] == pytest.approx(alone(), rel=2e-6) and found["graphs"] == 0
    own, other = found["said"]
    assert len(own) == len(other) == len(SIZES)
    assert all("another rank cannot record it" in line for line in own)
    assert all("not in a capture" in line for line in other)


def test_one_that_keeps_to_no_plan_takes_part(pair: Processes) -> None:
    found = both(pair, rank_steps.one_keeps_to_no_plan, SIZES)
    assert found["losses"] == pytest.approx(alone(), rel=2e-6) and found["graphs"] == len(SIZES)
    own, other = found["said"]
    assert own == [] and len(other) == len(SIZES) and all("memory from the pool" in line for line in other)


def test_an_arena_that_grows_on_one_is_forgotten_by_all(pair: Processes) -> None:
    """Shares of 2 and 2, then of 2 and 3: rank 1's arena grows, and the first shape begins anew on both."""
    sizes = ((4, 9), (5, 9))
    found = both(pair, rank_steps.steps, {}, list(sizes))
    assert found["losses"] == pytest.approx(alone(sizes), rel=2e-6) and found["graphs"] == 2


def test_an_array_that_moves_on_one_is_recorded_anew_by_all(pair: Processes) -> None:
    found = both(pair, rank_steps.one_moves_an_array, [(4, 9)])
    assert found["losses"] == pytest.approx(alone(((4, 9),), (0, 0, 0)), rel=2e-6) and found["graphs"] == 1


def test_a_step_that_fails_on_one_changes_nothing_on_all(pair: Processes) -> None:
    first, second = pair.run(rank_steps.one_diverges)
    assert first == second
    said, unchanged, loss = first
    assert "the loss is inf" in said or "the loss is nan" in said
    assert all(f"0-{image}.jpg" in said for image in range(4)) and unchanged and np.isfinite(loss)


# What is exchanged, and when ------------------------------------------------------------------------------------------


def test_buckets_go_while_backward_goes_on(pair: Processes) -> None:
    """The loss, then the buckets: recorded, before the last gradient; launched, after it. Dry, nothing."""
    for found in pair.run(rank_steps.order_of_work):
        sums = found["recorded"].count("sum")
        assert sums == found["launched"].count("sum") > 4 and found["dry"] == ["traced"] * len(found["dry"]) != []
        assert found["launched"] == [*["gradient"] * found["launched"].count("gradient"), *["sum"] * sums]
        assert found["recorded"][0] == "sum" and found["recorded"].index("gradient") >= 3
        assert found["recorded"][-1] == "sum"


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_sums_are_within_the_bound(pair: Processes, half: bool, overlaps: bool) -> None:
    sizes = [3, 700, 1, 2000, 5]
    first, second = pair.run(rank_steps.reduced, half, sizes, overlaps)
    for number, (size, mine, other) in enumerate(zip(sizes, first, second, strict=True)):
        a, b = (rank_steps.gradient(rank, number, size) for rank in range(2))
        assert mine.tobytes() == other.tobytes()
        if not half:
            assert mine.tobytes() == (a + b).tobytes()
            continue
        bound = ((1 + 2**-8) ** 2 - 1) * (np.abs(a).astype(np.float64) + np.abs(b))
        error = np.abs(mine - (a.astype(np.float64) + b))
        assert (error <= bound).all()
        assert size < 100 or (error > bound / 8).any()  # it was rounded: the bound is no loose one


@pytest.mark.parametrize("options", [{}, {"micro_batch": 1, "precision": "bf16"}, {"freeze_cnn": True}])
def test_the_arena_is_as_large_as_the_plan_said(
    pair: Processes, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Gradients in bfloat16 are among what is planned."""
    monkeypatch.setattr(plan, "DeviceReducer", partial(DeviceReducer, bucket_bytes=rank_steps.BUCKET))
    with backends.use("reference"):
        config = trainer(True, **options).config
        planned = plan.plan(config, VOCABULARY, ranks=2)
    assert planned.exchange > 0 and planned.batch_size == 2
    assert {each["arena"] for each in pair.run(rank_steps.steps, options, [(4, 9)])} == {planned.activations}


# Errors ---------------------------------------------------------------------------------------------------------------


def test_a_rank_without_nccl_is_named_on_all(pair: Processes) -> None:
    said = pair.run(rank_steps.without_nccl)
    assert said[0] == said[1] and "rank 1: CuPy finds no NCCL; pip install" in said[0] and "rank 0" not in said[0]


def test_a_rank_that_left_is_heard_of(pair: Processes) -> None:
    said, _ = pair.run(rank_steps.deserted)
    assert "rank 0 of 2" in said and "NCCL_ERROR_REMOTE" in said and "--resume" in said
