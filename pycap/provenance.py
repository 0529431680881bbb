"""What something was made with: this pycap, its packages, the machine, the kernels. Plain JSON values, without other files'
contents, and without secrets."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pycap import __version__, backends, device

#: Packages on which the bits of a result may depend: the name told -> the names that it is distributed by.
PACKAGES = {
    "numpy": ("numpy",),
    "scipy-openblas32": ("scipy-openblas32",),
    "pillow": ("pillow",),
    "h5py": ("h5py",),
    "ml_dtypes": ("ml_dtypes",),
    "safetensors": ("safetensors",),
    "nltk": ("nltk",),
    "mpi4py": ("mpi4py",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "triton": ("triton",),
}

#: Instruction sets that matter to the C++ kernels: Linux's name -> the one people know.
FEATURES = {
    "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX",
    "amx_bf16": "AMX BF16", "asimd": "NEON", "sve": "SVE", "bf16": "BF16",
}  # fmt: skip

_VARIABLES = ("PYCAP_", "OMP_", "GOMP_", "OPENBLAS_", "CUDA_", "CUPY_", "NCCL_", "NVIDIA_TF32_", "TRITON_")
_SECRET = re.compile("TOKEN|SECRET|PASSW|KEY|CREDENTIAL")
_DRIVER = Path("/proc/driver/nvidia/version")
_HOME = Path(__file__).resolve().parent


# This pycap -----------------------------------------------------------------------------------------------------------


@cache  # a process goes on with what it began with
def software() -> dict[str, Any]:
    """pycap: its version; commit: of the checkout that it runs from (None: of none, or git cannot tell); dirty: whether files
    that git knows differ from it; sources, compiled: SHA-256 of the Python files and of the compiled modules, wherever they
    are installed. python, and packages: the versions of those that are installed."""
    commit, dirty = checkout()
    sources, compiled = _installed()
    return {
        "pycap": {"version": __version__, "commit": commit, "dirty": dirty, "sources": sources, "compiled": compiled},
        "python": platform.python_version(),
        "packages": {**packages(), **_libraries()},
    }


def checkout(folder: Path = _HOME.parent) -> tuple[str | None, bool | None]:
    """The commit of the git checkout whose top is `folder`, and whether files that git knows differ from it; (None, None) for
    other folders, and where git cannot tell."""
    if not (folder / ".git").exists():  # a wheel, which may lie in a checkout of something else
        return None, None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of another user
        return None, None
    commit, _, dirty = done.stdout.strip().partition("-")
    return commit, bool(dirty)


def packages() -> dict[str, str]:
    """The versions of `PACKAGES` that are installed; nothing is imported."""
    found = {name: next(filter(None, map(_version, names)), None) for name, names in PACKAGES.items()}
    return {name: version for name, version in found.items() if version}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> dict[str, str]:
    """What decodes images inside Pillow."""
    from PIL import features

    known = {"libjpeg-turbo": features.version_feature("libjpeg_turbo"), "libjpeg": features.version("jpg")}
    return {name: version for name, version in known.items() if version}


def _installed() -> tuple[str, str]:
    """SHA-256 of this pycap's Python files and of its compiled modules, names and contents."""
    kernels = _HOME.parent / "kernels"  # in a checkout; a wheel has them inside
    files = [(path, path.relative_to(_HOME).as_posix()) for path in _HOME.rglob("*") if path.is_file()]
    if not (_HOME / "kernels").is_dir() and kernels.is_dir():
        files += [(path, f"kernels/{path.relative_to(kernels).as_posix()}") for path in kernels.rglob("*.py")]
    return tuple(  # type: ignore[return-value]
        _digest((path, name) for path, name in files if path.suffix in suffixes)
        for suffixes in ((".py",), (".so", ".pyd"))
    )


def _digest(files: Iterable[tuple[Path, str]]) -> str:
    told = hashlib.sha256()
    for path, name in sorted(files, key=lambda file: file[1]):
        told.update(f"{name}\0{path.stat().st_size}\0".encode())
        told.update(path.read_bytes())
    return told.hexdigest()


# The machine ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """host: its name. cpu: the model as the system names it; features: of `FEATURES`; cpus: that this process may use. gpu: its
    name, compute capability and memory, where it computes on one; driver: NVIDIA's."""
    name, features = cpu()
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": name,
        "features": features,
        "cpus": device.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "driver": driver(),
        "gpu": _gpu(),
    }


def cpu() -> tuple[str, list[str]]:
    """The CPU's model, and which of `FEATURES` it has."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8") if path.exists() else ""
    lines: dict[str, str] = dict(re.findall(r"^([^\t\n]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = lines.get("flags", lines.get("Features", "")).split()
    name = lines.get("model name") or platform.processor() or platform.machine()
    return name, [known for flag, known in FEATURES.items() if flag in flags]


def driver() -> str | None:
    """The NVIDIA kernel driver's version, as 580.95.05, where the system tells it."""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _DRIVER.read_text("utf-8")) if _DRIVER.exists() else None
    return found[0] if found else None


def _gpu() -> dict[str, Any] | None:
    """The current GPU; None on the CPU."""
    if device.current() != "cuda":
        return None
    runtime = sys.modules["cupy"].cuda.runtime
    properties = runtime.getDeviceProperties(sys.modules["cupy"].cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "capability": f"{properties['major']}.{properties['minor']}",
        "memory_bytes": properties["totalGlobalMem"],
        "cuda_driver": device.cuda_version(runtime.driverGetVersion()),
        "cuda_runtime": device.cuda_version(runtime.runtimeGetVersion()),
    }


# The kernels ----------------------------------------------------------------------------------------------------------


def kernels() -> dict[str, Any]:
    """As selected: device; for each backend the primitives that it serves; bf16: what multiplies bfloat16; of the C++ backend,
    where it serves, isa, threads, its OpenBLAS and compiler."""
    serves: dict[str, list[str]] = {}
    for choice in backends.choices():
        serves.setdefault(choice.backend, []).append(choice.primitive)
    told = {"device": device.current(), "serves": serves, "bf16": backends.bfloat16_unit()}
    if "cpp" in serves:
        info = backends.cpp_info()
        told |= {name: info[name] for name in ("isa", "threads", "openblas", "compiler")}
    return told


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that may decide how is computed, by name; none whose name says that it is a secret (PYCAP_TOKEN)."""
    return {
        name: environ[name]
        for name in sorted(environ)
        if name.startswith(_VARIABLES) and not _SECRET.search(name.upper())
    }
