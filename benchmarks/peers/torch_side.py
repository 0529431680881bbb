"""PyTorch's side of each case: both memory formats where there is a choice, bf16 by autocast."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import case_values
from benchmarks.cases import Case
from benchmarks.peers import torch_nic
from benchmarks.peers.torch_model import beam_search
from benchmarks.pycap_side import first_line
from benchmarks.sides import Work
from pycap.data.vocab import END, PAD, START, UNK

#: The likelier winner stands last: the last way that was tried need not be made again.
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Tensor = torch.Tensor


class TorchSide:
    """PyTorch on the CPU."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._vgg16_model: tuple[torch_nic.NIC, list[str]] | None = None

    def describe(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case) -> dict[str, Callable[[], Work]]:
        ways: Iterator[tuple[str, Callable[[], Work]]] = getattr(self, f"_{case.op}")(case)
        return dict(ways)

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        n = 4096
        a, b = torch.randn(n, n), torch.randn(n, n)
        a16, b16 = a.bfloat16(), b.bfloat16()
        c, c16 = torch.empty(n, n), torch.empty(n, n, dtype=torch.bfloat16)
        source = torch.ones(1 << 27)
        target = torch.empty_like(source)
        return {
            "float32": lambda: torch.mm(a, b, out=c),
            "bfloat16": lambda: torch.mm(a16, b16, out=c16),
            "copy": lambda: target.copy_(source),
        }

    # Single operations ------------------------------------------------------------------------------------------------

    def _layer(self, case: Case, apply: Callable[..., Tensor], a: case_values.Arrays, form: Any) -> Work:
        """A layer with weights, forward or backward; a: x, w, b, dy as PyTorch lays them out."""
        dtype = getattr(torch, case.dtype)
        x, dy = (_laid(torch.from_numpy(a[name]), form).to(dtype) for name in ("x", "dy"))
        w, b = nn.Parameter(_laid(torch.from_numpy(a["w"]), form)), nn.Parameter(torch.from_numpy(a["b"]))
        held = _held(case, inference=case.mode == "forward")
        if case.mode == "forward":
            return Work(lambda: apply(x, w, b), lambda y: {"y": _array(y)}, held.close)
        x.requires_grad_(case.shape.get("C") != 3)
        y = apply(x, w, b)
        wanted = {"dx": x, "dw": w, "db": b} if x.requires_grad else {"dw": w, "db": b}

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, list(wanted.values()), dy, retain_graph=True)

        return Work(backward, lambda grads: {n: _array(g) for n, g in zip(wanted, grads, strict=True)}, held.close)

    def _conv2d(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def apply(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return functional.relu_(functional.conv2d(x, w, b, padding=1))

        def make(form: Any) -> Work:
            a = case_values.arrays(case)
            nchw = {name: a[name].transpose(0, 3, 1, 2) for name in ("x", "w", "dy")}
            return self._layer(case, apply, {**nchw, "b": a["b"]}, form)

        for name, form in FORMATS.items():
            yield name, lambda form=form: make(form)

    def _linear(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def apply(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return functional.relu_(functional.linear(x, w, b))

        yield "", lambda: self._layer(case, apply, case_values.arrays(case), torch.contiguous_format)

    def _pool(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def make(form: Any) -> Work:
            dtype = getattr(torch, case.dtype)
            a = case_values.arrays(case)
            x, dy = (_laid(torch.from_numpy(a[n].transpose(0, 3, 1, 2)), form).to(dtype) for n in ("x", "dy"))
            held = _held(case, inference=case.mode == "forward")
            if case.mode == "forward":
                return Work(lambda: functional.max_pool2d(x, 2), lambda y: {"y": _array(y)}, held.close)
            x.requires_grad_()
            y = functional.max_pool2d(x, 2)
            run = lambda: torch.autograd.grad(y, x, dy, retain_graph=True)[0]  # noqa: E731
            return Work(run, lambda dx: {"dx": _array(dx)}, held.close)

        for name, form in FORMATS.items():
            yield name, lambda form=form: make(form)

    def _lstm(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def make() -> Work:
            a = {name: torch.from_numpy(array) for name, array in case_values.arrays(case).items()}
            layer = nn.LSTM(case.shape["I"], case.shape["H"])
            with torch.no_grad():
                layer.weight_ih_l0.copy_(a["w_x"])
                layer.weight_hh_l0.copy_(a["w_h"])
                layer.bias_ih_l0.copy_(a["b"])
                layer.bias_hh_l0.zero_()
            layer.bias_hh_l0.requires_grad_(False)  # pycap has one bias
            learns = case.mode != "forward"
            held = _held(case, inference=not learns)
            x = a["x"].requires_grad_(learns)
            leaves = {"x": x, "w_x": layer.weight_ih_l0, "w_h": layer.weight_hh_l0, "b": layer.bias_ih_l0}

            def run() -> dict[str, Tensor]:
                h, _ = layer(x)
                if not learns:
                    return {"h": h}
                grads = torch.autograd.grad(h, list(leaves.values()), a["dy"])
                return {"h": h, **{f"d {n}": g for n, g in zip(leaves, grads, strict=True)}}

            return Work(run, _arrays, held.close)

        yield "", make

    def _embedding(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def make() -> Work:
            a = {name: torch.from_numpy(array) for name, array in case_values.arrays(case).items()}
            table, ids = nn.Parameter(a["table"]), a["ids"]
            held = _held(case, inference=case.mode == "forward")
            if case.mode == "forward":
                return Work(lambda: functional.embedding(ids, table), lambda y: {"y": _array(y)}, held.close)
            y = functional.embedding(ids, table)
            run = lambda: torch.autograd.grad(y, table, a["dy"], retain_graph=True)[0]  # noqa: E731
            return Work(run, lambda dtable: {"dtable": _array(dtable)}, held.close)

        yield "", make

    def _softmax_xent(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def make() -> Work:
            a = {name: torch.from_numpy(array) for name, array in case_values.arrays(case).items()}
            leaves = {name: a[name].requires_grad_() for name in ("h", "w", "b")}
            targets = a["targets"].long()

            def run() -> dict[str, Tensor]:
                loss = functional.cross_entropy(functional.linear(*leaves.values()), targets)
                grads = torch.autograd.grad(loss, list(leaves.values()))
                return {"loss": loss, **{f"d {n}": g for n, g in zip(leaves, grads, strict=True)}}

            return Work(run, _arrays)

        yield "", make

    def _adam(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def make() -> Work:
            rng = case_values.generator(case)
            shapes = case_values.vgg16_shapes()
            params, grads = (
                [torch.from_numpy(case_values.normal(rng, *s, scale=0.01)) for s in shapes] for _ in range(2)
            )
            params = [nn.Parameter(p) for p in params]
            for parameter, grad in zip(params, grads, strict=True):
                parameter.grad = grad
            optimizer = torch.optim.Adam(params, lr=1e-4, fused=True)
            return Work(lambda: optimizer.step(), lambda _: {})

        yield "fused", make

    # Whole models -----------------------------------------------------------------------------------------------------

    def _model(self, case: Case) -> tuple[torch_nic.NIC, list[str]]:
        """The peer with pycap's weights, and the names of pycap's parameters."""
        if case.op == "vgg16" and self._vgg16_model is not None:
            return self._vgg16_model
        ours, config = case_values.captioner(case)
        with torch.device("meta"):  # PyTorch's initial weights would take seconds
            model = torch_nic.build(config, case.shape.get("V", 16))
        model.to_empty(device="cpu")
        nn.init.zeros_(model.lstm.bias_hh_l0)
        weights = ours.state_arrays()
        torch_nic.load_arrays(model, weights)
        if case.op == "vgg16":  # its cases leave the weights as they are
            self._vgg16_model = model, list(weights)
        return model, list(weights)

    def _vgg16(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        model, names = self._model(case)
        images = torch.from_numpy(case_values.images(case).transpose(0, 3, 1, 2))
        seed = torch.from_numpy(case_values.normal(np.random.default_rng(17), case.shape["N"], 4096))
        cnn = [name for name in names if name.startswith("cnn.")]

        def make(form: Any) -> Work:
            model.cnn.to(memory_format=form)
            x = _laid(images, form)
            if case.mode == "forward":
                model.eval()
                held = _held(case, inference=True)
                return Work(lambda: model.cnn(x), lambda y: {"fc7": _array(y)}, held.close)
            autocast = _autocast(case)

            def run() -> Tensor:
                model.cnn.zero_grad(set_to_none=True)
                with autocast:
                    y = model.cnn(x)
                y.backward(seed.to(y.dtype))
                return y.detach()

            def outputs(y: Tensor) -> dict[str, np.ndarray]:
                grads = torch_nic.state_arrays(model, names, gradients=True)
                return {"fc7": _array(y), **{f"d {name}": grads[name] for name in cnn}}

            return Work(run, outputs, lambda: model.cnn.zero_grad(set_to_none=True))

        for name, form in FORMATS.items():
            yield name, lambda form=form: make(form)

    def _joint(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        def make(variant: torch_nic.Variant) -> Work:
            model, _ = self._model(case)
            trainer = torch_nic.PeerTrainer(model, case_values.config(case), case_values.SPEC, 1000, variant)
            trainer.begin_epoch(0)
            batch = case_values.batch(case)
            losses: list[float] = []
            return Work(lambda: losses.append(trainer.step(batch)), lambda _: {"first loss": np.float32(losses[:1])})

        for channels_last in (False, True):
            variant = torch_nic.Variant(channels_last=channels_last)
            yield str(variant), lambda variant=variant: make(variant)

    def _caption(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        s = case.shape
        model, _ = self._model(case)
        model.eval()
        pixels, _ = case_values.photographs(s["N"])
        edge = (case_values.SPEC.resize - case_values.SPEC.crop) // 2
        window = slice(edge, edge + case_values.SPEC.crop)
        mean = torch.tensor(case_values.SPEC.mean).view(3, 1, 1)
        scale = 1 / torch.tensor(case_values.SPEC.std).view(3, 1, 1)

        def make(form: Any) -> Work:
            model.cnn.to(memory_format=form)
            held = _held(case, inference=True)

            def run(count: int = s["N"]) -> list[Tensor]:
                best = []
                for first in range(0, count, s["batch"]):
                    part = torch.from_numpy(pixels[first : first + s["batch"], window, window]).permute(0, 3, 1, 2)
                    images = part.to(torch.float32, memory_format=form).sub_(mean).mul_(scale)
                    best.append(beam_search(model, images, **_search(case))[1][:, 0])
                return best

            outputs = lambda best: {"logprob": _array(torch.cat(best))}  # noqa: E731
            return Work(run, outputs, held.close, probe=lambda: run(s["batch"]))

        for name, form in FORMATS.items():
            yield name, lambda form=form: make(form)

    def _cold(self, case: Case) -> Iterator[tuple[str, Callable[[], Work]]]:
        from PIL import Image

        def make() -> Work:
            folder = Path(tempfile.mkdtemp(prefix="pycap-bench-"))
            model, _ = self._model(case)
            torch.save(model.state_dict(), folder / "model.pt")
            Image.fromarray(case_values.photographs(1)[0][0]).save(folder / "image.png")
            settings = {
                "threads": torch.get_num_threads(),
                "cnn": {"layers": torch_nic.vgg_layers("vgg16"), "image_size": 224, "fc_size": 4096, "drop": 0.0},
                "nic": {
                    "vocabulary": case.shape["V"],
                    "fc_size": 4096,
                    "rnn_size": case.shape["H"],
                    "input_encoding_size": case.shape["H"],
                    "drop_prob_lm": 0.0,
                },
                "resize": case_values.SPEC.resize,
                "mean": case_values.SPEC.mean,
                "std": case_values.SPEC.std,
                "search": _search(case),
            }
            (folder / "model.json").write_text(json.dumps(settings), encoding="utf-8")
            return first_line([sys.executable, "-m", "benchmarks.peers.torch_cold", str(folder)], folder)

        yield "weights mapped", make


def _search(case: Case) -> dict[str, Any]:
    s = case.shape
    return {"beam_size": s["beam"], "max_length": s["T"], "start": START, "end": END, "suppress": (PAD, START, UNK)}


def _laid(array: Tensor, form: Any) -> Tensor:
    """A copy in a memory format of its own, whatever the array's strides were."""
    return array.clone(memory_format=torch.contiguous_format).contiguous(memory_format=form)


def _autocast(case: Case) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16")


def _held(case: Case, inference: bool) -> ExitStack:
    """The modes that a case runs under, entered for its whole life, so that autocast casts each weight only once.

    It keeps what it cast under no_grad, but not under inference_mode, where fc6 alone would cost 80 ms a call.
    """
    held = ExitStack()
    if inference:
        held.enter_context(torch.inference_mode() if case.dtype == "float32" else torch.no_grad())
    held.enter_context(_autocast(case))
    return held


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor in pycap's layout, float32: maps and filters [.., C, H, W] -> [.., H, W, C]."""
    tensor = tensor.detach().float()
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().numpy()


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: _array(tensor) for name, tensor in tensors.items()}
