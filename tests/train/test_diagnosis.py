"""What is told of a step whose loss or gradient is not finite: the layer, what it was given, the likely cause."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, device
from pycap.autograd import Tensor
from pycap.config import TrainConfig
from pycap.ops.linear import Linear
from pycap.ops.lstm import LSTM
from pycap.training import diagnosis, remedies
from pycap.training.trainer import Diverged, StepResult, Trainer
from tests.lockstep import Lockstep, together
from tests.train import test_step as one
from tests.train.rank_steps import cut
from tests.train.runs import tiny


def failed(made: Trainer, seed: int = 1) -> Diverged:
    with pytest.raises(Diverged) as raised:
        made.step(one.batch(seed))
    assert raised.value.attempt is not None
    return raised.value


def put(made: Trainer, name: str, value: float, at: int = 3) -> None:
    data = made.model.named_parameters()[name].data
    host = device.to_host(data).copy()
    host.reshape(-1)[at] = value
    device.assign(data, host)


@pytest.fixture(params=["cpu", "resident", "cuda"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trainer on the CPU, with steps as on a GPU, and on the stand-in for one, after two steps."""
    with one.standin(monkeypatch) if request.param == "cuda" else backends.use("reference"):
        trainer = one.trainer(request.param != "cpu", drop_prob_lm=0.5)
        for number in (0, 0):
            trainer.step(one.batch(number))
        yield trainer


@pytest.mark.parametrize("name", ["cnn.conv3_1.weight", "lstm.bias", "projection.bias"])
def test_a_weight_that_is_not_finite_is_named(made: Trainer, name: str) -> None:
    put(made, name, np.nan)
    error = failed(made)
    before = one.weights(made)
    found = diagnosis.find(made, error.attempt)
    assert (found.kind, found.layer) == ("weights", name.rpartition(".")[0])
    assert [(a.name, a.bad) for a in found.arrays] == [(name, 1)]
    assert one.weights(made) == before and not any(t.fresh for t in made.model.named_parameters().values())


def test_the_layer_whose_values_overflow_is_named_with_what_it_was_given(made: Trainer) -> None:
    layer = made.model.named_parameters()["cnn.conv3_1.weight"].data
    layer[...] = layer * np.float32(1e38) * np.float32(1e3) if device.current() == "cpu" else layer * 1e30
    device.assign(layer, np.full(layer.shape, 3e38, np.float32))
    found = diagnosis.find(made, failed(made).attempt)
    assert (found.kind, found.layer) == ("forward", "cnn.conv3_1")
    assert [a.name for a in found.inputs] == ["cnn.conv2_1", "cnn.conv3_1.weight", "cnn.conv3_1.bias"]
    assert found.inputs[1].largest == pytest.approx(3e38) and not diagnosis.moderate(found)
    assert [a.name for a in found.activations][:3] == ["cnn.conv1_1", "cnn.conv2_1", "cnn.conv3_1"]
    assert set(found.images) <= {f"1-{i}.jpg" for i in range(4)} and found.images


