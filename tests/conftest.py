"""What every test shares: PYCAP_REQUIRE, skips with a reason for what a machine lacks, and where real data stands."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before NumPy or the C++ backend load. NumPy's BLAS runs on one thread, so that the reference is the same bit for
# bit on every run; OpenMP on two, so that the division of work among threads is tested on every machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads wait asleep: those of two processes of tests on two CPUs would spin in each other's way.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Triton's kernels run in its interpreter, on NumPy arrays; `make gpu` sets 0, and they run on the GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# On a machine with a GPU too: what is meant for one names it.
os.environ.setdefault("PYCAP_DEVICE", "cpu")

# Who starts tests in the background has them ignore Ctrl-C, and with them all that they start, which some of them interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# Beside the interpreter, as the extra `distributed` installs it: one from elsewhere may be another MPI's than mpi4py's.
MPIRUN = Path(sys.executable).with_name("mpirun")


# What PYCAP_REQUIRE may name -> the module whose import shows that it is there, and what helps where it is not.
REQUIREMENTS = {
    "reference": ("pycap.backends.reference", "make dev"),
    "cpp": ("pycap.backends.cpp", "make dev"),
    "triton-interpret": ("triton.runtime.interpreter", "make dev"),
    "cuda-emu": ("pycap._cuda_emu", "make emulation"),
    "mpi": ("mpi4py", "make dev"),
    "onnx": ("onnx", "make dev"),
    "peers": ("torch", "make test PEERS=1"),
    "onnxruntime": ("onnxruntime", "make test PEERS=1"),
    "browser": ("selenium", "make dev"),
}
# The same for programs that must be on the PATH.
PROGRAMS = {"browser": (("chromium", "chromedriver"), "sudo apt-get install chromium chromium-driver")}


def missing_programs(name: str) -> list[str]:
    """One message for each program that ``name`` (as in PYCAP_REQUIRE) needs and that is not on the PATH."""
    programs, remedy = PROGRAMS.get(name, ((), ""))
    return [f"there is no {program} on the PATH: {remedy}" for program in programs if shutil.which(program) is None]


def missing_requirements(value: str) -> list[str]:
    """One message for each name in ``value`` (as in PYCAP_REQUIRE) that is unknown or cannot be imported."""
    problems = []
    for name in filter(None, (part.strip() for part in value.split(","))):
        if name not in REQUIREMENTS:
            problems.append(
                f"PYCAP_REQUIRE names {name!r}, which this version lacks; it knows {', '.join(REQUIREMENTS)}"
            )
            continue
        module, remedy = REQUIREMENTS[name]
        try:
            importlib.import_module(module)
        except ImportError as error:
            problems.append(f"PYCAP_REQUIRE names {name!r}, but {module} does not import ({error}): {remedy}")
        problems += [f"PYCAP_REQUIRE names {name!r}, but {problem}" for problem in missing_programs(name)]
    return problems


def find_data() -> Path | None:
    """The folder of real data sets: $PYCAP_DATA, else ../shared/data beside the repository, else None."""
    named = os.environ.get("PYCAP_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def pytest_sessionstart(session: pytest.Session) -> None:
    problems = missing_requirements(os.environ.get("PYCAP_REQUIRE", ""))
    if problems:
        pytest.exit("\n".join(problems), returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    if importlib.util.find_spec("torch") is None:
        skips["peers"] = pytest.mark.skip(reason="PyTorch is not installed; make test PEERS=1 installs it")
    if importlib.util.find_spec("triton") is None:
        skips["triton"] = pytest.mark.skip(reason="Triton is not installed: pip install triton")
    if os.environ["TRITON_INTERPRET"] != "0":
        skips["gpu"] = pytest.mark.skip(reason="runs on a GPU: make gpu")
    else:
        skips["triton"] = pytest.mark.skip(reason="runs in Triton's interpreter, which TRITON_INTERPRET=0 turns off")
    if importlib.util.find_spec("pycap._cuda_emu") is None:
        skips["emu"] = pytest.mark.skip(reason="the emulation of CUDA is not built: make emulation")
    elif "triton" in skips:
        skips["emu"] = pytest.mark.skip(reason="runs beside Triton's interpreter, which is not there, or turned off")
    if not MPIRUN.exists() and "mpi" not in os.environ.get("PYCAP_REQUIRE", ""):
        skips["mpi"] = pytest.mark.skip(
            reason='no MPI: pip install "pycap-captioning[distributed]", or mpi4py and mpich'
        )
    if lacks := missing_programs("browser"):
        skips["browser"] = pytest.mark.skip(reason=lacks[0])
    elif importlib.util.find_spec("selenium") is None:
        skips["browser"] = pytest.mark.skip(reason="Selenium is not installed: make dev")
    if find_data() is None:
        skips["realdata"] = pytest.mark.skip(reason="no real data: set PYCAP_DATA to its folder (docs/env.md)")
    for item in items:
        for name, skip in skips.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _plain_products() -> Iterator[None]:
    """Trainers and captioners of one precision leave the process multiplying in it: no test is to find that."""
    yield
    backends = sys.modules.get("pycap.backends")
    if backends is not None:
        backends.set_float32_products("fp32")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; a test that asks for it carries the marker ``realdata``."""
    folder = find_data()
    if folder is None:
        pytest.skip("no real data: set PYCAP_DATA to its folder (docs/env.md)")
    return folder
