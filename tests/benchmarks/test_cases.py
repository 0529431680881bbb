"""The registry of benchmarks holds the real shapes, each case once, and its selection keeps what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cases import VGG16, registry, select, vgg16_flops, vgg16_parameters
from benchmarks.sides import SIDES
from pycap.models.vgg import BLOCKS

TESTS = Path(__file__).resolve().parents[1]


def test_every_case_is_named_once() -> None:
    ids = [case.id for case in registry()]
    assert len(ids) == len(set(ids))


def test_the_convolutions_are_those_of_the_model() -> None:
    channels = [c for block in BLOCKS["vgg16"] for c in block]
    assert [k for _, _, k in VGG16.values()] == channels
    assert [c for _, c, _ in VGG16.values()] == [3, *channels[:-1]]
    assert [int(name[4]) for name in VGG16] == [i for i, block in enumerate(BLOCKS["vgg16"], 1) for _ in block]
    assert all(side == 224 >> (int(name[4]) - 1) for name, (side, _, _) in VGG16.items())


def test_work_is_counted_as_in_the_literature() -> None:
    assert vgg16_parameters() == 138_357_544  # Simonyan & Zisserman, table 2
    assert vgg16_flops(1) == pytest.approx(2 * 15.466e9, rel=1e-3)  # 15.47 G multiplications and additions up to fc7


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_convolutions_sum_up_to_the_model(batch: int) -> None:
    forward = [c for c in registry() if c.op == "conv2d" and c.shape["N"] == batch and c.dtype == "float32"]
    forward = [c for c in forward if c.mode == "forward"]
    assert len(forward) == 13
    connected = 2.0 * (25088 * 4096 + 4096 * 4096)
    assert sum(c.flops for c in forward) == pytest.approx(vgg16_flops(batch) - batch * connected)


def test_a_backward_pass_is_twice_the_work_but_for_the_first_layer() -> None:
    cases = {case.id: case for case in registry()}
    for case in cases.values():
        if case.op in ("conv2d", "linear") and case.mode == "backward":
            forward = cases[case.id.replace("backward", "forward")]
            assert case.flops == (1 if case.shape.get("C") == 3 else 2) * forward.flops
            assert case.nbytes > forward.nbytes


def test_every_case_names_tests_that_are_there() -> None:
    for case in registry():
        assert case.tests, case.id
        assert all((TESTS / path).is_file() for path in case.tests), case.id


def test_selection() -> None:
    cases = registry()
    assert select(cases) == cases
    chosen = select(cases, ops=["conv2d"], name="conv3_2-b8/", modes=["backward"], dtypes=["bfloat16"])
    assert [case.id for case in chosen] == ["conv2d/conv3_2-b8/backward/bfloat16"]
    labels = [case.label for case in select(cases, headline=True)]
    assert len(labels) == len(set(labels)) == 12 and all(labels)
    assert select(cases, ops=["lstm"], headline=True)[0].shape["N"] == 64


def test_pycap_is_the_first_side() -> None:
    assert next(iter(SIDES)) == "pycap"
