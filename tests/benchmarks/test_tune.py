"""How block sizes are tuned: the neighbours that are tried, the choice among them, and the file that keeps it."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_cases, tune
from pycap.backends.triton import launching

_rows, configs = launching.kernel_module("_rows"), launching.kernel_module("configs")
Row = launching.Row
ROW = Row({"BLOCK_M": 64, "BLOCK_N": 32, "GROUP": 8, "FLAG": True}, warps=4, stages=3, types=("bf16",), upto={"m": 32})


def test_neighbours_change_sizes_warps_and_stages_only():
    found = list(tune.neighbours(ROW))
    made = {(r.blocks["BLOCK_M"], r.blocks["BLOCK_N"], r.warps, r.stages) for r in found}
    assert len(made) == len(found) == 9 * 6 - 1
    assert (64, 32, 4, 3) not in made and (128, 16, 8, 4) in made and (64, 32, 8, 3) in made
    assert all(r.blocks["GROUP"] == 8 and r.blocks["FLAG"] is True for r in found)
    assert all((r.types, r.upto) == (("bf16",), {"m": 32}) for r in found)


def test_no_block_is_smaller_than_a_tile_of_the_tensor_cores():
    assert {r.blocks["B"] for r in tune.neighbours(Row({"B": 16}))} == {16, 32}


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [([1.0, 0.8, 0.7, 0.9], 2), ([1.0, 0.99, 0.985, 1.2], 0), ([1.0, float("inf"), 1.0, 0.5], 3)],
)
def test_the_fastest_wins_where_it_gains_two_per_cent(seconds, chosen):
    rows = [ROW, *list(tune.neighbours(ROW))[:3]]
    asked = []

    def measure(row, expected):
        asked.append(expected)
        return seconds[rows.index(row)], ["results of the present row"] if row is ROW else ["another's"]

    best, fastest, own = tune.best_of(tune.Use(None, ROW), rows[1:], measure)
    assert best is rows[chosen] and (fastest, own) == (seconds[chosen], 1.0)
    assert asked == [None, *[["results of the present row"]] * 3]


def test_each_convolution_takes_its_faster_form():
    """And the portable one, where the Hopper one is wrong (infinitely slow) or no faster."""
    cases = [c for c in gpu_cases.registry() if c.op in ("conv2d", "pool")]
    seconds = {(224, 64, 64): 0.5, (112, 64, 128): 0.99, (14, 512, 512): float("inf")}
    asked = []

    def measure(use, row, expected):
        assert use.kernel.name == "conv2d.form"
        assert all(c.op == "conv2d" and c.dtype == "bfloat16" for c in use.cases)
        (layer,) = {(c.shape["H"], c.shape["C"], c.shape["K"]) for c in use.cases}
        asked.append({c.mode for c in use.cases})
        return (seconds.get(layer, 0.9) if row.blocks["FORM"] == "hopper" else 1.0), []

    rows = tune.convolution_forms(cases, measure)
    assert asked[0] == {"forward", "block", "backward-data", "backward-weight"}
    table = {"conv2d.form": {"sm_90": tuple(rows)}}

    def form(h, c, k):
        return _rows.choose(table, "conv2d.form", "sm_90", "bf16", h=h, c=c, k=k).blocks["FORM"] == "hopper"

    assert form(224, 64, 64) and form(56, 256, 256) and form(28, 512, 512)
    assert not form(112, 64, 128) and not form(14, 512, 512) and not form(448, 64, 64)


def test_what_was_measured_replaces_the_rows(tmp_path):
    path = tmp_path / "tuned.json"
    assert _rows.tuned(path) == {}
    other = Row({"B": 1})
    _rows.write_tuned("conv2d.forward", "sm_90", [ROW, other], {"hardware": "a GPU", "commit": "abc"}, path)
    _rows.write_tuned("linear.forward", "sm_80", [other], {"hardware": "another"}, path)
    read = _rows.tuned(path)
    kept, last = read["conv2d.forward"]["sm_90"]
    assert (kept.blocks, kept.warps, kept.stages, kept.types, kept.upto) == (
        ROW.blocks, ROW.warps, ROW.stages, ROW.types, ROW.upto,
    )  # fmt: skip
    assert last.blocks == {"B": 1} and set(read) == {"conv2d.forward", "linear.forward"}
    assert json.loads(path.read_text())["conv2d.forward"]["sm_90"]["hardware"] == "a GPU"
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.json"]


def test_tuned_kernels_are_kernels():
    """kernels/tuned.json, where there is one, names kernels of the table only, with the rows' own constants."""
    for kernel, by_arch in _rows.tuned().items():
        constants = {frozenset(row.blocks) for rows in configs.ROWS[kernel].values() for row in rows}
        assert len(constants) == 1, f"{kernel}: tuned.json gives other constants than configs.py"
        assert set(by_arch) <= {"sm_80", "sm_90"}
