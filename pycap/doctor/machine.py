"""The machine: what it has, which kernels run where and why, in what precision, and where there is room for a run."""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from pycap import __version__, backends, device, provenance
from pycap.doctor import disk
from pycap.doctor.rows import row

#: Packages that decide what can run.
_PACKAGES = ("numpy", "ml_dtypes", "cupy", "triton")

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # bytes: what cgroup v1 writes for none is larger


def report() -> dict[str, Any]:
    """Plain JSON values. system, cpu, gpu, cuda, packages, mpi: what there is. devices: for each, what serves each primitive
    and why, and what each precision means there. auto: what `--device auto` comes to, and why not a GPU. disk: `disk.default`.
    findings: severity, what and remedy of what else should be known."""
    from pycap.distributed import mpi

    chosen, no_gpu = backends.resolve("auto")
    return {
        "pycap": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "cpu": _cpu(),
        "gpu": gpu(),
        "cuda": _cuda(),
        "packages": {name: provenance.packages().get(name) for name in _PACKAGES},
        "mpi": mpi.describe(),
        "auto": {"device": chosen, "no_gpu": no_gpu},
        "devices": {name: _device(name) for name in device.DEVICES},
        "disk": disk.default(),
        "findings": _thread_findings(),
    }


# What there is --------------------------------------------------------------------------------------------------------


def _cpu() -> dict[str, Any]:
    name, features = provenance.cpu()
    return {
        "name": name,
        "features": features,
        "threads": device.cpu_count(),
        "cpus": os.cpu_count(),
        "allowed": device.allowed_cpus(),
        **memory(),
    }


