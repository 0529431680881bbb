"""PyTorch's side of the GPU cases: eager (channels_last, cuDNN) and torch.compile, on the very arrays that pycap gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from benchmarks.cases import Case
from benchmarks.gpu_cases import Arrays
from benchmarks.sides import Unavailable, Work

Tensor = torch.Tensor


def describe(peer: str) -> str:
    """Name and version for a result's row."""
    return f"torch {torch.__version__} {peer}"


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceilings(n: int = 8192, copied: int = 1 << 30) -> dict[str, Callable[[], Any]]:
    """The machine's limits: an n^3 matrix product on random data, by dtype, and a copy of `copied` bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    a16, b16, half_a, half_b = a.bfloat16(), b.bfloat16(), a.half(), b.half()
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)

    def product(tf32: bool) -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        return a @ b

    return {
        "bfloat16": lambda: a16 @ b16,
        "float16": lambda: half_a @ half_b,
        "tf32": lambda: product(True),
        "float32": lambda: product(False),
        "copy": lambda: target.copy_(source),
    }


def prepare(case: Case, arrays: Arrays, peer: str) -> Work:
    """The work of a case on the same memory as `arrays`. peer: "eager" or "compile". Raises Unavailable."""
    if peer == "compile" and not torch.cuda.is_available():
        raise Unavailable("torch.compile is timed on a GPU only")
    tf32 = case.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # cuDNN's fastest algorithm, found by trying
    builder: Callable[..., Work] = globals()[f"_{case.op}"]
    wrap = torch.compile if peer == "compile" else lambda function: function
    work = builder(case, {name: _tensor(array) for name, array in arrays.items()}, wrap)

    def run() -> Any:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        return work.run()

    return Work(run, work.outputs)


def _tensor(array: Any) -> Tensor:
    """The same memory as a tensor; bfloat16, which the array protocols do not know, through 16-bit integers."""
    narrow = array.dtype.name == "bfloat16"
    shared = array.view("int16") if narrow else array
    tensor = torch.as_tensor(shared, device="cuda" if hasattr(array, "__cuda_array_interface__") else "cpu")
    return tensor.view(torch.bfloat16) if narrow else tensor


def _image(tensor: Tensor) -> Tensor:
    """NHWC memory as PyTorch's channels_last."""
    return tensor.permute(0, 3, 1, 2)


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1)


