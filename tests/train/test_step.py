"""Steps that stay on the device: the CPU's losses, whatever serves them; on the stand-in, recorded and replayed bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from pycap import backends, device, memory
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.distributed import ALONE, Ranks
from pycap.distributed.nccl import Communicator, ExchangeError
from pycap.models import targets
from pycap.training import plan
from pycap.training.scst import Reward
from pycap.training.step import Step
from pycap.training.trainer import Diverged, Trainer
from tests import cupy_nccl, cupy_standin

VOCABULARY, SIDE = 37, 40


def batch(seed: int, images: int = 4, longest: int = 9) -> Batch:
    """Noise with captions of 2 to `longest` - 2 words, three an image."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((longest, 3 * images), np.int32)
    for column in range(tokens.shape[1]):
        words = rng.integers(2, longest - 1)
        tokens[: words + 2, column] = [1, *rng.integers(3, VOCABULARY, words), targets.END]
    tokens = tokens[: int((tokens != 0).sum(0).max())]
    crops = np.stack([rng.integers(0, SIDE - 32 + 1, images) for _ in range(2)] + [rng.integers(0, 2, images)], 1)
    return Batch(
        images=rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8),
        crops=crops.astype(np.int32),
        tokens=tokens,
        image_ids=tuple(range(images)),
        file_names=tuple(f"{seed}-{i}.jpg" for i in range(images)),
        examples=(None,) * images,  # type: ignore[arg-type]
        epoch=0,
        index=seed,
    )


def trainer(
    resident: bool,
    log: Callable[[str], None] = print,
    reward: Reward | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> Trainer:
    base: dict[str, Any] = {
        "cnn": "vgg_micro", "cnn_width": 0.5, "fc_size": 16, "image_size": 32, "resize": SIDE, "rnn_size": 16,
        "input_encoding_size": 16, "batch_size": 4, "seq_per_img": 3, "max_length": 10, "epochs": 9, "learning_rate": 3e-3,
        "lr_schedule": "cosine", "grad_clip": 0.5, "grad_clip_mode": "norm",
    }  # fmt: skip
    config = TrainConfig(**(base | options)).validate()
    spec = PreprocessSpec(resize=SIDE, crop=32)
    made = Trainer(
        build_model(config, VOCABULARY), config, spec, 5, resident=resident, reward=reward, log=log, ranks=ranks
    )
    made.begin_epoch(0)
    return made


def trajectory(made: Trainer, count: int = 5, **how: Any) -> list[float]:
    return [made.step(batch(number, **how)).loss for number in range(count)]


def weights(made: Trainer) -> dict[str, bytes]:
    arrays = made.model.state_arrays() | made.optimizer.state_arrays()
    return {name: device.to_host(array).tobytes() for name, array in arrays.items()}


def device_step(made: Trainer) -> Step:
    step = made._device_step
    assert step is not None
    return step


def exchanging(made: Trainer) -> Trainer:
    """The trainer, whose steps sum gradients over the GPUs of all ranks, of which there is one."""
    made._device_step = made._make_device_step()
    made._device_step._communicator = Communicator(ALONE)
    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "rmsprop in passes": {"optimizer": "rmsprop", "micro_batch": 3},
    "sgd for the CNN": {"cnn_optimizer": "sgd", "grad_clip_mode": "value", "grad_clip": 2e-3, "weight_decay": 1e-3},
    "frozen": {"freeze_cnn": True},
    "words": {"pretrain_words": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_losses_are_those_of_the_step_on_the_host(options: dict[str, Any]) -> None:
    """Gradients that are zero but for rounding make steps as small as they are, with the larger epsilon: else RMSprop and Adam
    divide them by their own size, and a BLAS's order of sums shows in the fifth loss (6e-6; with it 2e-7)."""
    options = {"epsilon": 1e-3} | options
    with backends.use("reference"):
        plain, resident = trainer(False, **options), trainer(True, **options)
        norms = [t.step(batch(7)).norms for t in (plain, resident)]
        expected, got = trajectory(plain), trajectory(resident)
    assert got == pytest.approx(expected, rel=2e-6) and len(set(expected)) == len(expected)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert plain.step_number == resident.step_number == 6


@pytest.mark.parametrize("backend", ["cpp", pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.slow])])
def test_the_backends_losses_agree_over_five_steps(backend: str) -> None:
    """`reference` with steps as on a CPU, `backend` with steps that stay on the device, on an arena where it is a GPU's."""
    said: list[str] = []
    with backends.use("reference"):
        expected = trajectory(trainer(False))
    with backends.use(backend), memory.poisoned():
        resident = trainer(True, said.append)
        assert trajectory(resident) == pytest.approx(expected, rel=1e-5)
    assert (device_step(resident).arena_bytes > 0) == (backend == "triton") and said == []


