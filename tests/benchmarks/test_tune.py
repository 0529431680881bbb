"""How block sizes are tuned: the neighbours that are tried, the choice among them, and the file that keeps it."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_cases, tune
from benchmarks.cases import Case
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


def chosen_form(forms, rows, element, **sizes):
    """What the rows say on sm_90."""
    return _rows.choose({forms.name: {"sm_90": tuple(rows)}}, forms.name, "sm_90", element, **sizes).blocks["FORM"]


def test_each_convolution_takes_its_fastest_form():
    """And the portable one, where another is wrong (infinitely slow) or no faster."""
    (forms,) = (forms for forms in tune.FORMS if forms.name == "conv2d.form")
    cases = [c for c in gpu_cases.registry() if c.op in ("conv2d", "pool")]
    hopper = {(224, 64, 64): 0.5, (112, 64, 128): 0.99, (14, 512, 512): float("inf")}
    asked = {}

    def measure(use, row, expected):
        assert use.kernel.name == "conv2d.form" and all(c.op == "conv2d" for c in use.cases)
        (layer,) = {(c.shape["H"], c.shape["C"], c.shape["K"]) for c in use.cases}
        dtypes = {c.dtype for c in use.cases}
        asked.setdefault((*sorted(dtypes), *layer), []).append((row.blocks["FORM"], {c.mode for c in use.cases}))
        if "bfloat16" not in dtypes:
            return {"portable": 1.0, "hopper": 1.0, "cuda": 0.8}[row.blocks["FORM"]], []
        return {"portable": 1.0, "hopper": hopper.get(layer, 0.9), "cuda": 0.95}[row.blocks["FORM"]], []

    rows = tune.form_rows(forms, cases, "sm_90", True, measure)
    tried = asked["bfloat16", 224, 64, 64]
    assert [form for form, _ in tried] == ["portable", "hopper", "cuda"]
    assert all(modes == {"forward", "block", "backward-data", "backward-weight"} for _, modes in tried)
    of = {(h, c, k): chosen_form(forms, rows, "bf16", h=h, c=c, k=k) for h, c, k in [
        (224, 64, 64), (56, 256, 256), (112, 64, 128), (14, 512, 512), (448, 64, 64), (14, 3, 64)
    ]}  # fmt: skip
    assert of == {
        (224, 64, 64): "hopper", (56, 256, 256): "hopper", (112, 64, 128): "cuda", (14, 512, 512): "cuda",
        (448, 64, 64): "portable", (14, 3, 64): "portable",
    }  # fmt: skip
    assert chosen_form(forms, rows, "fp16", h=224, c=64, k=64) == "hopper"
    assert chosen_form(forms, rows, "fp32", h=224, c=64, k=64) == (
        "cuda" if any("bfloat16" not in key for key in asked) else "portable"
    )


@pytest.mark.parametrize(
    ("arch", "cuda", "tried"),
    [
        ("sm_90", True, ["step", "persistent", "cooperative", "cluster"]),
        ("sm_80", True, ["step", "persistent", "cooperative"]),
        ("sm_90", False, ["step", "persistent"]),
    ],
)
def test_each_sequence_takes_its_fastest_form(arch, cuda, tried):
    (forms,) = (forms for forms in tune.FORMS if forms.name == "lstm.form")
    small, large = (
        Case("lstm", f"b{n}", mode, "float32", {"T": 20, "N": n, "I": 512, "H": hidden}, 1.0, 1.0)
        for n, hidden, mode in ((64, 512, "forward"), (320, 512, "forward+backward"))
    )
    forms_tried = []

    def measure(use, row, expected):
        forms_tried.append(row.blocks["FORM"])
        return 0.5 if row.blocks["FORM"] == tried[-1] and use.cases == [small] else 1.0, []

    rows = tune.form_rows(forms, [large, small, Case("linear", "", "", "float32", {}, 1.0, 1.0)], arch, cuda, measure)
    assert forms_tried == 2 * tried
    assert chosen_form(forms, rows, "fp32", hidden=512, n=33) == tried[-1]
    assert chosen_form(forms, rows, "fp32", hidden=512, n=320) == "step"
    assert chosen_form(forms, rows, "fp32", hidden=1024, n=1) == "step"
    assert chosen_form(forms, rows, "bf16", hidden=512, n=33) == "step"
    assert tune.form_rows(forms, [], arch, cuda, measure) == []


def test_float16_is_decided_by_its_own_cases_where_there_are_some():
    (forms,) = (forms for forms in tune.FORMS if forms.name == "lstm.form")
    half, brain = (
        Case("lstm", dtype, "forward", dtype, {"T": 20, "N": 64, "I": 512, "H": 512}, 1.0, 1.0)
        for dtype in ("float16", "bfloat16")
    )

    def measure(use, row, expected):
        return 0.5 if row.blocks["FORM"] == {"float16": "cluster", "bfloat16": "cooperative"}[
            use.cases[0].dtype
        ] else 1.0, []

    def chosen(cases):
        rows = tune.form_rows(forms, cases, "sm_90", True, measure)
        return tuple(chosen_form(forms, rows, element, hidden=512, n=64) for element in ("fp16", "bf16"))

    assert chosen([half, brain]) == ("cluster", "cooperative")
    assert chosen([brain]) == ("cooperative", "cooperative")
    assert chosen([half]) == ("cluster", "step")


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
