"""`import pycap` is quick and loads NumPy and nothing else of other people's."""

from __future__ import annotations

import re
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


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


def import_seconds(report: str, module: str) -> float:
    """Cumulative seconds of ``module`` in the report of ``python -X importtime``."""
    found = re.search(rf"^import time:\s*\d+ \|\s*(\d+) \| {re.escape(module)}$", report, re.MULTILINE)
    assert found, f"{module} is not in the report of -X importtime"
    return int(found.group(1)) / 1e6


def test_the_report_is_read() -> None:
    report = "import time: self [us] | cumulative | imported package\nimport time:       120 |      71000 | pycap\n"
    assert import_seconds(report, "pycap") == 0.071


def test_import_is_quick() -> None:
    """The least of five runs: the machine may be busy, the import may not be slow."""
    seconds = [import_seconds(_run("-X", "importtime", "-c", "import pycap").stderr, "pycap") for _ in range(5)]
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
