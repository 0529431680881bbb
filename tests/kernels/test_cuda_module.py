"""pycap._cuda, where nvcc built it, looked at without a GPU: what it says, and what its kernels need."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = {"sm_80", "sm_90a"}

#: Kernels that may use the stack: a part of the mangled name -> why.
MAY_USE_STACK: dict[str, str] = {}


def built() -> Path:
    """The compiled module; skips the test where there is none."""
    spec = importlib.util.find_spec("pycap._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("pycap._cuda is not built: it needs nvcc")
    return Path(spec.origin)


def cuobjdump() -> str:
    """NVIDIA's tool, of the CUDA toolkit or of Triton; skips the test where neither is there."""
    beside = importlib.util.find_spec("triton")
    folders = [Path(beside.origin).parent / "backends/nvidia/bin"] if beside and beside.origin else []
    for folder in (*folders, Path("/usr/local/cuda/bin")):
        if (folder / "cuobjdump").exists():
            return str(folder / "cuobjdump")
    return shutil.which("cuobjdump") or pytest.skip("cuobjdump was not found")


def usage(binary: Path) -> dict[tuple[str, str], int]:
    """(architecture, mangled kernel) -> bytes of stack and local memory a thread, spilled registers among them."""
    report = subprocess.run([cuobjdump(), "-res-usage", str(binary)], capture_output=True, text=True, check=True).stdout
    found, arch = {}, ""
    for line in report.splitlines():
        if named := re.match(r"arch = (\w+)", line):
            arch = named[1]
        elif named := re.match(r"\s*Function (\S+):$", line):
            kernel = named[1]
        elif "STACK:" in line:
            numbers = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
            found[arch, kernel] = numbers["STACK"] + numbers["LOCAL"]
    return found


def excessive(found: dict[tuple[str, str], int], allowed: dict[str, str]) -> list[str]:
    """What uses the stack and may not, and which permissions nobody needs."""
    using = {key: size for key, size in found.items() if size}
    problems = [
        f"{kernel} on {arch}: {size} bytes of stack"
        for (arch, kernel), size in using.items()
        if not any(part in kernel for part in allowed)
    ]
    return problems + [f"no kernel needs {part!r}" for part in allowed if not any(part in key[1] for key in using)]


def test_every_kernel_keeps_its_numbers_in_registers():
    found = usage(built())
    assert {arch for arch, _ in found} == ARCHITECTURES
    assert not (problems := excessive(found, MAY_USE_STACK)), "\n".join(problems)


def test_every_kernel_is_there_for_every_gpu():
    found = usage(built())
    ampere, hopper = ({kernel for arch, kernel in found if arch == which} for which in ("sm_80", "sm_90a"))
    assert ampere and ampere <= hopper
    portable = [path.stem for path in (ROOT / "csrc/cuda").glob("*.cu") if not path.stem.endswith("_sm90")]
    for listing, kind in (("-lelf", "cubin"), ("-lptx", "ptx")):
        report = subprocess.run([cuobjdump(), listing, str(built())], capture_output=True, text=True, check=True).stdout
        assert {f"{name}.sm_80.{kind}" for name in portable} <= set(report.split())


def test_stack_is_found(tmp_path):
    """An array that is indexed at run time does not fit into registers."""
    nvcc = shutil.which("nvcc") or pytest.skip("nvcc was not found")
    source = tmp_path / "spills.cu"
    source.write_text(
        "__global__ void spills(float* x, int n) {\n"
        "  float held[40];\n"
        "  for (int i = 0; i < 40; ++i) held[(i * n) % 40] = x[i];\n"
        "  x[n] = held[n];\n"
        "}\n"
        "__global__ void fits(float* x) { x[threadIdx.x] += 1; }\n"
    )
    binary = tmp_path / "spills.o"
    subprocess.run([nvcc, "-gencode", "arch=compute_80,code=sm_80", "-c", str(source), "-o", str(binary)], check=True)
    found = usage(binary)
    assert sorted(kernel for _, kernel in found) == ["_Z4fitsPf", "_Z6spillsPfi"]
    (problem,) = excessive(found, {})
    assert problem.startswith("_Z6spillsPfi on sm_80: 160 bytes")
    assert excessive(found, {"spills": "is a test", "fits": "needs none"}) == ["no kernel needs 'fits'"]


def test_it_imports_and_answers_without_a_gpu():
    """In a process that can see none, whatever this machine has."""
    built()
    code = """
from pycap import _cuda
print(_cuda.architectures, _cuda.runtime)
try:
    print(_cuda.gpu())
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    told, problem = done.stdout.splitlines()
    assert ARCHITECTURES | {"compute_80"} == set(told.split()[:-1]) and int(told.split()[-1]) >= 12000
    assert re.search(r"\(cudaError(InsufficientDriver|NoDevice)\)$", problem)
