"""pycap doctor: with and without a GPU, CuPy and a driver; as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pycap import backends, cubins, device, provenance
from pycap.cli import main
from pycap.doctor import disk, machine
from pycap.training import plan
from tests import cupy_standin


def told(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["doctor", *options])
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """On whatever disk the tests run, there is room for a run."""
    usage = SimpleNamespace(total=2 << 40, used=1 << 40, free=1 << 40)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.delenv("PYCAP_DEVICE")
    monkeypatch.setattr(device, "missing_driver", lambda: "no NVIDIA driver here")


@pytest.fixture
def gpu(monkeypatch):
    module = cupy_standin.make("Stand-in 9000", (9, 0), count=2)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # so that no kernel is loaded on the stand-in
    return module


def test_without_a_driver_the_cpu_and_the_reason(no_driver, capsys):
    found = json.loads(told(capsys, "--json"))
    assert found["gpu"]["obstacle"] == "no NVIDIA driver here" and "name" not in found["gpu"]
    assert found["auto"] == {"device": "cpu", "no_gpu": "no NVIDIA driver here"}
    assert found["devices"]["cuda"] == {"obstacle": "no NVIDIA driver here", "precisions": {}, "choices": []}
    cpu = found["devices"]["cpu"]
    assert [c["primitive"] for c in cpu["choices"]] == list(backends.PRIMITIVES) and cpu["precisions"]["tf32"]
    assert found["cpu"]["threads"] >= 1 and found["cpu"]["memory_bytes"] > 1 << 20
    text = told(capsys)
    assert text.count("no NVIDIA driver here") == 1 and "--device auto computes on cpu" in text


def test_the_choices_are_those_that_would_be_made(no_driver):
    with backends.use("auto"):
        assert machine.report()["devices"]["cpu"]["choices"] == [vars(choice) for choice in backends.explain()]


def test_a_missing_backend_is_told_with_its_reason(no_driver, monkeypatch, capsys):
    load = backends._load

    def broken(name):
        if name == "cpp":
            raise ImportError("no compiler here")
        return load(name)

    monkeypatch.setattr(backends, "_load", broken)
    found = json.loads(told(capsys, "--json"))["devices"]["cpu"]
    assert {(c["backend"], c["reason"]) for c in found["choices"]} == {("reference", "cpp: no compiler here")}
    assert "widened to float32" in found["precisions"]["bf16"]
    assert "(cpp: no compiler here)" in " ".join(told(capsys).split())


def test_with_a_gpu_its_name_memory_versions_and_chain(gpu, capsys):
    found = json.loads(told(capsys, "--json"))
    prebuilt = found["gpu"].pop("prebuilt")
    assert (
        prebuilt == dict(zip(("covered", "variants"), cubins.coverage("sm_90"), strict=True)) and prebuilt["variants"]
    )
    assert found["gpu"] | {"driver": None} == {
        "obstacle": "", "driver": None, "name": "Stand-in 9000", "number": 0, "count": 2, "capability": "9.0",
        "arch": "sm_90", "memory_bytes": 8 << 30, "multiprocessors": 4, "cuda": {"driver": "13.0", "cupy": "13.2"},
    }  # fmt: skip
    cuda = found["devices"]["cuda"]
    assert cuda["obstacle"] == "" and len(cuda["choices"]) == len(backends.PRIMITIVES)
    assert {c["backend"] for c in cuda["choices"]} == {"reference"}
    assert all("triton: TRITON_INTERPRET=1" in c["reason"] for c in cuda["choices"])
    text = told(capsys)
    assert "Stand-in 9000, number 0 of 2: compute capability 9.0, 8.0 GiB of memory" in text
    assert "CUDA 13.0; CuPy for CUDA 13.2" in text
    assert device.current() == "cpu"


def test_where_triton_serves_precisions_are_the_tensor_cores(gpu, monkeypatch):
    load = backends._load
    monkeypatch.delenv("TRITON_INTERPRET")
    stand_ins = {"triton": load("reference"), "cuda": SimpleNamespace()}
    monkeypatch.setattr(backends, "_load", lambda name: stand_ins.get(name) or load(name))
    found = machine.report()
    assert found["auto"] == {"device": "cpu", "no_gpu": ""}  # the tests' PYCAP_DEVICE
    assert {c["backend"] for c in found["devices"]["cuda"]["choices"]} == {"triton"}
    assert found["devices"]["cuda"]["precisions"]["bf16"] == "tensor cores; float32 arrays as in tf32"
    assert "three TensorFloat-32" in found["devices"]["cuda"]["precisions"]["fp32"]


def test_compiled_kernels_are_told_with_their_gpus(no_driver, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycap._cuda", SimpleNamespace(architectures="sm_80 compute_80", runtime=13000))
    assert json.loads(told(capsys, "--json"))["cuda"] == {
        "obstacle": "", "architectures": ["sm_80", "compute_80"], "runtime": "13.0",
    }  # fmt: skip
    assert "CUDA kernels for sm_80, PTX of compute_80, with CUDA 13.0\n" in told(capsys)
    monkeypatch.setitem(sys.modules, "pycap._cuda", None)
    assert "CUDA kernels: not built, for which nvcc is needed (" in told(capsys)


@pytest.mark.parametrize(
    ("counted", "triton", "said"),
    [
        ((12, 12), None, "12 of 12 forms of kernels prebuilt\n"),
        ((9, 12), "3.9.0", "9 of 12 forms of kernels prebuilt; Triton compiles the others at their first use\n"),
        ((9, 12), None, "9 of 12 forms of kernels prebuilt; the others need Triton: pip install triton\n"),
    ],
)
def test_prebuilt_kernels_are_counted_and_what_the_others_need(gpu, monkeypatch, capsys, counted, triton, said):
    asked = []
    monkeypatch.setattr(cubins, "coverage", lambda arch: asked.append(arch) or counted)
    monkeypatch.setattr(provenance, "packages", lambda: {"numpy": "1.0"} | ({"triton": triton} if triton else {}))
    assert said in told(capsys)
    assert asked == ["sm_90"]


def test_without_cupy_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setitem(sys.modules, "cupy", None)
    text = " ".join(told(capsys).split())
    assert "none that pycap can use" in text and "pip install cupy-cuda13x" in text


# What a run needs -----------------------------------------------------------------------------------------------------

SMALL = ("--cnn", "vgg_micro", "--image-size", "64", "--fc-size", "64", "--rnn-size", "32", "--batch-size", "48")


def test_a_plan_without_a_gpu_is_for_an_h100(no_driver, capsys):
    found = json.loads(told(capsys, "--plan", "--json", *SMALL, "--vocabulary", "500"))
    parts = dict(found["bytes"])
    assert parts.pop("total") == sum(parts.values())
    assert {name for name, count in parts.items() if not count} == {"copies", "exchange"}
    assert parts["weights"] == parts["gradients"] == parts["optimizer"] / 2
    assert (found["gpu"], found["no_gpu"]) == (None, "no NVIDIA driver here")
    assert (found["batch_size"], found["micro_batch"], found["passes"]) == (48, 48, 1)
    text = told(capsys, *SMALL, "--plan", "--precision", "bf16", "--device", "cuda")  # in any order
    assert "48 images of 64x64, 5 captions each; vgg_micro learning too, 10000 words, adam, bf16\n" in text
    assert "copies" in text and "planned for an H100" in text and "48 images: the whole batch in one pass" in text
    assert f"weights      {parts['weights'] / 2**30:8.2f} GiB" in told(capsys, "--plan", *SMALL, "--vocabulary", "500")
    text = told(capsys, *SMALL, "--plan", "--ranks", "5")
    assert "10 images (of 48, on 5 GPUs) of 64x64" in text and "10 images: the whole batch in one pass" in text
    assert f"exchange     {plan.EXCHANGE / 2**30:8.2f} GiB" in text and device.current() == "cpu"


def test_a_plan_with_a_gpu_takes_the_largest_micro_batch_that_fits(gpu, capsys):
    gpu.cuda.runtime.memGetInfo = lambda: (4 << 30, 8 << 30)
    found = json.loads(told(capsys, "--plan", "--json", *SMALL, "--device", "auto"))
    assert found["gpu"] == {
        "name": "Stand-in 9000", "memory_bytes": 8 << 30, "available_bytes": (4 << 30) - plan.MARGIN + 4096,
    }  # fmt: skip
    assert found["micro_batch"] == 48 and found["no_gpu"] == "" and device.current() == "cpu"
    gpu.cuda.runtime.memGetInfo = lambda: (plan.MARGIN + found["bytes"]["total"] - 5000, 8 << 30)
    text = told(capsys, "--plan", *SMALL)
    assert "Stand-in 9000: 8.0 GiB" in text and "24 images: 2 passes a step, of the same gradient" in text


def test_a_run_that_does_not_fit_is_an_error_with_the_numbers_and_remedies(gpu, capsys):
    gpu.cuda.runtime.memGetInfo = lambda: (1000 << 20, 8 << 30)
    with pytest.raises(SystemExit) as exit:
        main(["doctor", "--plan", "--stage", "coco"])
    said = str(exit.value.code)
    assert said.startswith(
        "pycap doctor: error: batch_size: the run does not fit into 0.2 GiB: even with one image a pass"
    )
    assert "weights 0.6, gradients 0.6, optimizer 1.1" in said and "--precision bf16, --freeze-cnn" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--plan", "--batchsize", "3"), "did you mean batch-size?"),
        (("--batch-size", "3"), "unrecognized arguments: --batch-size"),
        (("--plan", "--vocabulary", "0"), "0 is not 1 or more"),
    ],
)
def test_a_wrong_option_is_told(no_driver, capsys, options, said):
    with pytest.raises(SystemExit) as exit:
        main(["doctor", *options])
    assert exit.value.code != 0 and said in f"{exit.value.code} {capsys.readouterr().err}"


def test_packages_are_found_without_being_imported(monkeypatch, capsys):
    def version(name):
        if name in ("numpy", "cupy-cuda12x"):
            return "1.2.3"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance.metadata, "version", version)
    found = json.loads(told(capsys, "--json"))
    assert found["packages"] == {"numpy": "1.2.3", "ml_dtypes": None, "cupy": "1.2.3", "triton": None}
    assert found["devices"]["cpu"]["precisions"]["bf16"] == "needs the package ml_dtypes"
    assert "numpy 1.2.3, cupy 1.2.3; not installed: ml_dtypes, triton" in told(capsys)


def test_mpi_is_named_or_what_would_bring_it(monkeypatch, capsys):
    monkeypatch.setattr("pycap.distributed.mpi.describe", lambda: "MPICH 5.0.2")
    assert "\nmpi          MPICH 5.0.2, for several processes\n" in told(capsys)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert json.loads(told(capsys, "--json"))["mpi"] == ""
    assert 'pip install "pycap-captioning[distributed]"' in " ".join(told(capsys).split())


def test_the_drivers_version_is_read_from_the_system(monkeypatch, tmp_path):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 12.2.0\n"
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(provenance, "_DRIVER", tmp_path / "version")
    assert provenance.driver() == "580.95.05"
    monkeypatch.setattr(provenance, "_DRIVER", tmp_path / "absent")
    assert provenance.driver() is None


def test_it_runs_where_nothing_optional_is_installed() -> None:
    """In a process in which none of these imports."""
    program = (
        "import sys\n"
        "for name in ('cupy', 'triton', 'ml_dtypes', 'scipy_openblas32', 'rich', 'h5py', 'PIL', 'yaml', 'jsonargparse'):\n"
        "    sys.modules[name] = None\n"
        "from pycap.cli import main\n"
        "main(['doctor'])\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "reference" in run.stdout and "--device auto computes on cpu" in run.stdout