def test_nothing_is_added_up_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tables are scattered to, not the loss's positions; and no row of the words' table collects what is masked."""
    scattered = []
    with backends.use("reference"):
        made, given = trainer(True), batch(0)
        scatter = backends.kernels.embedding_backward
        monkeypatch.setattr(
            backends.kernels,
            "embedding_backward",
            lambda dtable, dy, ids, *how: (
                scattered.append((dtable.shape, ids.copy())) or scatter(dtable, dy, ids, *how)
            ),
        )
        made.step(given)
    (words, ids), (images, whose) = scattered
    assert words == (VOCABULARY, 16) and images == (4, 16) and whose.tolist() == [i for i in range(4) for _ in range(3)]
    said = given.tokens[:-1][given.tokens[1:] != targets.PAD]
    assert sorted(ids[ids >= 0].tolist()) == sorted(said.tolist()) and (ids == -1).sum() == ids.size - said.size > 0


@pytest.mark.parametrize("options", [{}, {"freeze_cnn": True}, {"pretrain_words": 1}, {"micro_batch": 2}])
def test_the_arena_is_as_large_as_the_plan_said(options: dict[str, Any]) -> None:
    with backends.use("reference"):
        made = trainer(True, **options)
        planned = plan.plan(made.config, VOCABULARY)
        for epoch in range(2):
            made.begin_epoch(epoch)
            made.step(batch(0))
    assert device_step(made).arena_bytes == planned.activations


# On the stand-in for a GPU --------------------------------------------------------------------------------------------


@contextmanager
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with backends.use("reference", "cuda"):
        yield


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_recorded_steps_are_the_launched_ones_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], precision: str
) -> None:
    said: list[str] = []
    worked: list[Any] = []
    with backends.use("reference"):
        plain = trainer(True, precision=precision, **options)
        expected = [loss for _ in range(3) for loss in trajectory(plain, 4)]
    with standin(monkeypatch):
        recorded = trainer(True, said.append, precision=precision, **options)
        work = Step._served
        monkeypatch.setattr(Step, "_served", lambda self, shape, *how: worked.append(shape) or work(self, shape, *how))
        assert [loss for _ in range(3) for loss in trajectory(recorded, 4)] == expected
        assert weights(recorded) == weights(plain)
    graphs = len(device_step(recorded).graphs)
    assert graphs == len(set(worked)) and said == []
    assert len(worked) == 2 * graphs < 12  # launched once, recorded once, replayed from then on


def test_a_rank_alone_exchanges_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes by that, in float32."""
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", cupy_nccl)
    with standin(monkeypatch), memory.poisoned():
        expected = [trajectory(made, 4) for made in [trainer(True)] for _ in range(3)]
        made = exchanging(trainer(True))
        assert [trajectory(made, 4) for _ in range(3)] == expected and len(device_step(made).graphs) > 0
        made.close()
        with pytest.raises(ExchangeError, match="destroyed"):
            made.step(batch(0))


def test_batches_of_other_sizes_are_other_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(4, 9), (3, 9), (4, 5), (4, 9), (3, 9), (4, 5), (4, 9), (3, 9), (4, 5)]

    def losses(made: Trainer) -> list[float]:
        return [made.step(batch(3, images, longest)).loss for images, longest in sizes]

    with backends.use("reference"):
        expected = losses(trainer(True))
    with standin(monkeypatch):
        recorded = trainer(True)
        assert losses(recorded) == expected and len(device_step(recorded).graphs) == 3


@pytest.mark.parametrize(("words", "graphs"), [(1, 3), (0, 2)])
def test_what_is_learned_is_another_graph(monkeypatch: pytest.MonkeyPatch, words: int, graphs: int) -> None:
    """Without words first, the arena of a frozen CNN's steps is too small for what follows, and they are recorded anew."""

    def losses(made: Trainer) -> list[float]:
        told = []
        for epoch in (0, 1, 2, 0):
            made.begin_epoch(epoch)
            told += [made.step(batch(3)).loss for _ in range(3)]
        return told

    how: dict[str, Any] = {"pretrain_words": words, "finetune_cnn_after": 1}
    with backends.use("reference"):
        expected = losses(trainer(True, **how))
    with standin(monkeypatch):
        recorded = trainer(True, **how)
        assert losses(recorded) == expected and len(device_step(recorded).graphs) == graphs


