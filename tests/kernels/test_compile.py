"""Every GPU kernel, with each row of its configuration table, compiled for sm_80 and sm_90, without a GPU or PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def _python(script, *arguments):
    """A Python of its own: Triton decides when it is imported whether it interprets or compiles."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


_BUILD = """
import sys
from pycap.cubins import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(status)
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_variant_compiles_within_the_limits(arch):
    """No stack, shared memory that the architecture has, parameters packed as the PTX lists them."""
    done = _python(_BUILD, "--check", "--arch", arch)
    assert done.returncode == 0, done.stderr
    made, of = done.stdout.split(": ")[1].split(" variants")[0].split(" of ")
    assert made == of and int(made) > 0, done.stdout


def test_float16_compiles():
    done = _python(_BUILD, "--check", "--arch", "sm_90", "--float16")
    assert done.returncode == 0, done.stderr
    assert "T=bf16" not in done.stdout


_BROKEN = """
import sys
import triton
from pycap.backends.triton import cast, launching
from pycap import cubins
kernel = launching.Kernel("cast.forward", sys.argv[3], variants=[{"Y": "fp32", "X": "fp32"}])
configs, Row = launching.kernel_module("configs"), launching.Row
configs.ROWS["cast.forward"] = {"sm_80": (Row(eval(sys.argv[1]), **eval(sys.argv[2])),)}
sys.exit(cubins.main(["--check", "--arch", "sm_80", "--only", "cast.", "--jobs", "1"]))
"""


@pytest.mark.parametrize(
    ("blocks", "options", "said"),
    [
        ({"BLOCK": 16384}, {"warps": 1}, "bytes of stack"),
        ({"BLOCK": 1000}, {}, "does not compile"),
        ({"BLOK": 1024}, {}, "takes y, x, n, beta, BLOCK; its declaration and row give"),
    ],
)
def test_a_bad_row_is_found(blocks, options, said):
    done = _python(_BROKEN, repr(blocks), repr(options), "y:*Y x:*X n:i32 beta:fp32")
    assert done.returncode == 1
    assert said in done.stderr


def test_parameters_in_another_order_are_found():
    """Of equal sizes, so that only their names tell."""
    done = _python(_BROKEN, "{'BLOCK': 1024}", "{}", "x:*X y:*Y n:i32 beta:fp32")
    assert done.returncode == 1
    assert "takes y, x, n, beta, BLOCK; its declaration and row give x, y, n, beta, BLOCK" in done.stderr


_WGMMA = """
from pycap import cubins
for name in ("conv2d_hopper.forward", "conv2d_hopper.backward_data", "conv2d_hopper_weight.backward_weight"):
    compiled, ptx = cubins.variants("sm_90", name)[0].compile("sm_90")
    assert "wgmma.mma_async" in ptx and "cp.async.bulk.tensor.4d" in ptx, name
    assert len(compiled.descriptors) >= 3 and compiled.threads == 384, name
print("all use the copy engine and wgmma")
"""


def test_hopper_kernels_use_what_hopper_has():
    """Four-dimensional copies, wgmma, and three warp groups: two that multiply, and the loader's."""
    done = _python(_WGMMA)
    assert done.stdout.startswith("all"), done.stderr


_WIDE = """
from pycap import cubins
for arch in ("sm_80", "sm_90"):
    for name, lists in (("optim.adam", 4), ("optim.rmsprop", 3), ("optim.sgd", 3), ("optim.sum_squares", 1)):
        for variant in cubins.variants(arch, name):
            ptx, aligned = variant.compile(arch)[1], "ALIGNED=True" in variant.describe()
            wide = ptx.count("ld.global.v4.b32")
            assert wide >= lists if aligned else wide == 0, variant.describe()
print("all as declared")
"""


def test_optimisers_load_16_bytes_at_once_where_arrays_are_aligned():
    done = _python(_WIDE)
    assert done.stdout.startswith("all"), done.stderr
