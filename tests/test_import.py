"""`import pycap` is quick and loads NumPy and nothing else of other people's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 0.3
# Whatever `import pycap` may bring besides NumPy must be absent from this list.
HEAVY = (
    "PIL",
    "h5py",
    "nltk",
    "rich",
    "jsonargparse",
    "yaml",
    "safetensors",
    "cupy",
    "triton",
    "torch",
    "scipy_openblas32",
)


def _run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


TIMED = """
import os, time
def now():
    waits = "/proc/thread-self/schedstat"  # Linux: ns on a CPU, ns of waiting for one
    return time.perf_counter() - (int(open(waits).read().split()[1]) / 1e9 if os.path.exists(waits) else 0)
begun = now()
import {module}
print(now() - begun)
"""


def import_seconds(module: str, folder: Path = ROOT) -> float:
    """Seconds that an import takes, sleep and disk included, but for those in which other programs had the CPUs."""
    return float(_run("-c", TIMED.format(module=module), folder=folder).stdout)


def test_a_slow_import_is_noticed(tmp_path: Path) -> None:
    """Whether it computes or waits."""
    for name, body in (("sleeps", "time.sleep(0.4)"), ("computes", "while time.process_time() < 0.4: pass")):
        (tmp_path / f"{name}.py").write_text(f"import time\n{body}\n")
        assert import_seconds(name, tmp_path) > LIMIT_S


def test_import_is_quick() -> None:
    """The least of five runs."""
    seconds = [import_seconds("pycap") for _ in range(5)]
    assert min(seconds) < LIMIT_S, f"import pycap took {seconds} s"


def test_import_loads_numpy_only() -> None:
    loaded = set(_run("-c", "import pycap, sys; print(*{name.split('.')[0] for name in sys.modules})").stdout.split())
    assert not loaded & set(HEAVY)


def test_the_core_needs_numpy_only() -> None:
    """GPU machines without the other libraries run the ops: block those libraries and import every core module."""
    code = f"""
import sys
for name in {HEAVY!r}:
    if name != "scipy_openblas32":
        sys.modules[name] = None
import pycap, pycap.autograd, pycap.backends, pycap.ops, pycap.nn, pycap.models, pycap.optim
pycap.backends.explain()
"""
    _run("-c", code)