def test_weights_that_somebody_else_writes_are_rounded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies in bfloat16 follow `load_arrays`, before the next step reads them, and the step itself; the kernels that take
    them are the GPU's, so here they are looked at."""

    def rounded(step: Step) -> bool:
        weights = step.model.state_arrays()
        return all(c.get().tobytes() == weights[n].get().astype(c.dtype).tobytes() for n, c in step.copies.items())

    looked: list[bool] = []
    served = Step._served
    monkeypatch.setattr(Step, "_served", lambda self, *how: looked.append(rounded(self)) or served(self, *how))
    with standin(monkeypatch):
        made = trainer(True, precision="bf16")
        made.step(batch(0))
        step = device_step(made)
        assert len(step.copies) == 7 and "cnn.fc7.weight" in step.copies and rounded(step)
        made.model.load_arrays({name: array * np.float32(3) for name, array in made.model.state_arrays().items()})
        assert not rounded(step)
        made.step(batch(0, images=3))
        assert rounded(step)
    assert looked == [True, True]


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_step_that_fails_changes_nothing_nor_do_those_after_it(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with backends.use("reference"):
        expected = trajectory(trainer(True), 4)
    with standin(monkeypatch) if where == "cuda" else backends.use("reference"):
        made = trainer(True)
        losses = [made.step(batch(number)).loss for number in (0, 1)]
        before, bias = weights(made), made.model.projection.bias.data
        was = device.to_host(bias).copy()
        device.assign(bias, np.full_like(was, np.nan))
        first, second = made.launch(batch(2)), made.launch(batch(3))
        with pytest.raises(Diverged, match=r"^step 3 .*the loss is nan; the gradient of cnn and of lm .*2-0\.jpg"):
            first.result()
        with pytest.raises(Diverged, match=r"^step 4 .*3-0\.jpg"):
            second.result()
        device.assign(bias, was)
        assert weights(made) == before and made.step_number == 2
        losses += [made.step(batch(number)).loss for number in (2, 3)]
    assert losses == expected


def test_arrays_that_are_exchanged_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else graphs would go on with arrays that nobody looks at: other weights, or the optimiser's state of a checkpoint."""

    def losses(made: Trainer) -> list[float]:
        told = [made.step(batch(3)).loss for _ in range(3)]
        kept = {name: array.copy() for name, array in made.optimizer.state_arrays().items()}
        state = made.state()
        told += [made.step(batch(3)).loss for _ in range(2)]
        made.load_state(state, kept)
        told += [made.step(batch(3)).loss for _ in range(3)]
        made.model.load_arrays({n: a * np.float32(1.5) for n, a in made.model.state_arrays().items()}, copy=False)
        return told + [made.step(batch(3)).loss for _ in range(3)]

    with backends.use("reference"):
        expected = losses(trainer(True))
    with standin(monkeypatch):
        assert losses(trainer(True)) == expected


@pytest.mark.parametrize("ahead", [2, 5])
def test_all_steps_after_one_that_failed_are_taken_back(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    with standin(monkeypatch):
        made = trainer(True)
        made.step(batch(0))
        before, bias = weights(made), made.model.projection.bias.data
        was = device.to_host(bias).copy()
        device.assign(bias, np.full_like(was, np.nan))
        pending = [made.launch(batch(number)) for number in range(ahead)]
        for each in pending:
            with pytest.raises(Diverged):
                each.result()
        device.assign(bias, was)
        assert weights(made) == before and made.step_number == 1


def test_the_host_runs_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are asked for when all steps have been launched: they are those of steps that were waited for one by one."""
    with standin(monkeypatch):
        made = trainer(True)
        expected = [loss for _ in range(3) for loss in trajectory(made, 4)]
        made = trainer(True)
        pending = [made.launch(batch(number)) for _ in range(3) for number in range(4)]
        assert [each.result().loss for each in pending] == expected


def test_a_word_outside_the_vocabulary_is_named() -> None:
    wrong = batch(0)
    wrong.tokens[1, 0] = VOCABULARY
    with backends.use("reference"):
        made = trainer(True)
        with pytest.raises(IndexError, match=r"ids 0 to 37: the vocabulary has 37"):
            made.step(wrong)
        assert made.step_number == 0