def memory() -> dict[str, int | None]:
    """memory_bytes: of the machine; limit_bytes: of the container, where it has one; available_bytes: what new programs can
    take within both. None where the system does not tell."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    path = _PROC / "meminfo"
    told = re.search(r"^MemAvailable:\s+(\d+) kB$", path.read_text("utf-8") if path.exists() else "", re.MULTILINE)
    available = int(told[1]) * 1024 if told else None
    limit = None
    for folder in _control_groups():
        own = next((n for n in (_number(folder, name) for name in ("memory.max", "memory.limit_in_bytes")) if n), None)
        if own is None or own >= _NO_LIMIT:
            continue
        limit = min(own, limit or own)
        used = next((n for n in (_number(folder, f"memory.{name}") for name in ("current", "usage_in_bytes")) if n), 0)
        # Pages of files that were read count as used, until somebody needs the memory.
        stat = folder / "memory.stat"
        idle = re.search(r"^(?:total_)?inactive_file (\d+)$", stat.read_text() if stat.exists() else "", re.MULTILINE)
        left = max(own - used + (int(idle[1]) if idle else 0), 0)
        available = left if available is None else min(available, left)
    return {"memory_bytes": total, "limit_bytes": limit, "available_bytes": available}


def _control_groups() -> list[Path]:
    """Folders of the control groups that limit this process: its own and those above, of version 2 and of version 1."""
    path = _PROC / "self" / "cgroup"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    folders = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            base = _CGROUPS / controllers
            inner = base / place.lstrip("/")
            folders += [folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents]
    return folders


def _number(folder: Path, name: str) -> int | None:
    """What a file of a control group says; None for `max`, and without the file."""
    try:
        text = (folder / name).read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _thread_findings() -> list[dict[str, str]]:
    """Threads that would wait for each other."""
    asked, allowed = os.environ.get("OMP_NUM_THREADS", ""), device.allowed_cpus()
    if not asked.isdigit() or int(asked) <= allowed:
        return []
    what = f"OMP_NUM_THREADS={asked} asks for more threads than the {allowed} CPUs that this process may use: they wait for "
    return [disk.finding("warning", what + "each other", f"unset OMP_NUM_THREADS, or set it to {allowed}")]


def gpu() -> dict[str, Any]:
    """The current GPU and its driver, or under "obstacle" why none can be used. prebuilt: how many variants of kernels lie
    ready for it, and how many there are; Triton compiles the others."""
    from pycap import cubins

    found: dict[str, Any] = {"obstacle": device.obstacle(), "driver": provenance.driver()}
    cupy = sys.modules.get("cupy")
    if found["obstacle"] or cupy is None:
        return found
    runtime = cupy.cuda.runtime
    number = cupy.cuda.Device().id
    properties = runtime.getDeviceProperties(number)
    arch = f"sm_{properties['major']}{properties['minor']}"
    covered, variants = cubins.coverage(arch)
    return {
        **found,
        "name": properties["name"].decode(),
        "number": number,
        "count": runtime.getDeviceCount(),
        "capability": f"{properties['major']}.{properties['minor']}",
        "arch": arch,
        "memory_bytes": properties["totalGlobalMem"],
        "multiprocessors": properties["multiProcessorCount"],
        "cuda": {
            "driver": device.cuda_version(runtime.driverGetVersion()),
            "cupy": device.cuda_version(runtime.runtimeGetVersion()),
        },
        "prebuilt": {"covered": covered, "variants": variants},
    }


def _cuda() -> dict[str, Any]:
    """The compiled CUDA kernels: for which GPUs ("sm_80": machine code; "compute_80": PTX for newer ones), with which version
    of CUDA; or under "obstacle" why they are not there."""
    try:
        module = importlib.import_module("pycap._cuda")
    except ImportError as error:
        return {"obstacle": f"not built, for which nvcc is needed ({error})"}
    return {
        "obstacle": "",
        "architectures": module.architectures.split(),
        "runtime": device.cuda_version(module.runtime),
    }


# What runs where ------------------------------------------------------------------------------------------------------


def _device(name: str) -> dict[str, Any]:
    obstacle = device.obstacle() if name == "cuda" else ""
    if obstacle:
        return {"obstacle": obstacle, "precisions": {}, "choices": []}
    with backends.use("auto", name):
        unit = backends.bfloat16_unit()
    choices = backends.choose(name)
    choice = next(c for c in choices if c.primitive == "linear_forward")
    return {
        "obstacle": "",
        "precisions": _precisions(choice.backend, unit),
        "choices": [{"primitive": c.primitive, "backend": c.backend, "reason": c.reason} for c in choices],
    }


def _precisions(backend: str, unit: str) -> dict[str, str]:
    """What each value of --precision means where `backend` multiplies, and `unit` does so in bfloat16."""
    triton = backend == "triton"
    return {
        "fp32": "three TensorFloat-32 products each, as exact as float32" if triton else "float32",
        "tf32": "one TensorFloat-32 product each" if triton else "the same as fp32",
        "bf16": "needs the package ml_dtypes"
        if "ml_dtypes" not in provenance.packages()
        else "widened to float32: saves memory, is no faster"
        if unit == "float32"
        else f"{unit.replace('amx', 'AMX tiles')}{'; float32 arrays as in tf32' if triton else ''}",
    }


# As text --------------------------------------------------------------------------------------------------------------


def as_text(found: dict[str, Any]) -> str:
    """The report for people: a line a fact, then for each device its precisions and who serves which primitives."""
    cpu, auto = found["cpu"], found["auto"]
    have = [f"{name} {version}" for name, version in found["packages"].items() if version]
    lack = [name for name, version in found["packages"].items() if not version]
    why = f": {auto['no_gpu']}" if auto["no_gpu"] not in ("", found["gpu"]["obstacle"]) else ""
    lines = [
        row("pycap", f"{found['pycap']} on {found['system']}"),
        row("cpu", f"{cpu['name']}: {', '.join(cpu['features']) or 'no SIMD that pycap knows'}"),
        row("", f"{cpu['threads']} of {cpu['cpus']} threads{_limited(cpu)}"),
        row("memory", memory_text(cpu)),
        *_gpu_lines(found["gpu"], bool(found["packages"]["triton"])),
        row("kernels", _cuda_text(found["cuda"])),
        row("packages", ", ".join(have) + (f"; not installed: {', '.join(lack)}" if lack else "")),
        row(
            "mpi",
            f"{found['mpi']}, for several processes"
            if found["mpi"]
            else 'none: to train on several processes, pip install "pycap-captioning[distributed]"',
        ),
        row("auto", f"--device auto computes on {auto['device']}{why}"),
        *disk.as_lines(found["disk"], found["findings"]),
    ]
    for name, what in found["devices"].items():
        lines += ["", f"on {name}"]
        if what["obstacle"]:
            lines.append(row("  nothing", "no GPU, as told above"))
            continue
        lines += [row(f"  {precision}", meaning) for precision, meaning in what["precisions"].items()]
        groups: dict[tuple[str, str], list[str]] = {}
        for choice in what["choices"]:
            groups.setdefault((choice["backend"], choice["reason"]), []).append(choice["primitive"])
        for (backend, reason), primitives in groups.items():
            lines.append(row(f"  {backend}", f"{' '.join(primitives)} ({reason})"))
    return "\n".join(lines)


def _limited(cpu: dict[str, Any]) -> str:
    return (
        f" (the container or the affinity mask allows {cpu['allowed']})" if cpu["allowed"] < (cpu["cpus"] or 0) else ""
    )


def memory_text(cpu: dict[str, Any]) -> str:
    """`memory`, for people."""
    limit = f"; the container may take {gib(cpu['limit_bytes'])}" if cpu["limit_bytes"] else ""
    return f"{gib(cpu['memory_bytes'])}, {gib(cpu['available_bytes'])} of it free for programs{limit}"


def _gpu_lines(gpu: dict[str, Any], compiles: bool) -> list[str]:
    if gpu["obstacle"]:
        driver = f" (driver {gpu['driver']})" if gpu["driver"] else ""
        return [row("gpu", f"none that pycap can use{driver}: {gpu['obstacle']}")]
    others = f", number {gpu['number']} of {gpu['count']}" if gpu["count"] > 1 else ""
    covered, variants = gpu["prebuilt"]["covered"], gpu["prebuilt"]["variants"]
    rest = "Triton compiles the others at their first use" if compiles else "the others need Triton: pip install triton"
    return [
        row(
            "gpu",
            f"{gpu['name']}{others}: compute capability {gpu['capability']}, {gib(gpu['memory_bytes'])} of memory",
        ),
        row(
            "",
            f"driver {gpu['driver'] or 'unknown'}, CUDA {gpu['cuda']['driver']}; CuPy for CUDA {gpu['cuda']['cupy']}",
        ),
        row("", f"{covered} of {variants} forms of kernels prebuilt" + (f"; {rest}" if covered < variants else "")),
    ]


def _cuda_text(cuda: dict[str, Any]) -> str:
    if cuda["obstacle"]:
        return f"CUDA kernels: {cuda['obstacle']}"
    kinds = [f"PTX of {name}" if name.startswith("compute") else name for name in cuda["architectures"]]
    return f"CUDA kernels for {', '.join(kinds)}, with CUDA {cuda['runtime']}"


def gib(count: int | None) -> str:
    """Bytes, for people."""
    return "unknown size" if count is None else f"{count / 2**30:.1f} GiB"