@pytest.mark.parametrize("where", ["lstm", "head"])
def test_a_kernel_that_fails_is_told_from_a_training_that_does(
    made: Trainer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Values of ordinary size go into it. The LSTM's step is told, and whose caption it was."""
    if where == "lstm":
        plain = LSTM.forward

        def forward(self: Any, *arrays: Any, **how: Any) -> Any:
            h, c = plain(self, *arrays, **how)
            h[2, 5] = float("nan")  # the third step of the second image's third caption
            return h, c

        monkeypatch.setattr(LSTM, "forward", forward)
        found = diagnosis.find(made, failed(made).attempt)
        assert (found.kind, found.layer, found.images) == ("forward", "lstm", ["1-1.jpg"])
        assert "lstm at step 3 of" in found.where
    else:
        plain = Linear.backward

        def backward(self: Any, dy: Any) -> None:
            plain(self, dy)
            if self.w.shape == (16, 16) and self.parents[0].node is not None and self.y is None:
                self.parents[1].grad[0, 0] = float("inf")

        monkeypatch.setattr(Linear, "backward", backward)
        found = diagnosis.find(made, failed(made).attempt)
        assert (found.kind, found.layer) == ("backward", "image_embedding")
        assert found.where.startswith("the gradient of image_embedding.weight is the first in backward")
    assert diagnosis.moderate(found)
    cause, remedy = remedies._cause(found, made.config, {}, False)
    assert "it is its computation that fails" in cause and "--backend reference" in remedy


def test_a_step_that_is_finite_when_it_is_made_again_is_said_to_be(made: Trainer) -> None:
    attempt = made.prepare(one.batch(1))
    assert attempt is not None
    losses = sum(forward().item() for forward in made.passes(attempt))
    found = diagnosis.find(made, attempt)
    assert found.kind == "none" and {a.bad for a in (*found.activations, *found.gradients)} == {0}
    assert {a.name for a in found.gradients} >= {f"gradient of {name}" for name in made.model.learning(False)}
    assert made.step(one.batch(1)).loss == pytest.approx(
        losses, rel=1e-5
    )  # the same dropout, and nothing was left behind


def test_what_the_optimiser_holds_is_looked_at(made: Trainer) -> None:
    attempt = made.prepare(one.batch(1))
    assert attempt is not None and diagnosis.find(made, attempt).state == []
    for name, array in made.optimizer.state_arrays().items():
        if "lstm.bias" in name and not name.endswith(".step"):
            device.assign(array, np.full(array.shape, np.inf, array.dtype))
    held = diagnosis.find(made, attempt).state
    assert held and all("lstm.bias" in array.name and array.bad == array.of > 0 for array in held)


def test_what_fails_only_in_the_passes_that_failed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at in small passes first, for their memory; a fault of large ones does not show there."""
    monkeypatch.setattr(diagnosis, "_AT_ONCE", 2)
    plain = LSTM.forward

    def forward(self: Any, *arrays: Any, **how: Any) -> Any:
        h, c = plain(self, *arrays, **how)
        if h.shape[1] == 12:  # the captions of all four images
            h[2, 5] = float("nan")
        return h, c

    monkeypatch.setattr(LSTM, "forward", forward)
    with backends.use("reference"):
        made = one.trainer(False)
        found = diagnosis.find(made, failed(made).attempt)
    assert (found.kind, found.layer, found.images) == ("forward", "lstm", ["1-1.jpg"])


def test_long_lists_of_names_are_cut() -> None:
    assert diagnosis._listed(["a"]) == "a" and diagnosis._listed(list("abc")) == "a, b, c"
    assert diagnosis._listed(list("abcd")) == "a, b, c and 1 more"


def test_a_frozen_cnn_is_looked_at_too() -> None:
    with backends.use("reference"):
        made = one.trainer(False, freeze_cnn=True, micro_batch=3)
        device.assign(made.model.cnn.fc6.weight.data, np.full(made.model.cnn.fc6.weight.shape, 3e38, np.float32))
        found = diagnosis.find(made, failed(made).attempt)
        assert (found.kind, found.layer) == ("forward", "cnn.fc6")
        assert not made.model.cnn.fc6.weight.requires_grad and made.model.cnn.fc6.weight.grad is None


def test_of_ranks_the_one_with_the_first_cause_tells(tmp_path: Path) -> None:
    """Rank 1's weight is broken, by which rank 0 has no NaN of its own; both say the same."""

    def part(ranks: Lockstep) -> str:
        with backends.use("reference"):
            made = one.trainer(False, ranks=ranks, out_dir=tmp_path)
            if ranks.rank == 1:
                put(made, "cnn.conv2_1.bias", np.inf)
            with pytest.raises(Diverged) as raised:
                made.step(cut(one.batch(0), ranks.rank, 2))
            return remedies.explain(raised.value, made, made.config, [], ranks, 0)

    first, second = together(2, part)
    assert first == second and "where: rank 1 of 2: cnn.conv2_1.bias was not finite before the step" in first
    assert json.loads((tmp_path / remedies.FILE).read_text())["rank"] == 1


def history(norms: list[float]) -> list[StepResult]:
    return [StepResult(i + 1, 4.0, 9, 3, {"cnn": norm, "lm": 1.0}, 0.1) for i, norm in enumerate(norms)]


def test_norms_that_grew_before_are_told(tmp_path: Path) -> None:
    with backends.use("reference"):
        made = one.trainer(False, out_dir=tmp_path)
        put(made, "cnn.conv2_1.bias", np.inf)
        text = remedies.explain(failed(made, 0), made, made.config, history([1.0] * 20 + [3.0, 50.0]), made._ranks, -9)
    assert (
        "before: step 22: loss 4, gradient norms cnn 50, lm 1; in the last 8 steps up to cnn 50 times the usual" in text
    )
    assert "likely: an update of finite gradients wrote them" in text and "--learning-rate 0.003" in text
    assert 3 <= len(text.splitlines()) <= 6


def test_one_weight_that_nothing_led_to_is_not_the_trainings_fault() -> None:
    """Of a thousand one is broken: memory that errs, unless norms had grown. Many are broken by an update."""
    config = TrainConfig()
    one_bad, many = (diagnosis.Array("lstm.bias", 1.0, bad, 1000) for bad in (1, 21))

    def cause(array: diagnosis.Array, **grown: float) -> str:
        return remedies._cause(diagnosis.Finding("weights", "", arrays=[array]), config, grown, False)[0]

    assert "memory that errs" in cause(one_bad) and "memory that errs" in cause(one_bad, lm=2.0)
    assert "an update of finite gradients" in cause(one_bad, lm=1e4) and "an update of finite" in cause(many)


@pytest.mark.parametrize(
    ("precision", "said"), [("fp32", "overflowed ("), ("bf16", "overflowed, in bf16 sooner than in fp32 (")]
)
def test_an_overflow_tells_of_the_precision(precision: str, said: str) -> None:
    found = diagnosis.Finding("forward", "", "lstm", inputs=[diagnosis.Array("x", 1e30, 0, 9)])
    assert said in remedies._cause(found, TrainConfig(precision=precision), {}, False)[0]


def test_features_that_are_not_finite_are_told_with_their_images() -> None:
    with backends.use("reference"):
        made = one.trainer(False, freeze_cnn=True, features="auto")
        rows = np.ones((4, 16), np.float32)
        rows[2, 7] = np.nan
        with pytest.raises(Diverged) as raised:
            made.step(replace(one.batch(0), images=rows))
        found = diagnosis.find(made, raised.value.attempt)
        assert (found.kind, found.images) == ("input", ["0-2.jpg"])
        assert found.where == "the stored features of 0-2.jpg are not finite"
        assert "a damaged row of features.h5" in remedies._cause(found, made.config, {}, False)[0]


def test_a_run_that_diverges_tells_and_keeps_the_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.launch

    def grown(self: Trainer, *batch: object) -> object:
        if self.step_number == 4:
            self.model.cnn.conv2_1.weight.data[...] = 3e38
        return plain(self, *batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "launch", grown)
    with pytest.raises(Diverged) as raised:
        pycap.train(tiny(data, tmp_path / "run"))
    head, *lines = str(raised.value).splitlines()
    assert head.startswith("step 5 (epoch 2, batch 2): the loss is nan") and "the last good checkpoint is" in head
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("  where: cnn.conv2_1 is the first to put out what is not finite")
    assert lines[1].startswith("  given: cnn.conv1_1 up to ") and "cnn.conv2_1.weight up to 3e+38" in lines[1]
    told = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert (told["step"], told["layer"], told["kind"]) == (5, "cnn.conv2_1", "forward")
    assert [row["step"] for row in told["last_steps"]] == [1, 2, 3, 4] and len(told["files"]) == 8
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_weights_that_the_last_update_broke_are_not_saved(data: Path, tmp_path: Path) -> None:
    """Its gradients were finite; the checkpoint of the beginning stays."""
    with pytest.raises(Diverged, match=r"after step 1: cnn\.conv1_1.* holds NaN or infinity, written by an update"):
        pycap.train(tiny(data, tmp_path / "run", learning_rate=1e39, optimizer="sgd", max_steps=1))
    saved = pycap.checkpoint.load(tmp_path / "run" / "last") if hasattr(pycap, "checkpoint") else None
    assert saved is None or all(np.isfinite(a).all() for a in saved.model.values())


def test_arrays_are_looked_at() -> None:
    assert diagnosis.look("a", np.array([1.0, -3.0, np.inf, np.nan], np.float32)) == diagnosis.Array("a", 3.0, 2, 4)
    assert diagnosis.look("a", np.zeros(0, np.float32)).largest == 0 and isinstance(Tensor(np.zeros(1)), Tensor)
