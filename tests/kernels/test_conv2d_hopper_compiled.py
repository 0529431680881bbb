"""The Hopper convolutions compiled for sm_90, without a GPU: every row of configs_hopper, its stack, shared memory, wgmma.

Run as a script, this file compiles one kernel and prints what came out as JSON: Triton must not have been loaded for its
interpreter, which other tests do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = 232448  # bytes that a program may have on sm_90
POINTERS = {"bias": "*fp32", "sums": "*fp32", "partials": "*fp32"}


def compile_kernel(kernel: str, row: dict[str, Any], element: str, absent: list[str]) -> dict[str, Any]:
    """Compile one kernel for the constexprs of `row`, elements "bf16" or "fp16" and the arguments `absent` None."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from kernels import configs_hopper, conv2d_hopper

    sizes = row | {"BH//2": row["BH"] // 2, "BW//2": row["BW"] // 2}
    constants = {name: value for name, value in row.items() if name != "num_warps"} | dict.fromkeys(absent)
    if kernel == "forward":
        constants["RELU"] = True
    signature = {}
    function = getattr(conv2d_hopper, kernel)
    for name in function.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in configs_hopper.TENSOR_MAPS[kernel]:
            _, block, size = configs_hopper.TENSOR_MAPS[kernel][name]
            block = [sizes.get(length, length) for length in block]
            dtype = {"bf16": gl.bfloat16, "fp16": gl.float16}[element] if size == 2 else gl.uint8
            layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
            signature[name] = f"tensordesc<{element if size == 2 else 'u8'}{block},{layout!r}>"
        else:
            signature[name] = POINTERS.get(name, "i32")
    source = GluonASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": row["num_warps"]})
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    usage = subprocess.run(
        [tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    return {
        "stack": [int(size) for size in re.findall(r"STACK:(\d+)", usage)],
        "shared": compiled.metadata.shared,
        "wgmma": compiled.asm["ptx"].count("wgmma.mma_async"),
    }


def compiled(tmp_path: Path, *arguments: Any) -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, __file__, json.dumps(arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _distinct() -> dict[str, tuple[str, dict[str, Any]]]:
    """Layers that share a kernel and its constexprs are compiled once."""
    from kernels.configs_hopper import ROWS

    return {json.dumps([key[0], row]): (f"{key[0]}-{key[1]}", row) for key, row in ROWS.items()}


@pytest.mark.triton
@pytest.mark.parametrize(("name", "row"), [pytest.param(*case, id=case[0]) for case in _distinct().values()])
def test_a_row_compiles_without_stack(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    result = compiled(tmp_path, name.split("-")[0], row, "bf16", [])
    assert set(result["stack"]) == {0}
    assert result["shared"] <= SHARED_MEMORY
    assert result["wgmma"] > 0


if __name__ == "__main__":
    print(json.dumps(compile_kernel(*json.loads(sys.argv[1]))))
