"""The one way to launch a kernel: on CuPy arrays through the CUDA driver, or on NumPy arrays in Triton's interpreter.

A `Kernel` is declared beside its caller, with the types of its run-time parameters and the variants that are built
ahead. The first launch of a variant takes its machine code from the prebuilt bundle or the user's cache, else compiles it
with Triton and keeps it; from then on a launch is a dictionary look-up, one packing of parameters and one call of the
driver, on CuPy's current stream. So it may stand in a CUDA graph's capture, once each variant has been launched before.

    forward = Kernel("linear.forward", "y:*T x:*T w:*W b:*fp32 m:i32 i:i32/16 o:i32", variants=[{"T": "bf16", "W": "fp32"}])
    forward((programs, 1, 1), row, y, x, w, None, m, i, o, RELU=True)

Types: ``*T`` is a pointer to a type variable's type, ``*fp32`` to a fixed one; None passes a null pointer. ``#T(A,B)`` is a
tensor descriptor of an array with two dimensions, moved in boxes of the row's blocks A by B (or ``64``, or ``A/2``); the
array may be strided, but for its last dimension. ``?`` before a type: None compiles a form without that parameter. ``i32/16``
is compiled for multiples of 16 wherever the arguments allow it, all pointers being multiples of 16 bytes too. Other
keywords are compile-time constants, and so is what the row holds.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import _compile, _driver, _store
from ._rows import Row, Table, find

#: NumPy's names of types -> Triton's.
TYPES = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64",
    "uint8": "u8", "int32": "i32", "uint32": "u32", "int64": "i64", "uint64": "u64",
}  # fmt: skip
#: Triton's scalar types -> how `struct` packs them.
_PACK = {"i32": "i", "u32": "I", "i64": "q", "u64": "Q", "fp32": "f", "fp64": "d"}

#: Every kernel that was declared, by name.
KERNELS: dict[str, Kernel] = {}

_interpreting = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # as Triton itself reads it, once


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: $TRITON_INTERPRET asked for it when this was imported."""
    return _interpreting and _assumed is None


@dataclass(frozen=True)
class Machine:
    """A GPU that is planned for and need not be there: its architecture, as "sm_90", and how many multiprocessors it has."""

    arch: str
    multiprocessors: int


_suppressed = False
_assumed: Machine | None = None


@contextmanager
def dry(machine: Machine | None = None) -> Iterator[None]:
    """Within this nothing is launched; what is done around the launches (checks, choices of rows, scratch memory) is done
    as ever, and arrays may be NumPy's. machine: for which GPU; None: for what launches would run on here."""
    global _suppressed, _assumed
    before = _suppressed, _assumed
    _suppressed, _assumed = True, machine
    try:
        yield
    finally:
        _suppressed, _assumed = before


def suppressed() -> bool:
    """Whether launches do nothing: within `dry`."""
    return _suppressed


def assumed() -> Machine | None:
    """The GPU that is planned for in place of the one that is there, if any."""
    return _assumed


@dataclass(frozen=True)
class Parameter:
    """A run-time parameter. kind: "*T", "*fp32", "#T", "i32"; divisible: specialised to multiples of 16 where they are.

    optional: where None is passed, the kernel is compiled with the constant None instead. box: of a tensor descriptor, one
    a dimension, what `_extent` takes.
    """

    name: str
    kind: str
    divisible: bool = False
    box: tuple[str, ...] = ()
    optional: bool = False

    @property
    def pointer(self) -> bool:
        return self.kind.startswith("*")

    @property
    def array(self) -> bool:
        """Whether an array is passed for it, as a pointer or a tensor descriptor."""
        return self.kind[0] in "*#"

    @property
    def variable(self) -> str:
        """The type variable of its elements, or ""."""
        return self.kind[1:] if self.array and len(self.kind) == 2 else ""


