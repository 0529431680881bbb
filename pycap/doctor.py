"""The command `pycap doctor`: what this machine has, which kernels run where and why, in what precision, and how much memory
a training run needs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycap import __version__, backends, device

if TYPE_CHECKING:
    from pycap.config import TrainConfig

#: Instruction sets that matter to the C++ kernels: Linux's name -> the one people know.
_FEATURES = {
    "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX",
    "amx_bf16": "AMX BF16", "asimd": "NEON", "sve": "SVE", "bf16": "BF16",
}  # fmt: skip

#: Packages that decide what can run: the import's name -> the names it is distributed by.
_PACKAGES = {
    "numpy": ("numpy",),
    "ml_dtypes": ("ml_dtypes",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "triton": ("triton",),
}

_DRIVER = Path("/proc/driver/nvidia/version")


def examine(args: argparse.Namespace) -> int:
    """`pycap doctor`: print the report, or with args.plan the memory of a run; as JSON where args.json. Status 0 whatever it
    finds. Raises ConfigError for a run that does not fit."""
    if args.plan:
        from pycap.config import parse_args

        config = parse_args(args.options, "pycap doctor --plan")
        planned = memory_plan(config, args.vocabulary, args.ranks)
        print(json.dumps(planned, indent=1) if args.json else plan_as_text(planned, config))
        return 0
    found = report()
    print(json.dumps(found, indent=1) if args.json else as_text(found))
    return 0


def report() -> dict[str, Any]:
    """Plain JSON values. system, cpu, gpu, cuda, packages, mpi: what there is. devices: for each, what serves each primitive
    and why, and what each precision means there. auto: what `--device auto` comes to, and why not a GPU."""
    from pycap.distributed import mpi

    chosen, no_gpu = backends.resolve("auto")
    return {
        "pycap": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "cpu": _cpu(),
        "gpu": _gpu(),
        "cuda": _cuda(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "mpi": mpi.describe(),
        "auto": {"device": chosen, "no_gpu": no_gpu},
        "devices": {name: _device(name) for name in device.DEVICES},
    }


# What there is --------------------------------------------------------------------------------------------------------


def _cpu() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8") if path.exists() else ""
    lines: dict[str, str] = dict(re.findall(r"^([^\t\n]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = lines.get("flags", lines.get("Features", "")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "name": lines.get("model name") or platform.processor() or platform.machine(),
        "features": [name for flag, name in _FEATURES.items() if flag in flags],
        "threads": device.cpu_count(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
    }


def _gpu() -> dict[str, Any]:
    """The current GPU and its driver, or under "obstacle" why none can be used. prebuilt: how many variants of kernels lie
    ready for it, and how many there are; Triton compiles the others."""
    from pycap import cubins

    found: dict[str, Any] = {"obstacle": device.obstacle(), "driver": _driver()}
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


def _driver() -> str | None:
    """The NVIDIA kernel driver's version, as 580.95.05, where the system tells it."""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _DRIVER.read_text("utf-8")) if _DRIVER.exists() else None
    return found[0] if found else None


def _version(name: str) -> str | None:
    """A package's version, without importing it; None where it is not installed."""
    for distribution in _PACKAGES[name]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


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
        if _version("ml_dtypes") is None
        else "widened to float32: saves memory, is no faster"
        if unit == "float32"
        else f"{unit.replace('amx', 'AMX tiles')}{'; float32 arrays as in tf32' if triton else ''}",
    }


# What a run needs -----------------------------------------------------------------------------------------------------


def memory_plan(config: TrainConfig, vocabulary: int, ranks: int = 1) -> dict[str, Any]:
    """Plain JSON values. bytes: what a run needs of the memory of each of `ranks` GPUs, by part, and in all. batch_size: images
    of a step on one of them. micro_batch: images a pass, the largest that fits where there is a GPU. gpu: its name, memory and
    what of it is free; None where a plan is for an H100.

    Raises ConfigError for a run that does not fit, or that asks for the CPU.
    """
    from pycap.config import ConfigError
    from pycap.training import plan

    if config.device == "cpu":
        raise ConfigError("device: memory is planned on a GPU only, and cpu takes it as it goes; give --device cuda")
    gpu = None
    obstacle = device.obstacle()
    if obstacle:
        planned = plan.plan(config, vocabulary, ranks)
    else:
        with backends.use(config.backend, "cuda"):
            available = plan.available_bytes()
            planned = plan.fit(config, vocabulary, available, ranks)
            found = _gpu()
        gpu = {"name": found["name"], "memory_bytes": found["memory_bytes"], "available_bytes": available}
    return {
        "ranks": ranks,
        "batch_size": planned.batch_size,
        "micro_batch": planned.micro_batch,
        "passes": planned.passes,
        "vocabulary": vocabulary,
        "bytes": {**planned.parts, "total": planned.total},
        "gpu": gpu,
        "no_gpu": obstacle,
    }