def _conv2d(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    x, dy, w = _image(a["x"]), _image(a["dy"]), _image(a["w"]).to(a["x"].dtype, memory_format=torch.channels_last)
    b = a["b"].to(x.dtype)
    if case.mode == "forward":
        return Work(lambda: functional.conv2d(x, w, None, padding=1), lambda y: {"y": _nhwc(y)})
    if case.mode == "block":

        def block(x: Tensor) -> Tensor:
            y = functional.relu(functional.conv2d(x, w, b, padding=1))
            return functional.max_pool2d(y, 2) if case.shape["pool"] else y

        call = wrap(block)
        return Work(lambda: call(x), lambda y: {"y": _nhwc(y)})
    data = case.mode == "backward-data"

    def backward() -> tuple[Tensor, ...]:
        return torch.ops.aten.convolution_backward(
            dy, x, w, [w.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [data, not data, not data]
        )

    if data:
        return Work(backward, lambda grads: {"dx": _nhwc(grads[0])})
    return Work(backward, lambda grads: {"dw": _nhwc(grads[1]), "db": grads[2]})


def _linear(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    x, dy, w, b = a["x"], a["dy"], a["w"], a["b"]
    if case.mode == "forward":  # the float32 weights are cast each time, as autocast does once a training step
        run = wrap(lambda: functional.relu(functional.linear(x, w.to(x.dtype), b.to(x.dtype))))
        return Work(run, lambda y: {"y": y})
    if case.mode == "backward-data":
        return Work(wrap(lambda: dy @ w.to(dy.dtype)), lambda dx: {"dx": dx})
    run = wrap(lambda: ((dy.T @ x).float(), dy.float().sum(0)))  # autocast's gradients of float32 weights are float32
    return Work(run, lambda grads: {"dw": grads[0], "db": grads[1]})


def _softmax_xent(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    h, w, b = a["h"].requires_grad_(), a["w"].requires_grad_(), a["b"].requires_grad_()
    targets = a["targets"].long()

    def loss_of(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        logits = functional.linear(h, w.to(h.dtype), b.to(h.dtype))
        return functional.cross_entropy(logits.float(), targets)  # autocast computes the loss in float32

    call = wrap(loss_of)

    def run() -> tuple[Tensor, ...]:
        loss = call(h, w, b)
        return (loss, *torch.autograd.grad(loss, (h, w, b)))

    return Work(run, lambda r: {"loss": r[0].reshape(1), "dh": r[1], "dw": r[2], "db": r[3]})


def _topk(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    call = wrap(lambda logits: torch.topk(torch.log_softmax(logits, 1), case.shape["k"], dim=1))
    return Work(lambda: call(a["logits"]), lambda top: {"values": top[0]})


def _lstm(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    steps, learns = case.shape["T"], case.mode != "forward"
    layer = nn.LSTM(case.shape["I"], case.shape["H"], device=a["x"].device, dtype=a["x"].dtype)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(a["w_x"])
        layer.weight_hh_l0.copy_(a["w_h"])
        layer.bias_ih_l0.copy_(a["b"])
        layer.bias_hh_l0.zero_()
    x, dy, sizes = a["x"], a["dy"], None
    if case.shape["packed"]:  # as a data set's loader gives it, before the timing
        lengths = a["mask"].sum(0).cpu()
        packed, sizes = rnn.pack_padded_sequence(x, lengths)[:2]
        x, dy = packed, rnn.pack_padded_sequence(dy, lengths).data
    x.requires_grad_(learns)
    leaves = {"dx": x, "dw_x": layer.weight_ih_l0, "dw_h": layer.weight_hh_l0, "db": layer.bias_ih_l0}

    def run() -> dict[str, Tensor]:
        with torch.set_grad_enabled(learns):
            h = layer(x)[0] if sizes is None else layer(rnn.PackedSequence(x, sizes))[0].data
        if not learns:
            return {"h": h}
        return {"h": h, **dict(zip(leaves, torch.autograd.grad(h, list(leaves.values()), dy), strict=True))}

    def outputs(named: dict[str, Tensor]) -> dict[str, Tensor]:
        if sizes is None:
            return named
        padded = {
            name: rnn.pad_packed_sequence(rnn.PackedSequence(named[name], sizes), total_length=steps)[0]
            for name in ("h", "dx")
            if name in named
        }
        return {**named, **padded}

    return Work(run, outputs)


def lstm_path(case: Case) -> str:
    """Which of cuDNN's ways PyTorch takes for a case of the LSTM on a GPU of the H200's kind, by the rule in its
    aten/src/ATen/native/cudnn/RNN.cpp: the persistent one wants float16 and sizes and batches of these kinds."""
    n, i, hidden = (case.shape[name] for name in "NIH")
    fits = n % 8 == 0 and n <= 128 and i % 128 == 0 and hidden % 128 == 0 and hidden <= 1024
    return "cuDNN persistent" if fits and case.dtype == "float16" and not case.shape["packed"] else "cuDNN standard"


def _embedding(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    table, ids = a["table"], a["ids"].long()
    if case.mode == "forward":
        return Work(lambda: functional.embedding(ids, table), lambda y: {"y": y})
    run = lambda: torch.ops.aten.embedding_dense_backward(a["dy"], ids, table.shape[0], -1, False)  # noqa: E731
    return Work(run, lambda dtable: {"dtable": dtable})


def _pool(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    x, dy = _image(a["x"]), _image(a["dy"])
    if case.mode == "forward":
        return Work(lambda: functional.max_pool2d(x, 2), lambda y: {"y": _nhwc(y)})
    _, indices = functional.max_pool2d(x, 2, return_indices=True)
    arguments = (dy, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
    return Work(lambda: torch.ops.aten.max_pool2d_with_indices_backward(*arguments), lambda dx: {"dx": _nhwc(dx)})


def _adam(case: Case, a: dict[str, Tensor], wrap: Callable[..., Any]) -> Work:
    held = a["p"].clone()
    parameter = nn.Parameter(held.clone())
    parameter.grad = a["g"]

    def optimizer() -> torch.optim.Adam:
        return torch.optim.Adam([parameter], lr=1e-4, fused=parameter.is_cuda)

    adam = optimizer()

    def outputs(_: Any) -> dict[str, Tensor]:
        parameter.data.copy_(held)
        optimizer().step()
        return {"p": parameter.data}

    return Work(adam.step, outputs)