@dataclass(frozen=True)
class Variant:
    """One form of a kernel that is compiled on its own."""

    kernel: Kernel
    row: Row
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: bool

    def describe(self) -> str:
        blocks = sorted({**self.row.blocks, **dict(self.constants)}.items())
        shape = " ".join(f"{name}={value}" for name, value in [*self.types, *blocks])
        return (
            f"{self.kernel.name} {self.kernel.signature} {shape} warps={self.row.warps} stages={self.row.stages} "
            f"{'aligned' if self.aligned else 'any'}{' cooperative' if self.kernel.cooperative else ''}"
        )

    def key(self, arch: str) -> str:
        return _store.key(self.kernel.name, self.describe(), arch)

    def compile(self, arch: str) -> tuple[_compile.Compiled, str]:
        """Machine code and PTX, by Triton."""
        types = dict(self.types)
        constants = {**self.row.blocks, **dict(self.constants)}
        signature = {}
        for p in self.kernel.parameters:
            element = types.get(p.kind[1:], p.kind[1:])
            if p.box:
                signature[p.name] = _compile.descriptor_type(element, [_extent(size, constants) for size in p.box])
            else:
                signature[p.name] = f"*{element}" if p.pointer else p.kind
        signature |= dict.fromkeys(constants, "constexpr")
        aligned = {p.name: 16 for p in self.kernel.parameters if self.aligned and (p.pointer or p.divisible)}
        order = _compile.parameter_names(self.kernel.name)
        passed = [name for name in order if name not in constants]  # at run time: by place, not by name
        if set(order) != set(signature) or passed != [p.name for p in self.kernel.parameters]:
            raise ValueError(
                f"{self.kernel.name} takes {', '.join(order)}; its declaration and row give {', '.join(signature)}"
            )
        return _compile.compile_kernel(
            self.kernel.name, {name: signature[name] for name in order}, aligned, constants, arch,
            self.row.warps, self.row.stages, self.kernel.cooperative,
        )  # fmt: skip


class _Gpu:
    """What launches need of the machine; made at the first one."""

    def __init__(self) -> None:
        import cupy

        self.driver = _driver.Driver()
        self.runtime = cupy.cuda.runtime
        self.device = cupy.cuda.device.get_device_id
        self.stream = cupy.cuda.get_current_stream
        self._archs: dict[int, str] = {}

    def arch(self, device: int) -> str:
        """The compute capability of a device, as "sm_90"."""
        if device not in self._archs:
            properties = self.runtime.getDeviceProperties(device)
            self._archs[device] = f"sm_{properties['major']}{properties['minor']}"
        return self._archs[device]


_gpu: Any = None


def gpu() -> Any:
    """The machine's GPU side. Raises ImportError (no CuPy) or DriverError (no driver)."""
    global _gpu
    if _gpu is None:
        _gpu = _Gpu()
    return _gpu


def arch() -> str:
    """The architecture whose rows serve here: "sm_90" and the like, or "interpreter"."""
    if _assumed is not None:
        return _assumed.arch
    return "interpreter" if interpreting() else gpu().arch(gpu().device())


def code_arch(arch: str) -> str:
    """The architecture whose prebuilt machine code runs on `arch`: sm_80's on every sm_8x."""
    return "sm_80" if arch.startswith("sm_8") else arch


