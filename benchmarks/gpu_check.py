"""Everything to do on a machine with a GPU, as `make gpu`: build, compile the kernels, test, sanitize, time.

Each step has a limit of its own and a log in the folder of results ($OUT, or benchmarks/results/gpu); all together end
within nine minutes. A step that fails does not keep the later ones from running; the exit status tells that one did.
"""

from __future__ import annotations

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
    wanted = ("scipy_openblas32", "pybind11")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    built = "sm_80" if arch.startswith("sm_8") else arch
    files = [
        "tests/kernels/test_gpu.py",
        *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tests/kernels/test_triton_*.py")),
    ]
    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "gpu")
    timing = (python, "-m", "benchmarks.gpu", "--json")
    not_hopper = "" if arch == "sm_90" else f"this GPU is {arch}"
    return [
        Step("machine", (python, "-c", "from pycap.cli import main; main(['doctor'])"), 30, 40),
        Step(
            "build", (python, "setup.py", "--quiet", "build_ext", "--inplace"), 120,
            skip=f"the C++ backend needs {', '.join(missing)}; the GPU needs none of it" if missing else "",
        ),
        Step(
            "cubins", (python, "-m", "pycap.cubins", "--arch", built), 120,
            skip="" if importlib.util.find_spec("triton") else "Triton is not installed",
        ),
        Step("tests", (*pytest, "--durations=10", *files), 200, 40),
        Step("benchmarks", (*timing, str(out / "gpu.jsonl"), "--seconds", "120"), 160, 130),
        # From here on programs and partitions wait for each other: after a fault, for ever.
        Step("hopper", (*pytest, "tests/kernels/test_gpu_hopper.py"), 60, 20, skip=not_hopper),
        Step(
            "hopper-benchmarks",
            (*timing, str(out / "gpu_hopper.jsonl"), "--op", "conv2d", "--hopper", "--peers", "eager", "--seconds", "45"),
            60, 50, skip=not_hopper,
        ),
        Step("lstm", (*pytest, "tests/kernels/test_gpu_lstm.py"), 60),
        Step(
            "memcheck", (sanitizer, "--tool", "memcheck", "--error-exitcode", "7", *pytest, files[0], "-k", "sanitized"),
            90, 12, skip="" if Path(sanitizer).exists() else "compute-sanitizer was not found",
        ),
    ]  # fmt: skip


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


def main() -> int:
    """Do it all; returns 1 where a step failed or there is no GPU."""
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu").resolve()
    try:
        arch = architecture()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    outcome = run(steps(arch, out), out, environment, LIMIT_S)
    print("\n".join(f"{name:12} {said}" for name, said in outcome.items()))
    return int(any(said.startswith("failed") for said in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
