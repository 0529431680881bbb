"""What a result must say of where it was measured: commit, CPU, memory, versions; and a process's peak memory."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path


def commit() -> str:
    """The checkout's commit, marked where files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    """The CPU's model as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of the distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def available_gib() -> float:
    """Memory that programs may still take, in GiB; infinite where the system does not say."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 2**20
    return float("inf")


def busy_cpu_s() -> float:
    """CPU seconds that all programs together have used since the system's start (0 where it does not say)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def peak_mib() -> float:
    """The most memory that this process held since `forget_peak`, in MiB (0 where the system does not say)."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), 0.0)
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak() -> None:
    """Collect garbage, and on Linux begin the count of the peak again (proc_pid_clear_refs(5))."""
    gc.collect()
    counter = Path("/proc/self/clear_refs")
    if os.access(counter, os.W_OK):
        counter.write_text("5")


def rest(quiet: float = 0.1, limit_s: float = 1.0) -> None:
    """Return once this process's threads have stopped spinning: they used under `quiet` of one CPU for 10 ms.

    OpenMP and TBB threads spin for up to 0.2 s after their work, on CPUs that the next side needs. Gives up after limit_s.
    """
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        begin, used = time.perf_counter(), time.process_time()
        time.sleep(0.01)
        if time.process_time() - used < quiet * (time.perf_counter() - begin):
            return