def plan_as_text(planned: dict[str, Any], config: TrainConfig) -> str:
    """`memory_plan` for people: a line a part, then what there is."""
    learns = "frozen" if config.freeze_cnn else "learning too"
    size, passes = config.image_size, planned["passes"]
    of_all = f" (of {config.batch_size}, on {planned['ranks']} GPUs)" if planned["ranks"] > 1 else ""
    lines = [
        _row(
            "a step",
            f"{planned['batch_size']} images{of_all} of {size}x{size}, {config.seq_per_img} captions each; "
            f"{config.cnn} {learns}, "
            f"{planned['vocabulary']} words, {config.optimizer}, {config.precision}",
        )
    ]
    lines += [f"{name:13}{count / 2**30:8.2f} GiB" for name, count in planned["bytes"].items()]
    gpu = planned["gpu"]
    there = (
        f"{gpu['name']}: {_gib(gpu['memory_bytes'])}, {_gib(gpu['available_bytes'])} of it free for a run"
        if gpu
        else ""
    )
    lines.append(_row("gpu", there or f"none that pycap can use ({planned['no_gpu']}); planned for an H100"))
    each = "the whole batch in one pass" if passes == 1 else f"{passes} passes a step, of the same gradient"
    lines.append(_row("micro-batch", f"{planned['micro_batch']} images: {each}"))
    return "\n".join(lines)


# As text --------------------------------------------------------------------------------------------------------------


def as_text(found: dict[str, Any]) -> str:
    """The report for people: a line a fact, then for each device its precisions and who serves which primitives."""
    cpu, auto = found["cpu"], found["auto"]
    have = [f"{name} {version}" for name, version in found["packages"].items() if version]
    lack = [name for name, version in found["packages"].items() if not version]
    why = f": {auto['no_gpu']}" if auto["no_gpu"] not in ("", found["gpu"]["obstacle"]) else ""
    lines = [
        _row("pycap", f"{found['pycap']} on {found['system']}"),
        _row("cpu", f"{cpu['name']}: {', '.join(cpu['features']) or 'no SIMD that pycap knows'}"),
        _row("", f"{cpu['threads']} of {cpu['cpus']} threads, {_gib(cpu['memory_bytes'])} of memory"),
        *_gpu_lines(found["gpu"], bool(found["packages"]["triton"])),
        _row("kernels", _cuda_text(found["cuda"])),
        _row("packages", ", ".join(have) + (f"; not installed: {', '.join(lack)}" if lack else "")),
        _row(
            "mpi",
            f"{found['mpi']}, for several processes"
            if found["mpi"]
            else 'none: to train on several processes, pip install "pycap-captioning[distributed]"',
        ),
        _row("auto", f"--device auto computes on {auto['device']}{why}"),
    ]
    for name, what in found["devices"].items():
        lines += ["", f"on {name}"]
        if what["obstacle"]:
            lines.append(_row("  nothing", "no GPU, as told above"))
            continue
        lines += [_row(f"  {precision}", meaning) for precision, meaning in what["precisions"].items()]
        groups: dict[tuple[str, str], list[str]] = {}
        for choice in what["choices"]:
            groups.setdefault((choice["backend"], choice["reason"]), []).append(choice["primitive"])
        for (backend, reason), primitives in groups.items():
            lines.append(_row(f"  {backend}", f"{' '.join(primitives)} ({reason})"))
    return "\n".join(lines)


def _gpu_lines(gpu: dict[str, Any], compiles: bool) -> list[str]:
    if gpu["obstacle"]:
        driver = f" (driver {gpu['driver']})" if gpu["driver"] else ""
        return [_row("gpu", f"none that pycap can use{driver}: {gpu['obstacle']}")]
    others = f", number {gpu['number']} of {gpu['count']}" if gpu["count"] > 1 else ""
    covered, variants = gpu["prebuilt"]["covered"], gpu["prebuilt"]["variants"]
    rest = "Triton compiles the others at their first use" if compiles else "the others need Triton: pip install triton"
    return [
        _row(
            "gpu",
            f"{gpu['name']}{others}: compute capability {gpu['capability']}, {_gib(gpu['memory_bytes'])} of memory",
        ),
        _row(
            "",
            f"driver {gpu['driver'] or 'unknown'}, CUDA {gpu['cuda']['driver']}; CuPy for CUDA {gpu['cuda']['cupy']}",
        ),
        _row("", f"{covered} of {variants} forms of kernels prebuilt" + (f"; {rest}" if covered < variants else "")),
    ]


def _cuda_text(cuda: dict[str, Any]) -> str:
    if cuda["obstacle"]:
        return f"CUDA kernels: {cuda['obstacle']}"
    kinds = [f"PTX of {name}" if name.startswith("compute") else name for name in cuda["architectures"]]
    return f"CUDA kernels for {', '.join(kinds)}, with CUDA {cuda['runtime']}"


def _row(name: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"{name:13}", subsequent_indent=" " * 13, break_on_hyphens=False)


def _gib(count: int | None) -> str:
    return "unknown size" if count is None else f"{count / 2**30:.1f} GiB"
