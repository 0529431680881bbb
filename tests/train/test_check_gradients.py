"""`--check-gradients`: right backward passes pass, wrong ones are named by tensor, and nothing is changed by looking."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, checkpoint
from pycap.config import ConfigError, TrainConfig
from pycap.distributed import ALONE, Ranks
from pycap.ops.lstm import LSTM
from pycap.train import main
from pycap.training import gradients
from pycap.training.gradients import GradientCheck, WrongGradient, errors
from pycap.training.trainer import Trainer
from tests.lockstep import Lockstep, together
from tests.train import test_scst as scst
from tests.train import test_step as one
from tests.train.rank_steps import cut
from tests.train.runs import tiny


def checked(made: Trainer, ranks: Ranks = ALONE, directions: int = 1, share: Any = lambda batch: batch) -> list[str]:
    """The table's rows."""
    attempt = made.prepare(share(one.batch(0)))
    assert attempt is not None
    said: list[str] = []
    GradientCheck(made, attempt, ranks).run(directions, said.append)
    return said


def verdicts(rows: list[str]) -> dict[str, str]:
    return {row.split()[0]: row.rpartition("  ")[2] for row in rows if row.startswith("  ")}


CASES: dict[str, dict[str, Any]] = {
    "frozen": {"freeze_cnn": True},
    "words in passes": {"pretrain_words": 1, "micro_batch": 3},
    "joint": {},
}


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, id=name, marks=[pytest.mark.slow] * (name == "joint")) for name, o in CASES.items()],
)
def test_right_gradients_pass_and_nothing_changes(options: dict[str, Any]) -> None:
    with backends.use("reference"):
        made, plain = one.trainer(False, **options), one.trainer(False, **options)
        state = np.random.get_state()[1].copy()  # type: ignore[index]
        table = verdicts(checked(made))
        assert "DISAGREES" not in table.values() and list(table.values()).count("agrees") >= len(table) / 2
        assert set(table) >= set(made.model.learning(made._words_only))
        assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]
        assert all(t.grad is None and not t.fresh for t in made.model.named_parameters().values())
        assert one.trajectory(made, 3) == one.trajectory(plain, 3) and one.weights(made) == one.weights(plain)


def planted(monkeypatch: pytest.MonkeyPatch, primitive: str, which: int, factor: float) -> None:
    """The primitive's output of this place is wrong by a factor."""
    plain = getattr(backends.kernels, primitive)

    def wrong(*arrays: Any) -> None:
        plain(*arrays)
        if arrays[which] is not None:
            arrays[which][...] *= np.float32(factor)

    monkeypatch.setattr(backends.kernels, primitive, wrong)


@pytest.mark.parametrize(
    ("primitive", "which", "named"),
    [
        ("lstm_backward", 1, "lstm.weight_x"),
        ("lstm_backward", 2, "lstm.weight_h"),
        ("lstm_backward", 3, "lstm.bias"),
        ("linear_xent_backward", 1, "projection.weight"),
    ],
)
def test_an_error_of_one_per_cent_is_found_and_its_tensor_named(
    monkeypatch: pytest.MonkeyPatch, primitive: str, which: int, named: str
) -> None:
    with backends.use("reference"):
        made = one.trainer(False, freeze_cnn=True)
        before = one.weights(made)
        planted(monkeypatch, primitive, which, 1.01)
        told = rf"check_gradients: .* disagrees with differences of the loss: {named} by (0\.[89]\d*|1|1\.\d+) %\."
        with pytest.raises(WrongGradient, match=told):
            checked(made)
        assert one.weights(made) == before


def test_an_error_that_others_inherit_names_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scatter-add serves the states' gradient too, on its way to the LSTM: what lies behind is wrong twice."""
    with backends.use("reference"):
        made = one.trainer(False, freeze_cnn=True)
        planted(monkeypatch, "embedding_backward", 0, 1.01)
        with pytest.raises(WrongGradient) as raised:
            checked(made)
        named = dict(re.findall(r"(\S+) by (\d+\.?\d*) %", str(raised.value)))
        assert float(named["word_embedding.weight"]) == pytest.approx(2, abs=0.2)
        assert float(named["lstm.weight_x"]) == pytest.approx(1, abs=0.2) == float(named["lstm.weight_h"])
        assert not any(name.startswith("projection") for name in named)


@pytest.mark.parametrize(("factor", "found"), [(1.004, True), (1.001, False)])
def test_the_smallest_error_that_is_found(monkeypatch: pytest.MonkeyPatch, factor: float, found: bool) -> None:
    """0.2 % of a slope is never called wrong."""
    with backends.use("reference"):
        made = one.trainer(False, freeze_cnn=True)
        planted(monkeypatch, "linear_xent_backward", 1, factor)
        if found:
            with pytest.raises(WrongGradient, match=r"projection\.weight by 0\.(3[89]|4)\d* %"):
                checked(made)
        else:
            assert verdicts(checked(made))["projection.weight"] == "agrees"


