"""Broadcasting arithmetic and shape operations, on the array module itself; importing it gives Tensor operators."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from pycap import memory
from pycap.autograd import Function, Tensor
from pycap.device import array_module, is_bfloat16


def _total(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """x summed over axes; bfloat16 in float32, rounded once: with 8 significant bits, counting ones would end at 256."""
    return (
        x.sum(axis, "float32", keepdims=keepdims).astype(x.dtype) if is_bfloat16(x) else x.sum(axis, keepdims=keepdims)
    )


def _unbroadcast(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sum a gradient over the axes along which an operand of `shape` was repeated."""
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n == 1 and gradient.shape[extra + i] != 1
    )
    if not axes:
        return gradient
    if is_bfloat16(gradient):
        return _total(gradient, axes).reshape(shape)
    total = memory.empty(shape, gradient.dtype)
    gradient.sum(axes, out=total.reshape([n for i, n in enumerate(gradient.shape) if i not in axes]))
    return total


class Add(Function):
    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = (getattr(a, "shape", ()), getattr(b, "shape", ()))
        if not self.shapes[1] or a.dtype != b.dtype:
            return a + b
        y = memory.empty(np.broadcast_shapes(*self.shapes), a.dtype)
        return array_module(a).add(a, b, out=y)

    def backward(self, dy: Any) -> Any:
        return tuple(_unbroadcast(dy, s) if need else None for s, need in zip(self.shapes, self.needs, strict=True))


class Mul(Function):
    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return a * b

    def backward(self, dy: Any) -> Any:
        da = _unbroadcast(dy * self.b, self.a.shape) if self.needs[0] else None
        db = _unbroadcast(dy * self.a, self.b.shape) if self.needs[1] else None
        return da, db


class MatMul(Function):
    def forward(self, a: Any, b: Any) -> Any:
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(
                f"matmul takes matrices (or stacks of them), not shapes {a.shape} and {b.shape}; reshape first"
            )
        self.a, self.b = a, b
        return a @ b

    def backward(self, dy: Any) -> Any:
        da = _unbroadcast(dy @ self.b.swapaxes(-1, -2), self.a.shape) if self.needs[0] else None
        db = _unbroadcast(self.a.swapaxes(-1, -2) @ dy, self.b.shape) if self.needs[1] else None
        return da, db


class Reshape(Function):
    def forward(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, dy: Any) -> Any:
        return dy.reshape(self.shape)


class Concatenate(Function):
    def forward(self, *arrays: Any, axis: int) -> Any:
        self.axis, self.sizes = axis % arrays[0].ndim, [a.shape[axis] for a in arrays]
        shape = list(arrays[0].shape)
        for array in arrays:
            shape[self.axis] = array.shape[self.axis]
            if array.shape != tuple(shape):
                raise ValueError(f"concatenate: shapes {[a.shape for a in arrays]} differ in more than axis {axis}")
        shape[self.axis] = builtins.sum(self.sizes)
        whole = memory.empty(tuple(shape), arrays[0].dtype)
        for piece, array in zip(self._pieces(whole), arrays, strict=True):
            piece[...] = array
        return whole

    def backward(self, dy: Any) -> Any:
        return tuple(self._pieces(dy))

    def _pieces(self, whole: Any) -> list[Any]:
        """Views of the parts of an array that the operands take."""
        pieces, start = [], 0
        for size in self.sizes:
            window = [slice(None)] * whole.ndim
            window[self.axis] = slice(start, start + size)
            pieces.append(whole[tuple(window)])
            start += size
        return pieces


class GetItem(Function):
    """Basic indexing: integers, slices, None and Ellipsis, so each element is taken at most once.

    The result is a view where it is C-contiguous, which kernels need, and a copy elsewhere.
    """

    def forward(self, x: Any, *, key: Any) -> Any:
        self.key = key
        taken = x[key]
        return taken if taken.flags.c_contiguous else taken.copy()

    def backward(self, dy: Any) -> Any:
        buffer, beta = self.grad_into(0)
        if beta:
            buffer[self.key] += dy
        else:
            buffer.fill(0)
            buffer[self.key] = dy


class Sum(Function):
    def forward(self, x: Any, *, axis: int | tuple[int, ...] | None, keepdims: bool, average: bool) -> Any:
        if average:
            y = x.mean(axis, "float32" if is_bfloat16(x) else None, keepdims=True).astype(x.dtype)
        else:
            y = _total(x, axis, keepdims=True)
        self.shape, self.kept, self.share = x.shape, y.shape, (y.size / builtins.max(x.size, 1) if average else 1)
        return y if keepdims else y.reshape(x.sum(axis).shape) if axis is not None else y.reshape(())

    def backward(self, dy: Any) -> Any:
        buffer, beta = self.grad_into(0)
        spread = dy.reshape(self.kept) * dy.dtype.type(self.share)
        if beta:
            buffer += spread
        else:
            buffer[...] = spread


def _operand(value: Any, like: Tensor) -> Any:
    """A Python number as an array of the other operand's dtype, so that float32 stays float32."""
    return like.dtype.type(value) if isinstance(value, (int, float)) else value


def add(a: Tensor, b: Any) -> Tensor:
    """a + b, broadcasting."""
    return Add.apply(a, _operand(b, a))


def mul(a: Tensor, b: Any) -> Tensor:
    """a * b element by element, broadcasting."""
    return Mul.apply(a, _operand(b, a))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for [..., M, K] and [..., K, N]; leading axes broadcast. Raises ValueError for vectors."""
    return MatMul.apply(a, b)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same elements in another shape (one axis may be -1)."""
    return Reshape.apply(x, shape=shape)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors joined along `axis`."""
    return Concatenate.apply(*tensors, axis=axis)


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key] for integers, slices, None and Ellipsis; TypeError for index arrays (use `embedding` to gather rows)."""
    for k in key if isinstance(key, tuple) else (key,):
        if not (k is None or k is Ellipsis or isinstance(k, (int, slice))):
            raise TypeError(
                f"tensor index {k!r}: only integers, slices, None and ... are supported; gather rows with embedding"
            )
    return GetItem.apply(x, key=key)


def sum(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes: None)."""
    return Sum.apply(x, axis=axis, keepdims=keepdims, average=False)


def mean(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (all axes: None)."""
    return Sum.apply(x, axis=axis, keepdims=keepdims, average=True)


def _reshape_method(x: Tensor, *shape: Any) -> Tensor:
    return reshape(x, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)


# autograd must not import ops, so the operators are hung on Tensor from here.
for _name, _function in {
    "__add__": add,
    "__radd__": add,
    "__mul__": mul,
    "__rmul__": mul,
    "__matmul__": matmul,
    "__getitem__": getitem,
    "reshape": _reshape_method,
    "sum": sum,
    "mean": mean,
}.items():
    setattr(Tensor, _name, _function)
