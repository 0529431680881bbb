"""A service shares its machine: what it asks of OpenMP and of malloc is what they then do."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: argv: whether it is considerate. Says how many blocks malloc has mapped for an image, after it has freed a larger one.
PROCESS = """
import ctypes, sys
from pycap.web.neighbours import be_considerate

class Mallinfo2(ctypes.Structure):  # mallinfo(3): the fourth is the number of blocks that are mapped
    _fields_ = [(f"field{at}", ctypes.c_size_t) for at in range(10)]
    hblks = property(lambda info: info.field3)

library = ctypes.CDLL(None)
library.mallinfo2.restype = Mallinfo2
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "True":
    be_considerate()
from pycap.backends import cpp
library.free(library.malloc(20_000_000))
before = library.mallinfo2().hblks
library.malloc(2_000_000)
print(library.mallinfo2().hblks - before)
"""


def process(considerate: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """What PROCESS says, and on stderr OpenMP's settings as it reads them."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return subprocess.run(
        [sys.executable, "-c", PROCESS, str(considerate)],
        env={**kept, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc of 2.33 or newer")
def test_the_memory_of_an_image_goes_back_though_a_larger_one_was_freed_before() -> None:
    assert process(True).stdout == "1\n"
    assert process(False).stdout == "0\n", "malloc gives it back by itself: be_considerate need not ask"


@pytest.mark.skipif(platform.system() != "Linux", reason="OpenMP's settings are looked at as libgomp prints them")
def test_threads_of_the_kernels_wait_asleep_unless_the_environment_says_otherwise() -> None:
    pytest.importorskip("pycap.backends.cpp")
    turns = re.compile(r"GOMP_SPINCOUNT = '(\d+)'")
    spun = [
        turns.search(made.stderr) for made in (process(True), process(True, OMP_WAIT_POLICY="ACTIVE"), process(False))
    ]
    asleep, active, default = (int(found[1]) for found in spun if found is not None)
    assert asleep == 0 < default < active
