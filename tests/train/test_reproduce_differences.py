"""How rows of logs, tensors and records are compared, and what rounding may explain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pycap.reproduce.changes import changes
from pycap.reproduce.differences import Rounding, compare_arrays, compare_rows, relative, same

ROW = {
    "kind": "train",
    "step": 3,
    "epoch": 1,
    "loss": 2.0,
    "tokens": 90,
    "lr": 0.1,
    "norms": {"cnn": 0.5},
    "waited": 0.1,
}


def judged(*rows: tuple[int, float], precision: str = "fp32", quantity: str = "loss") -> list[str]:
    """What is said of rows of these steps, whose losses are so far apart relatively."""
    rounding = Rounding(precision)
    told = []
    for step, apart in rows:
        row = {**ROW, "step": step}
        told.append(rounding.judge(row, compare_rows(row, {**row, quantity: row.get(quantity, 1.0) * (1 - apart)})))
    return told


def test_a_row_is_compared_bit_for_bit_but_for_its_times() -> None:
    assert compare_rows(ROW, {**ROW, "waited": 0.9, "images_per_s": 3.0}) == []
    (found,) = compare_rows(ROW, {**ROW, "norms": {"cnn": math.nextafter(0.5, 1)}})
    assert (found.step, found.epoch, found.quantity, found.then) == (3, 1, "norms.cnn", 0.5)
    assert found.relative is not None and 0 < found.relative < 3e-16
    assert [each.quantity for each in compare_rows(ROW, {**ROW, "step": 4})] == ["step"]
    assert [each.then for each in compare_rows({}, ROW)] == [None] * 7  # `waited` apart


def test_values_are_the_same_as_they_are_written() -> None:
    assert same(math.nan, math.nan) and not same(0.0, -0.0) and not same(1, 1.0) and not same(None, 0)
    assert (
        relative(2.0, 1.0) == 0.5
        and relative(0.0, -0.0) == 0.0
        and relative("a", 1.0) is None
        and relative(True, 1) is None
    )
    assert relative(math.nan, 1.0) == math.inf and relative(math.nan, math.nan) == 0.0


def test_rounding_begins_small_and_grows_step_by_step() -> None:
    assert judged((1, 1e-7), (2, 1e-6), (3, 1e-5)) == ["within"] * 3
    assert judged((1, 0.0), (2, 3e-4)) == ["within", "beyond"]  # from nothing
    assert judged((1, 1e-4)) == ["within"] and judged((1, 2e-4)) == ["beyond"]
    assert judged((1, 1e-4), (2, 1e-2)) == ["within", "beyond"]  # a hundredfold at once
    assert judged((1, 1e-4), (2, 2e-3), (3, 5e-2), (4, 0.5)) == ["within", "within", "grown", "grown"]
    assert judged((10, 2e-3)) == ["within"] and judged((10, 0.5)) == ["beyond"]  # nine steps of which no row tells
    assert judged((1, 2e-3), precision="bf16") == ["within"]


@pytest.mark.parametrize("quantity", ["tokens", "lr", "epoch"])
def test_what_is_not_summed_is_never_rounded(quantity: str) -> None:
    assert judged((1, 1e-9), quantity=quantity) == ["beyond"]


def test_scores_of_captions_are_not_judged_and_other_things_are_no_rounding() -> None:
    assert judged((1, 0.5), quantity="BLEU-4") == ["within"]
    row = {**ROW, "text": "a"}
    assert Rounding("fp32").judge(row, compare_rows(row, {**row, "text": "b"})) == "beyond"
    assert Rounding("fp32").judge(ROW, compare_rows(ROW, {**ROW, "loss": math.nan})) == "beyond"


def test_tensors_are_compared_by_their_bits() -> None:
    one = {"a": np.array([[1, -4.0], [0, np.nan]], np.float32), "b": np.arange(3.0), "c": np.array(2)}
    assert compare_arrays(one, {name: array.copy() for name, array in one.items()}) == []
    other = {"a": np.array([[1, -4.5], [-0.0, np.nan]], np.float32), "b": np.arange(3, dtype=np.float32), "d": one["b"]}
    found = {each.name: each for each in compare_arrays(one, other)}
    assert found.keys() == {"a", "b", "c", "d"}
    assert (found["a"].values, found["a"].of, found["a"].largest, found["a"].relative) == (2, 4, 0.5, 0.125)
    assert all(found[name].relative == math.inf for name in "bcd")
    assert [
        each.name
        for each in compare_arrays({"x": np.ones(2), "y": np.ones(2)}, {"x": np.ones(2) + 1e-9, "y": np.zeros(2)})
    ] == [
        "y",
        "x",
    ]


def test_what_matters_most_comes_first_and_places_are_no_change() -> None:
    then = {
        "time": "a", "cwd": "/a", "seed": 1, "packages": {"numpy": "1", "h5py": "3"}, "kernels": {"threads": 1, "isa": "v3"},
        "machine": {"host": "a", "cpu": "x"}, "config": {"seed": 1, "out_dir": "a", "threads": 0}, "files": {},
        "data": {"folders": ["/a"], "digest": "a"},
    }  # fmt: skip
    now = {
        "time": "b", "cwd": "/b", "seed": 1, "packages": {"numpy": "2", "pillow": "9"}, "kernels": {"threads": 2, "isa": "v3"},
        "machine": {"host": "b", "cpu": "x"}, "config": {"seed": 1, "out_dir": "b", "threads": 2}, "files": {},
        "data": {"folders": ["/b"], "digest": "b"},
    }  # fmt: skip
    assert changes(then, then) == []
    assert [(each.what, each.then, each.now, each.matters) for each in changes(then, now)] == [
        ("package numpy", "1", "2", "yes"),
        ("data", "a", "b", "yes"),
        ("package pillow", None, "9", "yes"),
        ("threads", 1, 2, "rounding"),
        ("package h5py", "3", None, "no"),
    ]
