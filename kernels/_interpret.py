"""Runs a kernel under Triton's interpreter on NumPy arrays: for tests, on machines without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from . import _compile


class _Argument:
    """An array as the interpreter takes it: the few methods of a tensor that it calls. Nothing is copied."""

    def __init__(self, array: Any) -> None:
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Argument:
        return self

    def cpu(self) -> _Argument:
        return self

    def copy_(self, other: _Argument) -> None:
        assert other.array is self.array  # "device" and "host" are one memory here

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def new_empty(self, size: int, device: str) -> _Argument:
        return _Argument(self.array)

    def set_(self, *layout: Any) -> None:
        """The layout is the array's own already."""


def _call_device_function(self: Any, *arguments: Any, **named: Any) -> Any:
    return self.rewrite()(*arguments, **named)


@contextmanager
def _mended() -> Iterator[None]:
    """Within this, three things of the interpreter are as they should be: bfloat16 is rounded to nearest (it truncates),
    calling a device function costs the call (it patches the whole language anew, a hundred times the work), and sums of
    integers are not made again in 64 bits, for an assertion about overflow that nothing then reads (half the time). The
    language is patched here once, as the language's own device functions see it (`tl.zeros` and the like)."""
    import triton.language as tl
    from ml_dtypes import bfloat16
    from triton.runtime.interpreter import (
        InterpretedFunction,
        InterpreterBuilder,
        TensorHandle,
        _patch_lang,
        interpreter_builder,
    )  # fmt: skip

    call, cast, options = InterpretedFunction.__call__, InterpreterBuilder.cast_impl, interpreter_builder.options

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            with np.errstate(invalid="ignore"):  # NaN stays NaN
                return TensorHandle(source.data.astype(bfloat16).view(np.uint16), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(source.data.view(bfloat16).astype(np.float32), tl.float32)
        return cast(self, source, target)

    InterpretedFunction.__call__, InterpreterBuilder.cast_impl = _call_device_function, cast_impl
    interpreter_builder.options = replace(options, sanitize_overflow=False)
    patched = _patch_lang(tl.zeros.fn)
    try:
        yield
    finally:
        patched.restore()
        interpreter_builder.options = options
        InterpretedFunction.__call__, InterpreterBuilder.cast_impl = call, cast


def run(kernel: str, grid: tuple[int, int, int], arguments: Sequence[Any], constants: dict[str, Any]) -> None:
    """Run all programs of the grid, one after the other. arguments: NumPy arrays, numbers, or None for a null pointer."""
    from triton.runtime.interpreter import InterpretedFunction

    fn = _compile.function(kernel)
    if not isinstance(fn, InterpretedFunction):
        raise RuntimeError(f"{kernel}: set TRITON_INTERPRET=1 before Triton is imported to run it in the interpreter")
    absent = np.zeros(1, np.float32)
    values = [absent if a is None else a for a in arguments]
    with _mended(), np.errstate(all="ignore"):  # as on a GPU, where no program may ask
        fn[grid](*(_Argument(a) if isinstance(a, np.ndarray) else a for a in values), **constants)