class Kernel:
    """A Triton kernel, ready to be launched; see the module's docstring.

    name: "file.function" in kernels/. signature: its run-time parameters in order. variants: type variables and
    compile-time constants of the forms that `pycap.cubins` builds ahead, with each row. cooperative: all programs must run
    at once (they wait for each other). declared: whether it is among `KERNELS`.
    """

    def __init__(
        self, name: str, signature: str, *, variants: Sequence[Mapping[str, Any]] = ({},), cooperative: bool = False,
        declared: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.signature, self.cooperative = name, signature, cooperative
        self.parameters = tuple(_parse(text) for text in signature.split())
        self.variants = tuple(dict(v) for v in variants)
        self._pointers = tuple(i for i, p in enumerate(self.parameters) if p.pointer)
        self._described = tuple((i, p) for i, p in enumerate(self.parameters) if p.box)
        self._optional = tuple(i for i, p in enumerate(self.parameters) if p.optional)
        self._narrower: dict[tuple[int, ...], Kernel] = {}
        self._divisible = tuple(i for i, p in enumerate(self.parameters) if p.divisible)
        self._ready: dict[Any, Any] = {}
        self._maps: dict[Any, tuple[Any, ...]] = {}
        if declared:
            KERNELS[name] = self

    def without(self, absent: tuple[int, ...]) -> Kernel:
        """The kernel without the parameters at these places, which are optional."""
        if absent not in self._narrower:
            kept = [text for i, text in enumerate(self.signature.split()) if i not in absent]
            self._narrower[absent] = Kernel(self.name, " ".join(kept), cooperative=self.cooperative, declared=False)
        return self._narrower[absent]

    def __call__(self, grid: tuple[int, int, int], row: Row, *arguments: Any, **constants: Any) -> None:
        """Launch. Nothing happens for an empty grid, or within `dry`.

        Raises TypeError for an argument of a wrong type or number, ValueError for an array that is not contiguous,
        RuntimeError where the variant must be compiled and Triton is not installed.
        """
        if _suppressed or not (grid[0] and grid[1] and grid[2]):
            return
        if _interpreting:
            self._interpret(grid, row, arguments, constants)
            return
        absent = tuple(i for i in self._optional if arguments[i] is None) if self._optional else ()
        if absent:
            given = [a for i, a in enumerate(arguments) if i not in absent]
            names = {self.parameters[i].name: None for i in absent}
            self.without(absent)(grid, row, *given, **names, **constants)
            return
        machine = _gpu or gpu()
        values = list(arguments)
        bits = 0
        types: list[Any] = []
        for i in self._pointers:
            array = arguments[i]
            if array is None:
                values[i] = 0
                types.append(None)
            else:
                values[i] = pointer = array.data.ptr
                bits |= pointer
                types.append(array.dtype)
                if not array.flags.c_contiguous:
                    raise ValueError(self._not_contiguous(i))
        for i in self._divisible:
            bits |= arguments[i]
        for i, _ in self._described:
            types.append(arguments[i].dtype)
        device = machine.device()
        aligned = bits & 15 == 0 and not self._described  # the copy engine moves what would gain by it
        key = (device, row, aligned, tuple(types), tuple(constants.items()))
        ready = self._ready.get(key)
        if ready is None:
            ready = self._ready[key] = self._prepare(machine, device, row, aligned, arguments, constants)
        pack_into, size, function, threads, shared, descriptors = ready
        if descriptors:
            values = self._describe(machine, arguments, values, descriptors)
        parameters = _driver.parameters
        pack_into(parameters.buffer, 0, *values)
        parameters.size.value = size
        stream = machine.stream().ptr
        if self.cooperative:
            status = machine.driver.launch_cooperative(function, grid, threads, shared, stream, parameters.extra)
        else:
            status = machine.driver.launch_kernel(
                function, *grid, threads, 1, 1, shared, stream, None, parameters.extra
            )
        if status:
            machine.driver.check(status, f"launching {self.name} on a grid of {grid}")

    def _describe(self, machine: Any, arguments: Sequence[Any], values: list[Any], descriptors: Any) -> list[Any]:
        """The values with each described array as its tensor map, sizes and strides."""
        flat: list[Any] = []
        boxes = iter(descriptors)
        for parameter, value in zip(self.parameters, values, strict=True):
            if not parameter.box:
                flat.append(value)
                continue
            box, swizzle = next(boxes)
            shape, strides, item = tuple(value.shape), tuple(value.strides), value.dtype.itemsize
            key = (value.data.ptr, shape, strides, value.dtype, box, swizzle)
            made = self._maps.get(key)
            if made is None:
                if strides[-1] != item or any(stride % 16 for stride in strides[:-1]) or value.data.ptr % 16:
                    raise ValueError(
                        f"{self.name}: {parameter.name} must be contiguous in its last dimension and else a multiple of 16 "
                        f"bytes apart, got strides {strides} from {value.data.ptr:#x}"
                    )
                element = TYPES[value.dtype.name]
                encoded = machine.driver.tensor_map(value.data.ptr, element, shape, strides, box, swizzle)
                if len(self._maps) >= 512:  # addresses come and go with an allocator's pool
                    self._maps.clear()
                made = self._maps[key] = (encoded, *shape, *(stride // item for stride in strides))
            flat += made
        return flat

    def _not_contiguous(self, i: int) -> str:
        return f"{self.name}: {self.parameters[i].name} must be C-contiguous"

    def bind(self, arguments: Sequence[Any]) -> dict[str, str]:
        """The type variables' types, by the arguments. Raises TypeError, naming the argument that does not fit."""
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(arguments)}")
        bound: dict[str, str] = {}
        for parameter, argument in zip(self.parameters, arguments, strict=True):
            if not parameter.array:
                if not isinstance(argument, (int, float)):
                    raise TypeError(f"{self.name}: {parameter.name} must be a number, got {type(argument).__name__}")
                continue
            if argument is None:
                continue
            wanted = parameter.kind[1:]
            got = TYPES.get(argument.dtype.name, argument.dtype.name)
            expected = bound.setdefault(wanted, got) if parameter.variable else wanted
            if got != expected:
                names = {v: k for k, v in TYPES.items()}
                raise TypeError(
                    f"{self.name}: {parameter.name} must be {names.get(expected, expected)}, got {argument.dtype}"
                )
        for parameter in self.parameters:  # a type that only absent arrays have may be any
            if parameter.variable:
                bound.setdefault(parameter.variable, "fp32")
        return bound

    def _prepare(
        self, machine: Any, device: int, row: Row, aligned: bool, arguments: Sequence[Any], constants: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Load a variant: how its parameters are packed, and what the driver needs to launch it."""
        types = tuple(sorted(self.bind(arguments).items()))
        variant = Variant(self, row, types, tuple(sorted(constants.items())), aligned)
        arch = machine.arch(device)
        names = dict.fromkeys((arch, code_arch(arch)))
        compiled = next((c for c in (_store.load(variant.key(name)) for name in names) if c), None)
        if compiled is None:
            try:
                compiled, _ = variant.compile(arch)
            except ImportError as error:
                raise RuntimeError(
                    f"{variant.describe()}: no prebuilt code for {arch}, and no Triton to compile it with: pip install triton"
                ) from error
            _store.save(variant.key(arch), compiled)
        layout = packing(self.parameters, compiled.scratch, [len(box) for box, _ in compiled.descriptors])
        machine.runtime.free(0)  # makes the device's context, where this is the thread's first use of it
        function = machine.driver.load(compiled.cubin, compiled.symbol, compiled.shared)
        return layout.pack_into, layout.size, function, compiled.threads, compiled.shared, compiled.descriptors

    def _interpret(self, grid: Any, row: Row, arguments: Sequence[Any], constants: dict[str, Any]) -> None:
        from . import _interpret

        self.bind(arguments)
        for i in self._pointers:
            if arguments[i] is not None and not arguments[i].flags.c_contiguous:
                raise ValueError(self._not_contiguous(i))
        _interpret.run(self.name, grid, arguments, {**row.blocks, **constants})

    def built_variants(self, table: Table, arch: str) -> Iterator[Variant]:
        """The variants built ahead for an architecture: the declared ones with each row that is for their types."""
        for declared in self.variants:
            variables = {p.variable for p in self.parameters if p.variable}
            types = tuple(sorted((k, v) for k, v in declared.items() if k in variables))
            constants = tuple(sorted((k, v) for k, v in declared.items() if k not in variables))
            absent = tuple(i for i in self._optional if self.parameters[i].name in declared)
            kernel = self.without(absent) if absent else self
            for row in find(table, self.name, arch):
                if row.serves(dict(types).get("T", ""), dict.fromkeys(row.upto, 0)):
                    forms = (False,) if self._described else (True, False) if row.upto.get("odd", 1) else (True,)
                    for aligned in forms:
                        yield Variant(kernel, row, types, constants, aligned)


def _parse(text: str) -> Parameter:
    name, _, kind = text.partition(":")
    kind, described, box = kind.partition("(")
    optional, kind = kind.startswith("?"), kind.lstrip("?")
    if bool(described) != kind.startswith("#"):
        raise ValueError(f"{text}: a tensor descriptor is written #T(A,B)")
    kind, slash, multiple = kind.partition("/")
    if slash and multiple != "16":
        raise ValueError(f"{text}: only /16 is known")
    return Parameter(name, kind, bool(slash), tuple(box.rstrip(")").split(",")) if described else (), optional)


def _extent(text: str, constants: Mapping[str, Any]) -> int:
    """A box's size in one dimension: "64", "BLOCK", "BLOCK/2"."""
    name, _, divisor = text.partition("/")
    return (int(name) if name.isdigit() else int(constants[name])) // int(divisor or 1)


def layout(parameters: Sequence[Parameter], scratch: int, ranks: Sequence[int] = ()) -> list[tuple[str, int, int]]:
    """(code of `struct`, bytes, alignment) of each parameter of the machine code, in order.

    ranks: dimensions of each described array; it is passed as a tensor map, its sizes (32 bits) and its strides (64 bits).
    scratch: null pointers of Triton's own at the end.
    """
    found: list[tuple[str, int, int]] = []
    remaining = iter(ranks)
    for parameter in parameters:
        if parameter.box:
            rank = next(remaining)
            found += [("128s", 128, 64), *[("i", 4, 4)] * rank, *[("q", 8, 8)] * rank]
        else:
            code = "P" if parameter.pointer else _PACK[parameter.kind]
            found.append((code, struct.calcsize(code), struct.calcsize(code)))
    return [*found, *[("8x", 8, 8)] * scratch]


def packing(parameters: Sequence[Parameter], scratch: int, ranks: Sequence[int] = ()) -> struct.Struct:
    """How parameters lie in a launch's buffer, each at a multiple of its alignment; arguments as `layout`'s."""
    fields = "="
    for code, _, alignment in layout(parameters, scratch, ranks):
        fields += f"{-struct.calcsize(fields) % alignment}x{code if code != 'P' else 'Q'}"
    return struct.Struct(fields)
