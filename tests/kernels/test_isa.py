"""The CPU kernels are built once per instruction set: no code leaks between the builds, and all of them agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("pycap.backends.cpp", reason="pycap._cpu is not built", exc_type=ImportError)

PROBE = """
import json, sys
import numpy as np
from pycap.backends import cpp

rng = np.random.default_rng(5)
def f(*shape):
    return rng.standard_normal(shape, dtype=np.float32)

out = {"isa": cpp.isa()}
def keep(name, *arrays):
    out[name] = [float(v) for a in arrays for v in np.asarray(a, np.float64).ravel()[:: max(1, a.size // 50)]]

for name, c, k, size in (("winograd", 16, 48, 11), ("direct", 3, 32, 9), ("im2col", 5, 7, 8)):
    x, w, b = f(2, size, size, c), f(k, 3, 3, c), f(k)
    y = np.empty((2, size // 2, size // 2, k), np.float32)
    argmax = np.empty((2, size // 2, size // 2, -(-k // 4)), np.uint8)
    cpp.conv2d_pool_forward(y, argmax, x, w, b, 1, 1)
    dy, dx, dw, db = f(*y.shape), np.empty_like(x), np.empty_like(w), np.empty_like(b)
    cpp.conv2d_backward_data(dx, dy, w, y, argmax, 1, 1, 0.0)
    cpp.conv2d_backward_weight(dw, db, dy, x, y, argmax, 1, 1, 0.0, 0.0)
    keep(name, y, dx, dw, db)
T, N, I, H = 4, 5, 7, 19
h, c, gates = (np.empty((T, N, n), np.float32) for n in (H, H, 4 * H))
cpp.lstm_forward(h, c, gates, f(T, N, I), None, None, f(4 * H, I), f(4 * H, H), f(4 * H), None)
keep("lstm", h, c, gates)
loss, dlogits = np.empty(9, np.float32), np.empty((9, 101), np.float32)
cpp.linear_xent_forward(loss, dlogits, f(9, 13), f(101, 13), f(101), np.arange(9, dtype=np.int32), None)
keep("xent", loss, dlogits)
dropped = np.empty((2, 3, 17), np.float32)
cpp.dropout(dropped, f(2, 3, 17), 0.5, 12345, 3, 0, 0.0)
keep("dropout", dropped)
print(json.dumps(out))
"""


def probe(isa: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYCAP_ISA": isa, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture(scope="module")
def default_results() -> dict:
    done = probe("")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("isa", ["v4", "v3", "v1", "native"])
def test_every_instruction_set_computes_the_same(isa: str, default_results: dict) -> None:
    done = probe(isa)
    if "lacks its instructions" in done.stderr or "is unknown" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.pop("isa") == isa
    for name, values in results.items():
        expected = default_results[name]
        scale = max(map(abs, expected))
        assert len(values) == len(expected) and scale > 0
        worst = max(abs(a - b) for a, b in zip(values, expected, strict=True))
        assert worst <= 2e-5 * scale, f"{name}: {isa} and {default_results['isa']} differ by {worst:.2e} of {scale:.2e}"


def test_the_probe_shows_differences(default_results: dict) -> None:
    """The samples that are compared are no constants, or the comparison above would prove nothing."""
    for name, values in default_results.items():
        assert name == "isa" or len(set(values)) > 10, name


def test_an_impossible_wish_raises() -> None:
    done = probe("z80")
    assert done.returncode != 0
    assert "ImportError: PYCAP_ISA=z80 is unknown; choose one of:" in done.stderr


def kernel_objects() -> list[Path]:
    """Those of builds that are used; builds for sanitizers hold more than the kernels."""
    found = ROOT.glob("build/**/kernels_*.dir/csrc/cpu/*.o")
    return sorted(path for path in found if not path.relative_to(ROOT / "build").parts[0].startswith("sanitize-"))


def test_kernel_objects_share_no_symbols() -> None:
    """A weak symbol of the AVX-512 build could be the one that the linker keeps for the baseline build."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    objects = kernel_objects()
    if not objects:
        pytest.skip("no kernel objects under build/: pycap was installed from a wheel")
    listed = subprocess.run([nm, "--print-file-name", *map(str, objects)], capture_output=True, text=True, check=True)
    leaks, defined = [], 0
    for line in listed.stdout.splitlines():
        match = re.match(r"(.*):[0-9a-f]* *([A-Za-z]) (\S+)$", line)
        assert match, line
        path, kind, symbol = match.groups()
        isa = re.search(r"kernels_(\w+)\.dir", path)
        assert isa, path
        if kind in "WVwvu":
            leaks.append(f"{path}: weak {symbol}")
        elif kind in "TDBRG":
            defined += 1
            if f"5pycap{len(isa[1])}{isa[1]}" not in symbol:
                leaks.append(f"{path}: {symbol} is not in namespace pycap::{isa[1]}")
    assert defined > 0
    assert not leaks, "\n".join(leaks)


def test_baseline_objects_hold_no_wide_vectors() -> None:
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump (binutils) is not installed")
    baseline = [path for path in kernel_objects() if "kernels_v1" in str(path)]
    if not baseline:
        pytest.skip("no baseline x86-64 objects under build/")
    code = subprocess.run([objdump, "-d", *map(str, baseline)], capture_output=True, text=True, check=True).stdout
    assert "%xmm" in code
    assert not re.search(r"%[yz]mm", code)
