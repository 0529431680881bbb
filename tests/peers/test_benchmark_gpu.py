"""The GPU benchmarks rehearsed: pycap's kernels in Triton's interpreter and PyTorch's on the CPU come to the same results."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import gpu, gpu_cases, gpu_lstm
from benchmarks.results import read
from pycap import backends

pytestmark = [pytest.mark.peers, pytest.mark.triton]

#: Relative L2 distance: rounding of each side's results, and of its factors where it rounds them.
ROUNDING = {"bfloat16": 5e-3, "tf32": 1e-5, "float32": 1e-5}
#: The LSTM's: every step rounds h, and PyTorch's also c and the gates; CUDA kernels round factors to TensorFloat-32.
STEPS_ROUNDING = {"float16": 2e-3, "bfloat16": 1.2e-2, "tf32": 2e-4, "float32": 1e-5}


@pytest.mark.parametrize(
    "case", ["conv2d/conv4_3", "linear/", "softmax_xent/", "topk/", "embedding/", "pool/", "adam/"]
)
def test_both_sides_compute_the_same(case, tmp_path, capsys):
    path = tmp_path / "gpu.jsonl"
    assert gpu.main(["--rehearse", "--case", case, "--peers", "eager", "--json", str(path)]) == 0
    rows = [row for row in read(path) if row["peer"] == "torch eager"]
    assert rows
    for row in rows:
        name = f"{row['op']} {row['case']} {row['mode']} {row['dtype']}"
        assert row["err"] is not None and row["err"] <= ROUNDING[row["dtype"]], f"{name}: {row['err']} {row['note']}"
        assert not row["note"], f"{name}: {row['note']}"
        assert row["ratio"] > 0, name
    assert "TFLOP/s" in capsys.readouterr().out


def test_every_form_of_the_lstm_computes_what_pytorch_does(tmp_path, capsys):
    """In each dtype, packed or not; forms that a CPU has not, or not at a size, say so, and no form fails."""
    path = tmp_path / "gpu.jsonl"
    assert gpu.main(["--rehearse", "--op", "lstm", "--peers", "eager", "--json", str(path)]) == 0
    forms = {"step", "persistent"} | (set() if backends.available("cuda", "cpu") else {"cooperative", "cluster"})
    served = {}
    for row in read(path):
        name = f"{row['case']} {row['mode']} {row['dtype']} {row['form']}"
        assert row["backend"] == gpu_lstm.FORMS[row["form"]], name
        if row["median_s"] is None:
            assert row["note"].startswith("pycap: ") and row["step_us"] is None, name
            continue
        assert row["err"] <= STEPS_ROUNDING[row["dtype"]], f"{name}: {row['err']}"
        assert not row["note"] and None not in (row["step_us"], row["peer_step_us"]), name
        assert row["peer_variant"] in ("cuDNN persistent", "cuDNN standard"), name
        served.setdefault((row["case"], row["dtype"]), set()).add(row["form"])
    every = [of for (case, _), of in served.items() if "h64" in case]
    assert len(every) == 6 and all(of >= forms for of in every), served
    assert "us a step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "path"),
    [
        (gpu_cases.sequence(64, 512, "float16", "forward"), "cuDNN persistent"),
        (gpu_cases.sequence(128, 1024, "float16", "forward"), "cuDNN persistent"),
        (gpu_cases.sequence(320, 512, "float16", "forward"), "cuDNN standard"),
        (gpu_cases.sequence(60, 512, "float16", "forward"), "cuDNN standard"),
        (gpu_cases.sequence(64, 512, "float16", "forward", packed=True), "cuDNN standard"),
        (gpu_cases.sequence(64, 320, "float16", "forward"), "cuDNN standard"),
        (gpu_cases.sequence(64, 512, "bfloat16", "forward"), "cuDNN standard"),
    ],
    ids=lambda value: value.id if hasattr(value, "id") else "",
)
def test_which_of_cudnns_ways_is_expected(case, path):
    from benchmarks.peers import torch_gpu

    assert torch_gpu.lstm_path(case) == path