def test_a_gradient_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The half of each direction that is random does it: along the gradient that backward gives there is nothing."""
    with backends.use("reference"):
        made = one.trainer(False, freeze_cnn=True)
        planted(monkeypatch, "lstm_backward", 1, 0.0)
        with pytest.raises(WrongGradient, match=r"lstm\.weight_x by (9\d\.?\d*|100) %"):
            checked(made)


@pytest.mark.slow
def test_convolutions_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with backends.use("reference"):
        made = one.trainer(False, model="merge")
        planted(monkeypatch, "conv2d_backward_weight", 0, 1.02)
        with pytest.raises(WrongGradient, match=r"cnn\.conv4_1\.weight by (1\.9\d*|2) %"):
            checked(made)


def test_the_stand_in_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with backends.use("reference"):
        expected = checked(one.trainer(True, freeze_cnn=True))
    with one.standin(monkeypatch):
        made = one.trainer(True, freeze_cnn=True)
        one.trajectory(made, 1)
        made.step_number = 0
        again = one.trainer(True, freeze_cnn=True)
        assert verdicts(checked(again)) == verdicts(expected)
        assert one.trajectory(again, 3) == one.trajectory(one.trainer(True, freeze_cnn=True), 3)


def test_ranks_check_their_shares_together() -> None:
    def part(ranks: Lockstep) -> list[str]:
        with backends.use("reference"):
            return checked(
                one.trainer(False, ranks=ranks, freeze_cnn=True), ranks, share=lambda b: cut(b, ranks.rank, 2)
            )

    first, second = together(2, part)
    assert first == second and set(verdicts(first).values()) <= {"agrees", "not to be told"}
    assert {"lstm.weight_x", "lstm.weight_h", "projection.weight"} <= {
        n for n, v in verdicts(first).items() if v == "agrees"
    }


def test_a_self_critical_run_checks_its_weighted_loss() -> None:
    with backends.use("reference"):
        made = scst.trainer(False, freeze_cnn=True)
        attempt = made.prepare(scst.a_batch(scst.talk(0)))
        assert attempt is not None and attempt.factors is not None
        said: list[str] = []
        GradientCheck(made, attempt, ALONE).run(1, said.append)
        assert "scst" in said[0] and "agrees" in verdicts(said).values() and "DISAGREES" not in verdicts(said).values()


def sides(loss: Any) -> tuple[list[tuple[float, float]], float, list[float]]:
    steps = [2.0**-k for k in range(4, 17)]
    return [(loss(h), loss(-h)) for h in steps], loss(0.0), steps


def test_what_a_step_adds_to_a_slope_is_allowed() -> None:
    error, slope, _ = min(errors(*sides(lambda t: 3 * t + t * t + t**3), 1e-9))
    assert abs(slope - 3) < error < 1e-4


@pytest.mark.parametrize("at", [0.0, 1e-4, 1e-3, 2.0**-8 / 3, 0.02])
@pytest.mark.parametrize("noise", [1e-9, 1e-6, 1e-5])
def test_a_kink_is_allowed_for_wherever_it_is(at: float, noise: float) -> None:
    """Backward may take either side of one that is at the weights themselves."""
    rng = np.random.default_rng(7)
    loss = lambda t: 3 * t + t * t + 0.5 * max(t - at, 0.0) + noise * rng.standard_normal()  # noqa: E731
    error, slope, _ = min(errors(*sides(loss), noise))
    assert abs(slope - 3) <= error and (at > 0 or abs(slope - 3.5) <= error)


def test_noise_is_measured_without_what_is_smooth() -> None:
    rng = np.random.default_rng(3)
    made = [gradients._noise([1.0 + 0.1 * k + 1e-7 * rng.standard_normal() for k in range(7)]) for _ in range(99)]
    assert 0.5e-7 < np.median(made) < 1.5e-7


# Runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_with_it_equals_a_run_without(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"epochs": 1, "freeze_cnn": True, "backend": "reference", "drop_prob_lm": 0.5}
    for name, count in (("with", 1), ("without", 0)):
        pycap.train(tiny(data, tmp_path / name, check_gradients=count, **how))
        assert ("gradient check (captions" in capsys.readouterr().out) == bool(count)
    saved = [checkpoint.load(tmp_path / name, prefer="last") for name in ("with", "without")]
    for pair in ((s.model for s in saved), (s.optimizer or {} for s in saved)):
        a, b = pair
        assert a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)

    def log(name: str) -> str:
        return re.sub(r'"(images_per_s|waited)": [^,}]+', "", (tmp_path / name / "log.jsonl").read_text())

    assert log("with") == log("without")


def test_a_run_whose_backward_is_wrong_ends_before_its_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LSTM.backward

    def wrong(self: Any, *given: Any) -> Any:
        returned = plain(self, *given)
        for parent in self.parents:
            if getattr(parent, "node", 1) is None and parent.grad is not None and parent.grad.ndim == 2:
                parent.grad *= np.float32(1.02)
        return returned

    monkeypatch.setattr(LSTM, "backward", wrong)
    how: dict[str, Any] = {"epochs": 1, "freeze_cnn": True, "backend": "reference", "check_gradients": 1}
    with pytest.raises(
        WrongGradient, match=r"disagrees .*lstm\.weight_x by (1\.[89]\d*|2|2\.\d+) %, lstm\.weight_h by"
    ):
        pycap.train(tiny(data, tmp_path / "run", **how))
    assert not [line for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if '"train"' in line]


def test_the_command_tells_it_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: TrainConfig) -> None:
        assert config.check_gradients == 3
        raise WrongGradient("check_gradients: wrong")

    monkeypatch.setattr("pycap.training.run.run", run)
    with pytest.raises(SystemExit) as exit:
        main(["--recipe", "demo", "--check-gradients", "3", "--out-dir", str(tmp_path / "run")])
    assert exit.value.code == "train.py: error: check_gradients: wrong"


def test_bf16_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="check_gradients: 2 needs --precision fp32"):
        TrainConfig(check_gradients=2, precision="bf16").validate()
