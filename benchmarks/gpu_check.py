"""Everything to do on a machine with a GPU, as `make gpu`: build, compile the kernels, test, sanitize, time.

`make gpu STEPS="build cuda"` does only the steps that it names. Each step has a limit of its own and a log in the folder of
results ($OUT, or benchmarks/results/gpu); all together end within nine minutes. A step that fails does not keep the later
ones from running; the exit status tells that one did.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 9 * 60


@dataclass(frozen=True)
class Step:
    """One program. tail: lines of its output that are shown when it is done. skip: why it is not run, or empty."""

    name: str
    command: tuple[str, ...]
    seconds: float
    tail: int = 3
    skip: str = ""


def architecture() -> str:
    """The first GPU's, as "sm_90". RuntimeError where the driver shows none."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"make gpu needs an NVIDIA GPU and its driver ({error}); on the CPU: make test, make bench"
        ) from error
    return "sm_" + done.stdout.split()[0].replace(".", "")


def steps(arch: str, out: Path) -> list[Step]:
    """What is to be done on a GPU of this architecture."""
    python = sys.executable
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    sanitize = (sanitizer, "--error-exitcode", "7", "--tool")
    no_sanitizer = "" if Path(sanitizer).exists() else "compute-sanitizer was not found"
    no_pybind = "" if importlib.util.find_spec("pybind11") else "pybind11 is not installed"
    built = "sm_80" if arch.startswith("sm_8") else arch
    whole = ("tests/ops/test_conv2d_fusions.py", "tests/models/test_conv2d_fusions.py", "tests/train/test_gpu_step.py")
    files = ["tests/kernels/test_gpu.py", *_test_files("triton"), *whole]
    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "gpu")
    timing = (python, "-m", "benchmarks.gpu", "--json")
    beside = (python, "-m", "benchmarks.peers.torch_joint")
    joint = (*beside, "--device", "cuda", "--compile-modes", "default", "--seconds", "110")
    no_torch = "" if importlib.util.find_spec("torch") else "PyTorch, the peer, is not installed"
    not_hopper = "" if arch == "sm_90" else f"this GPU is {arch}"
    return [
        Step("machine", (python, "-c", "from pycap.cli import main; main(['doctor'])"), 30, 40),
        Step("build", (python, "setup.py", "--quiet", "build_ext", "--inplace"), 180, skip=no_pybind),
        Step(
            "cubins", (python, "-m", "pycap.cubins", "--arch", built), 120,
            skip="" if importlib.util.find_spec("triton") else "Triton is not installed",
        ),
        Step("tests", (*pytest, "--durations=10", *files), 200, 40),
        Step("trajectory", (python, "-m", "benchmarks.trajectory", "--json", str(out / "trajectory.jsonl")), 90, 12),
        Step("joint", (*joint, "--json", str(out / "joint.jsonl")), 180, 40, skip=no_torch),
        Step("benchmarks", (*timing, str(out / "gpu.jsonl"), "--seconds", "120"), 160, 130),
        Step("exchange", (python, "-m", "benchmarks.exchange"), 40, 20),
        Step("joint-input", (*joint, "--sides", "pycap,torch eager", "--input", "--beams", "", "--turns", "3",
             "--json", str(out / "joint_input.jsonl")), 100, 12, skip=no_torch),
        # From here on programs and partitions wait for each other: after a fault, for ever.
        Step("cuda", (*pytest, "--durations=10", *_test_files("cuda")), 90, 20),
        Step("lstm-benchmarks", (*timing, str(out / "gpu_lstm.jsonl"), "--op", "lstm", "--seconds", "60"), 80, 60),
        Step("hopper", (*pytest, "tests/kernels/test_gpu_hopper.py"), 60, 20, skip=not_hopper),
        Step(
            "hopper-benchmarks",
            (*timing, str(out / "gpu_hopper.jsonl"), "--op", "conv2d", "--hopper", "--peers", "eager", "--seconds", "45"),
            60, 50, skip=not_hopper,
        ),
        Step("lstm", (*pytest, "tests/kernels/test_gpu_lstm.py"), 60),
        Step("memcheck", (*sanitize, "memcheck", *pytest, files[0], "-k", "sanitized"), 90, 12, skip=no_sanitizer),
        *(
            Step(f"cuda-{tool}", (*sanitize, tool, *pytest, *_test_files("cuda"), "-k", "sanitized"), 60, 12, skip=no_sanitizer)
            for tool in ("memcheck", "racecheck")
        ),
    ]  # fmt: skip


def _test_files(kind: str) -> list[str]:
    """The tests of one kind of kernels, "triton" or "cuda"."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"tests/kernels/test_{kind}_*.py"))


def run(todo: Sequence[Step], out: Path, environment: Mapping[str, str], limit_s: float) -> dict[str, str]:
    """Run the steps one after the other; by name "passed", "skipped: why" or "failed: how"."""
    out.mkdir(parents=True, exist_ok=True)
    begin, outcome = time.monotonic(), {}
    for step in todo:
        left = limit_s - (time.monotonic() - begin)
        if step.skip or left < 5:
            outcome[step.name] = f"skipped: {step.skip or 'the time is over'}"
            print(f"== {step.name}: {outcome[step.name]}", flush=True)
            continue
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        log = out / f"{step.name}.log"
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            try:
                status = subprocess.run(
                    step.command, stdout=file, stderr=subprocess.STDOUT, env=dict(environment), cwd=ROOT, check=False,
                    timeout=min(step.seconds, left),
                ).returncode  # fmt: skip
                outcome[step.name] = "failed: status " + str(status) if status else "passed"
            except subprocess.TimeoutExpired as expired:
                outcome[step.name] = f"failed: not done after {expired.timeout:.0f} s"
            except OSError as error:
                outcome[step.name] = f"failed: {error}"
        shown = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(shown[-step.tail :]))
        print(f"== {step.name}: {outcome[step.name]} after {time.monotonic() - started:.0f} s, log {log}", flush=True)
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Do it all, or the steps that are named; returns 1 where a step failed or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these")
    named = parser.parse_args(argv).steps
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu").resolve()
    try:
        arch = architecture()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    if importlib.util.find_spec("scipy_openblas32") is None:
        environment.setdefault("PYCAP_CPU", "OFF")  # the C++ backend needs it, the GPU does not
    todo = steps(arch, out)
    unknown = set(named) - {step.name for step in todo}
    if unknown:
        parser.error(
            f"no step is called {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in todo)}"
        )
    outcome = run([step for step in todo if not named or step.name in named], out, environment, LIMIT_S)
    print("\n".join(f"{name:12} {said}" for name, said in outcome.items()))
    return int(any(said.startswith("failed") for said in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
