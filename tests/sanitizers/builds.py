"""The builds of pycap._cpu that `make sanitize` tests: how each is made and loaded, and which tests are run on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "Debian/Ubuntu: sudo apt-get install g++ clang libclang-rt-14-dev libomp-14-dev (the versions of your clang)"

# Two pixels of a pooled window are equal but for 3.5e-6 of 5.1: with other roundings than those of -O3 the other one wins.
NEAR_TIE = "tests/ops/test_conv2d.py::test_backend_on_many_channels[cpp-pool-(1, 70, 66, 176, 208)]"

# Sums over an image's pixels in other orders; its bound holds for those of -O3.
ORDER = "tests/models/test_nic.py::test_micro_batches_give_the_gradient_of_the_whole_batch"

# What the kernels of each instruction set are tested by, and the rest of what runs pycap._cpu in the process of the tests.
KERNELS = ("tests/ops", "tests/kernels/test_threads.py::test_equal_inputs_give_equal_bits")
ARGUMENTS = ("tests/kernels/test_bindings.py", "tests/kernels/test_isa.py")
CALLERS = (
    "tests/data/test_resize.py",
    "tests/data/test_loader_threads.py",
    "tests/models/test_bfloat16.py",
    "tests/models/test_classifier.py",
    "tests/models/test_decode.py",
    "tests/models/test_merge.py",
    "tests/models/test_nic.py",
    "tests/models/test_vgg.py",
    "tests/train/test_optim.py",
    "tests/train/test_step.py::test_the_backends_losses_agree_over_five_steps",
)


class Missing(RuntimeError):
    """A tool is not there; says which one, and how to get it."""


@dataclass(frozen=True)
class Run:
    """pytest on some tests, with the kernels of one instruction set (PYCAP_ISA) on so many threads."""

    isa: str
    threads: int
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """`sanitize`: as -DPYCAP_SANITIZE. `faults`: those of csrc/sanitize/planted.cpp that it must report -> words of its report.
    `deselected`: tests that hold only for normal builds. `source`: the folder of CMakeLists.txt and csrc."""

    name: str
    compiler: str
    sanitize: str
    faults: dict[str, str]
    runs: tuple[Run, ...]
    deselected: tuple[str, ...] = ()
    source: Path = ROOT

    @property
    def folder(self) -> Path:
        return ROOT / "build" / f"sanitize-{self.name}"

    @property
    def modules(self) -> Path:
        return self.folder / "modules"

    @property
    def reports(self) -> Path:
        """Where the sanitizer writes: pytest holds back what a process that it ends has printed."""
        return self.folder / "reports"

    def configure(self, folder: Path | None = None) -> list[str]:
        """CMake's command line. Without the cache, of which CMake may forget the options, and with them the sanitizer."""
        folder = folder or self.folder
        command = [
            shutil.which("cmake") or "cmake",
            "--fresh",
            "-S",
            str(self.source),
            "-B",
            str(folder),
            "-G",
            "Ninja",
        ]
        command += [f"-DPython_EXECUTABLE={sys.executable}", f"-DPYCAP_OUTPUT_DIR={folder / 'modules'}"]
        command += [f"-DCMAKE_CXX_COMPILER={self.compiler}", f"-DPYCAP_SANITIZE={self.sanitize}"]
        return [*command, "-DPYCAP_EMULATE=ON", "-DPYCAP_CUDA=OFF"]

    def make(self, jobs: int) -> None:
        """Build what has changed. Raises CalledProcessError."""
        subprocess.run(self.configure(), check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", str(self.folder), "--parallel", str(jobs)], check=True)

    def environment(self, isa: str = "", threads: int = 2) -> dict[str, str]:
        """Variables with which a Python loads this build's module, and is ended by the first finding."""
        common = f"log_path={self.reports}/report:exitcode=99:allocator_may_return_null=1"
        made = {
            "PYCAP_MODULES": str(self.modules),
            "PYTHONPATH": str(ROOT),
            "PYTHONMALLOC": "malloc",  # Python's own allocator would hide the ends of small blocks
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYCAP_ISA": isa,
            "OMP_NUM_THREADS": str(threads),
            "OMP_STACKSIZE": "64M",  # fences make frames larger
        }
        if self.sanitize == "thread":
            # GCC's run time serves clang's calls and, other than clang 14's, can be loaded into a Python that was built without
            # it. Archer tells it what OpenMP's barriers and regions order; without it every reduction would be reported.
            # Only modules with the calls are watched: OpenMP's own locks and Python's are none of ours.
            openmp = Path(resolved(self.compiler, "libomp.so.5"))
            archer = openmp.with_name("libarcher.so")
            if not archer.exists():
                raise Missing(f"make sanitize needs {archer}, of LLVM's OpenMP. {REMEDY}")
            made["LD_PRELOAD"] = f"{resolved('g++', 'libtsan.so')} {self.modules / 'regions.so'} {openmp}"
            made["OMP_TOOL_LIBRARIES"] = str(archer)
            made["TSAN_OPTIONS"] = f"{common}:halt_on_error=1:ignore_noninstrumented_modules=1:die_after_fork=0"
            made["PYCAP_REGIONS"] = str(self.reports / f"regions-{threads}")
        else:
            # Leaks: Python keeps what it has until it ends, and the process with it; nothing could be told from its blocks.
            # libstdc++: its exceptions must be met before the run time looks for them.
            libraries = ("libasan.so", "libubsan.so", "libstdc++.so")
            made["LD_PRELOAD"] = " ".join(resolved(self.compiler, name) for name in libraries)
            made["ASAN_OPTIONS"] = f"{common}:detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1"
            made["UBSAN_OPTIONS"] = f"{common}:print_stacktrace=1"
        return {**os.environ, **made}


def resolved(compiler: str, library: str) -> str:
    """The path of one of a compiler's libraries. Raises Missing."""
    if shutil.which(compiler) is None:
        raise Missing(f"make sanitize needs {compiler}. {REMEDY}")
    done = subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    if not path.is_absolute():
        raise Missing(f"make sanitize needs {library}, which {compiler} does not find. {REMEDY}")
    return str(path.resolve())


ADDRESS = Build(
    "address",
    os.environ.get("CXX", "g++"),
    "address,undefined",
    {
        "read past a row": "heap-buffer-overflow",
        "write past a row": "heap-buffer-overflow",
        "use after return": "stack-use-after-return",
        "use after scope": "stack-use-after-scope",
        "past an array of the stack": "stack-buffer-overflow",
        "signed overflow": "signed integer overflow",
        "shift too far": "shift exponent",
        "misaligned load": "misaligned address",
        "float out of range": "outside the range of representable values",
        "index out of bounds": "out of bounds",
    },
    # Whatever is written once for all instruction sets is run on v3 alone; v4 has the bindings of bfloat16 tiles.
    (
        Run("v3", 2, (*KERNELS, *ARGUMENTS, *CALLERS)),
        Run("v4", 2, (*KERNELS, *ARGUMENTS, "tests/models/test_bfloat16.py")),
        Run("v1", 2, KERNELS),
    ),
    (NEAR_TIE, ORDER),
)
THREAD = Build(
    "thread",
    "clang++",
    "thread",
    {"race on an accumulator": "data race", "missing barrier": "data race", "single while a loop runs": "data race"},
    # Wrong arguments are refused before there are threads.
    (
        Run("v3", 3, (*KERNELS, *CALLERS)),
        Run("v4", 2, (*KERNELS, "tests/models/test_bfloat16.py")),
        Run("v1", 4, KERNELS),
    ),
    # Its bound is that of the sums as GCC contracts them; clang contracts others.
    ("tests/ops/test_conv2d.py::test_bfloat16_errs_by_its_roundings_only", NEAR_TIE, ORDER),
)
BUILDS = {build.name: build for build in (ADDRESS, THREAD)}
