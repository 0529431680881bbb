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


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


def test_import_is_quick() -> None:
    """In CPU seconds, the least of three runs: the machine may be busy, the import may not be slow."""
    code = "import time; begun = time.process_time(); import pycap; print(time.process_time() - begun)"
    seconds = [float(_run("-c", code).stdout) for _ in range(3)]
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
