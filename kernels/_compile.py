"""Compiles one variant of a kernel with Triton, without a GPU: machine code, and what a launch must know of it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a*b+c in one rounding; Triton 3.10 turns it off by default

#: Bytes of shared memory that a block may ask for.
SHARED_LIMIT = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448}


@dataclass(frozen=True)
class Compiled:
    """Machine code of one variant of a kernel.

    cubin: the code. symbol: the function's name in it. shared: bytes of dynamic shared memory. threads: a block.
    scratch: trailing pointer parameters that Triton adds for itself, to be passed as null. cooperative: whether all blocks
    must run at once. descriptors: of each tensor descriptor among the parameters, in order, (box, swizzle) as the driver's
    tensor map takes them.
    """

    cubin: bytes
    symbol: str
    shared: int
    threads: int
    scratch: int
    cooperative: bool = False
    descriptors: tuple[tuple[tuple[int, ...], int], ...] = ()

    def facts(self) -> dict[str, Any]:
        """All but the code, for a JSON file."""
        return {name: value for name, value in asdict(self).items() if name != "cubin"}


def function(kernel: str) -> Any:
    """The Triton function of a kernel's name: "linear.forward" is `forward` in kernels/linear.py."""
    module, name = kernel.split(".")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def compile_kernel(
    kernel: str,
    signature: Mapping[str, str],
    aligned: Mapping[str, int],
    constants: Mapping[str, Any],
    arch: str,
    warps: int,
    stages: int,
    cooperative: bool = False,
) -> tuple[Compiled, str]:
    """Compile for "sm_80" and the like; returns the machine code and its PTX.

    signature: parameter -> Triton type ("*bf16", "i32", "constexpr"). aligned: parameters that are multiples of so many
    (bytes for pointers). constants: the compile-time parameters' values. Raises RuntimeError, naming the kernel and the
    variant, where Triton cannot compile it.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    fn = function(kernel)
    if getattr(fn, "is_gluon", lambda: False)():
        from triton.experimental.gluon._runtime import GluonASTSource as Source
    else:
        from triton.compiler import ASTSource as Source
    names = list(signature)
    attrs = {(names.index(name),): [["tt.divisibility", multiple]] for name, multiple in aligned.items()}
    options: dict[str, Any] = {"num_warps": warps, "num_stages": stages}
    if cooperative:
        options["launch_cooperative_grid"] = True
    try:
        made = triton.compile(
            Source(fn=fn, signature=dict(signature), constexprs=dict(constants), attrs=attrs),
            target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
            options=options,
        )
    except Exception as error:
        raise RuntimeError(
            f"{kernel} {dict(constants)} for {arch} does not compile with Triton {triton.__version__}: {error}"
        ) from error
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise RuntimeError(f"{kernel} {dict(constants)} for {arch} asks for scratch memory, which pycap does not give")
    described = tuple((tuple(d["block_size"]), d["swizzle"]) for d in made.metadata.tensordesc_meta or ())
    # A descriptor is passed as a tensor map, and the array's size and stride in each dimension.
    own = sum(kind != "constexpr" for kind in signature.values()) + sum(2 * len(box) for box, _ in described)
    scratch = len(ptx_parameters(made.asm["ptx"])) - own
    threads = int(re.search(r"\.reqntid (\d+)", made.asm["ptx"])[1])  # type: ignore[index]
    compiled = Compiled(
        made.asm["cubin"], made.metadata.name, made.metadata.shared, threads, scratch, cooperative, described
    )
    return compiled, made.asm["ptx"]


def descriptor_type(element: str, box: Sequence[int]) -> str:
    """Triton's type of a tensor descriptor that moves boxes of this shape, in shared memory's default layout for them."""
    from triton.experimental.gluon import language as gl

    types = {"fp32": gl.float32, "bf16": gl.bfloat16, "fp16": gl.float16, "u8": gl.uint8}
    layout = gl.NVMMASharedLayout.get_default_for(list(box), types[element])
    return f"tensordesc<{element}[{','.join(map(str, box))}],{layout!r}>"


def ptx_parameters(ptx: str) -> list[tuple[int, int]]:
    """(bytes, alignment) of each parameter of the entry function, in order."""
    entry = ptx[ptx.index(".entry") :]
    found = []
    for line in re.findall(r"\.param ([^\n]*?)[,\n)]", entry[: entry.index("{")]):
        array = re.match(r"\.align (\d+) \.b8 \S+\[(\d+)\]", line)
        if array:
            found.append((int(array[2]), int(array[1])))
        else:
            size = int(re.match(r"\.[a-z](\d+)", line)[1]) // 8  # type: ignore[index]
            found.append((size, size))
    return found


def resources(cubin: bytes) -> dict[str, int]:
    """What ptxas reports of machine code: {"REG": registers a thread, "STACK": bytes of stack a thread, ...}."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", report[report.index("Function") :])}
    return usage


def parameter_names(kernel: str) -> list[str]:
    """The names of a kernel's parameters, in order."""
    fn = function(kernel)
    return list(getattr(fn, "arg_names", None) or fn.fn.arg_names)
