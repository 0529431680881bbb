"""pycap's side of each case, through what a user of pycap calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import case_values
from benchmarks.cases import Case
from benchmarks.sides import Unavailable, Work
from pycap import backends, checkpoint, memory, ops
from pycap.autograd import Tensor, no_grad
from pycap.backends import kernels
from pycap.captioner import Captioner
from pycap.config import FIELDS
from pycap.data.vocab import SPECIALS, Vocabulary
from pycap.models.nic import NIC
from pycap.training.trainer import Trainer


class PycapSide:
    """The C++ backend, or whichever $PYCAP_BACKEND names."""

    def __init__(self, threads: int) -> None:
        backends.select("cpu")
        backends.set_threads(threads)
        self._vgg16_model: NIC | None = None

    def describe(self) -> str:
        used = [kernels.conv2d_forward, kernels.lstm_forward]
        return "+".join(dict.fromkeys(f.__module__.rpartition(".")[2] for f in used))

    def prepare(self, case: Case) -> dict[str, Callable[[], Work]]:
        memory.trim()  # what the case before this one needed
        builder: Callable[[Case], Work] = getattr(self, f"_{case.op}")

        def make() -> Work:
            if case.dtype == "float32":
                return builder(case)
            try:
                work = builder(case)
                work.run()
            except TypeError as error:  # the backend's kernel refuses the dtype
                raise Unavailable(f"no {case.dtype} kernel: {error}") from error
            return work

        return {"": make}

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        n = 4096
        rng = np.random.default_rng(1)
        x, w = case_values.normal(rng, n, n), case_values.normal(rng, n, n)
        y, source = memory.empty((n, n)), np.ones(1 << 27, np.float32)
        target = np.empty_like(source)
        return {
            "float32": lambda: kernels.linear_forward(y, x, w, None, False),
            "copy": lambda: np.copyto(target, source),
        }

    # Single operations ------------------------------------------------------------------------------------------------

    def _conv2d(self, case: Case) -> Work:
        a = case_values.arrays(case)
        x, dy = _typed(case, a["x"], a["dy"])
        parameters = Tensor(x), Tensor(a["w"]), Tensor(a["b"])
        if case.mode == "forward":
            held = _inference()
            return Work(lambda: ops.conv2d(*parameters, relu=True), lambda y: {"y": y.data}, held.close)
        y = ops.conv2d(*parameters, relu=True).data
        dx = memory.empty_like(x) if case.shape["C"] > 3 else None
        dw, db = memory.empty_like(a["w"]), memory.empty_like(a["b"])

        def backward() -> None:
            kernels.conv2d_backward_weight(dw, db, dy, x, y, None, 1, 1, 0.0, 0.0)
            if dx is not None:
                kernels.conv2d_backward_data(dx, dy, a["w"], y, None, 1, 1, 0.0)

        return Work(backward, lambda _: _present(dx=dx, dw=dw, db=db))

    def _linear(self, case: Case) -> Work:
        a = case_values.arrays(case)
        x, dy = _typed(case, a["x"], a["dy"])
        parameters = Tensor(x), Tensor(a["w"]), Tensor(a["b"])
        if case.mode == "forward":
            held = _inference()
            return Work(lambda: ops.linear(*parameters, relu=True), lambda y: {"y": y.data}, held.close)
        y = ops.linear(*parameters, relu=True).data
        dx, dw, db = memory.empty_like(x), memory.empty_like(a["w"]), memory.empty_like(a["b"])

        def backward() -> None:
            kernels.linear_backward_weight(dw, db, dy, x, y, 0.0, 0.0)
            kernels.linear_backward_data(dx, dy, a["w"], y, 0.0)

        return Work(backward, lambda _: {"dx": dx, "dw": dw, "db": db})

    def _pool(self, case: Case) -> Work:
        a = case_values.arrays(case)
        x, dy = _typed(case, a["x"], a["dy"])
        n, h, _, c = x.shape
        y, dx = memory.empty((n, h // 2, h // 2, c), x.dtype), memory.empty_like(x)
        argmax = memory.empty((n, h // 2, h // 2, -(-c // 4)), np.uint8)
        kernels.maxpool_forward(y, argmax, x)
        if case.mode == "forward":
            return Work(lambda: kernels.maxpool_forward(y, argmax, x), lambda _: {"y": y})
        return Work(lambda: kernels.maxpool_backward(dx, dy, argmax, 0.0), lambda _: {"dx": dx})

    def _lstm(self, case: Case) -> Work:
        a = case_values.arrays(case)
        learns = case.mode != "forward"
        leaves = {name: Tensor(a[name], learns) for name in ("x", "w_x", "w_h", "b")}

        def run() -> Any:
            for leaf in leaves.values():
                leaf.fresh = False
            h, _ = ops.lstm(*leaves.values())
            if learns:
                h.backward(a["dy"])
            return h.data

        return Work(run, lambda h: {"h": h, **_gradients(leaves)})

    def _embedding(self, case: Case) -> Work:
        a = case_values.arrays(case)
        table, ids = Tensor(a["table"]), a["ids"]
        if case.mode == "forward":
            return Work(lambda: ops.embedding(table, ids).data, lambda y: {"y": y})
        dtable = np.zeros_like(a["table"])
        rows = np.unique(ids)
        return Work(lambda: kernels.embedding_backward(dtable, a["dy"], ids, rows, 0.0), lambda _: {"dtable": dtable})

    def _softmax_xent(self, case: Case) -> Work:
        a = case_values.arrays(case)
        leaves = {name: Tensor(a[name], True) for name in ("h", "w", "b")}

        def run() -> Any:
            for leaf in leaves.values():
                leaf.fresh = False
            loss = ops.linear_cross_entropy(*leaves.values(), a["targets"])
            loss.backward()
            return loss.data

        return Work(run, lambda loss: {"loss": loss, **_gradients(leaves)})

    def _adam(self, case: Case) -> Work:
        rng = case_values.generator(case)
        shapes = case_values.vgg16_shapes()
        params, grads = ([case_values.normal(rng, *s, scale=0.01) for s in shapes] for _ in range(2))
        ms, vs = ([np.zeros(s, np.float32) for s in shapes] for _ in range(2))

        def run() -> None:
            kernels.adam_step(params, grads, ms, vs, 1e-4, 0.9, 0.999, 1e-8, 0.0, 1, 1.0, 0.0)

        return Work(run, lambda _: {})

    # Whole models -----------------------------------------------------------------------------------------------------

    def _vgg16(self, case: Case) -> Work:
        if self._vgg16_model is None:  # these cases leave the weights as they are
            self._vgg16_model = case_values.captioner(case)[0]
        cnn = self._vgg16_model.cnn
        x = Tensor(_typed(case, case_values.images(case))[0])
        if case.mode == "forward":
            cnn.train(False)
            held = _inference()
            return Work(lambda: cnn(x), lambda y: {"fc7": y.data}, held.close)
        parameters = cnn.named_parameters()
        seed = _typed(case, case_values.normal(np.random.default_rng(17), case.shape["N"], 4096))[0]

        def run() -> Any:
            for parameter in parameters.values():
                parameter.fresh = False
            y = cnn(x)
            y.backward(seed)
            return y.data

        def close() -> None:
            for parameter in parameters.values():
                parameter.grad = None
                parameter.fresh = False

        return Work(run, lambda y: {"fc7": y, **_gradients({f"cnn.{n}": p for n, p in parameters.items()})}, close)

    def _joint(self, case: Case) -> Work:
        if case_values.config(case).precision not in FIELDS["precision"].metadata["choices"]:
            raise Unavailable(f"pycap cannot train in {case.dtype} yet")
        model, config = case_values.captioner(case)
        trainer = Trainer(model, config, case_values.SPEC, 1000)
        trainer.begin_epoch(0)
        batch = case_values.batch(case)
        losses: list[float] = []
        return Work(lambda: losses.append(trainer.step(batch).loss), lambda _: {"first loss": np.float32(losses[:1])})

    def _caption(self, case: Case) -> Work:
        model, config = case_values.captioner(case)
        model.train(False)
        captioner = Captioner(model, _vocabulary(case), case_values.SPEC, config)
        s = case.shape
        images, crops = case_values.photographs(s["N"])

        def run(count: int = s["N"]) -> list[float]:
            best = []
            for first in range(0, count, s["batch"]):
                part = slice(first, first + s["batch"])
                beams = captioner.caption_batch(images[part], crops[part], beam_size=s["beam"], max_length=s["T"])
                best += [beam[0][1] for beam in beams]
            return best

        return Work(run, lambda best: {"logprob": np.float32(best)}, probe=lambda: run(s["batch"]))

    def _cold(self, case: Case) -> Work:
        from PIL import Image

        folder = Path(tempfile.mkdtemp(prefix="pycap-bench-"))
        model, config = case_values.captioner(case)
        checkpoint.save(
            folder / "best", model=model.state_arrays(), optimizer=None, state={}, vocab=_vocabulary(case),
            config=config, preprocess=case_values.SPEC.to_dict(),
        )  # fmt: skip
        Image.fromarray(case_values.photographs(1)[0][0]).save(folder / "image.png")
        program = (
            "import pycap; caption, = pycap.load('best').caption('image.png', beam_size=3); "
            "print(caption.logprob, flush=True)"
        )
        return first_line([sys.executable, "-c", program], folder)


def first_line(command: list[str], folder: Path) -> Work:
    """A fresh process that prints the caption's log-probability: timed from its start to that line. Deletes the folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}

    def run() -> tuple[float, float]:
        begin = time.perf_counter()
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - begin
        if process.returncode or not line:
            raise RuntimeError(f"{command[0]}: the fresh process ended with status {process.returncode}")
        return seconds, float(line)

    return Work(
        run,
        lambda result: {"logprob": np.float32([result[1]])},
        lambda: shutil.rmtree(folder),
        lambda result: result[0],
    )


def _inference() -> ExitStack:
    """No graph, and prepared forms of the weights kept: entered for a case's whole life."""
    held = ExitStack()
    held.enter_context(no_grad())
    held.enter_context(backends.constant_weights(backends.WeightCache()))
    return held


def _vocabulary(case: Case) -> Vocabulary:
    return Vocabulary([f"w{i}" for i in range(case.shape["V"] - len(SPECIALS))])


def _typed(case: Case, *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays in the case's dtype."""
    if case.dtype == "float32":
        return list(arrays)
    try:
        import ml_dtypes
    except ImportError as error:
        raise Unavailable("bfloat16 on the CPU needs ml_dtypes: pip install ml_dtypes") from error
    return [a.astype(ml_dtypes.bfloat16) for a in arrays]


def _gradients(leaves: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {f"d {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _present(**arrays: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if array is not None}
