"""What a run warns of: gradients that explode or vanish, losses that jump, dead ReLUs, captions that are all alike."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycap
from pycap import backends, config
from pycap.config import TrainConfig
from pycap.device import bfloat16
from pycap.models.vgg import VGG
from pycap.training import alarms
from pycap.training.alarms import Alarm, Alarms
from pycap.training.relus import Relus, Watch
from pycap.training.trainer import StepResult, Trainer
from pycap.training.variety import Variety, variety
from tests import cupy_standin
from tests.lockstep import Lockstep, together
from tests.train import test_step as one
from tests.train.runs import rows, tiny

# Steps ------------------------------------------------------------------------------------------------------------------


def steps(
    made: Alarms, norms: list[dict[str, float]], losses: list[float] | None = None, phase: str = "captions"
) -> list[Alarm]:
    """All that is said of these steps, one after the other."""
    first = made.recent[-1].step if made.recent else 0
    losses = losses or [4.0 + 0.01 * (i % 7) for i in range(len(norms))]
    results = [StepResult(first + i + 1, x, 9, 3, n, 0.1) for i, (n, x) in enumerate(zip(norms, losses, strict=True))]
    return [alarm for result in results for alarm in made.step(result, phase)]


def usual(count: int) -> list[dict[str, float]]:
    return [{"cnn": 1.0 + 0.1 * (i % 5), "lm": 2.0 + 0.1 * (i % 3)} for i in range(count)]


def test_an_exploding_gradient_is_told_once_with_its_group() -> None:
    made = Alarms(TrainConfig(learning_rate=0.5, grad_clip=0.0))
    assert steps(made, usual(120)) == []
    found = steps(made, [{"cnn": 1.1, "lm": 50.0}, {"cnn": 1.1, "lm": 60.0}])
    assert [(a.kind, a.step, a.figures) for a in found] == [
        ("exploding gradient", 121, {"group": "lm", "norm": 50.0, "usual": 2.1})
    ]
    assert re.search(r"norm 50, usually 2\.1; nothing limits it: --grad-clip 5.*--learning-rate 0\.5", found[0].text)
    assert [a.figures["group"] for a in steps(made, [{"cnn": 30.0, "lm": 2.0}])] == ["cnn"]  # another group's own
    assert [a.step for a in steps(made, usual(110) + [{"cnn": 1.0, "lm": 50.0}])] == [
        234
    ]  # said again, but not for 100 steps


def test_nothing_is_said_at_twenty_times_nor_while_a_phase_warms_up() -> None:
    made = Alarms(TrainConfig(grad_clip=1.0))
    assert steps(made, [{"lm": 1.0}] * 60 + [{"lm": 20.0}]) == []
    assert len(steps(made, [{"lm": 20.01}])) == 1
    made = Alarms(TrainConfig())
    assert steps(made, [{"lm": 1e-3}] * 60) == []
    assert steps(made, [{"lm": 1.0}] * 49 + [{"lm": 900.0}], phase="words") == []  # another phase: nothing is usual yet
    assert len(steps(made, [{"lm": 900.0}], phase="words")) == 1
    made = Alarms(TrainConfig(warmup_steps=80))
    assert steps(made, [{"lm": 1.0}] * 70 + [{"lm": 30.0}]) == []


def test_a_loss_far_above_the_first_is_told_before_anything_is_usual() -> None:
    made = Alarms(TrainConfig(learning_rate=9.0))
    found = steps(made, usual(4), [4.2, 42.0, 42.1, 2e17])
    assert [(a.kind, a.step, a.figures) for a in found] == [("jumping loss", 3, {"loss": 42.1, "usual": 4.2})]
    assert "the loss is 42.1, and began at 4.2" in found[0].text and "--learning-rate 9" in found[0].text
    assert steps(Alarms(TrainConfig()), usual(2), [1e-3, 9.9]) == []
    assert steps(Alarms(TrainConfig()), usual(2), [0.1, 80.0], "scst") == []


def test_a_loss_that_jumps_is_told_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    noisy = (4 + 0.5 * rng.standard_normal(300)).tolist()
    made = Alarms(TrainConfig())
    assert steps(made, usual(300), noisy) == []
    found = steps(made, usual(1), [12.5])
    assert [a.kind for a in found] == ["jumping loss"] and "jumps to 12.5, usually 3.83" in found[0].text
    critical = Alarms(TrainConfig())  # a loss weighed by advantages is of any size and sign
    assert steps(critical, usual(150), [0.1 * (-1) ** i for i in range(149)] + [80.0], "scst") == []


@pytest.mark.parametrize("norm", [0.0, 1e-13])
def test_a_gradient_that_vanishes_is_told_after_twenty_steps(norm: float) -> None:
    made = Alarms(TrainConfig(cnn_learning_rate=0.25))
    gone = {"cnn": norm, "lm": 1.0}
    assert steps(made, [gone] * 19 + usual(1) + [gone] * 19) == []
    found = steps(made, [gone] * 50)
    assert [(a.kind, a.figures["group"], a.figures["steps"]) for a in found] == [("vanishing gradient", "cnn", 20)]
    assert "--cnn-learning-rate 0.25" in found[0].text
    assert steps(Alarms(TrainConfig()), [{"cnn": 1e-11, "lm": 1.0}] * 50) == []


def test_a_continued_run_says_what_it_would_have_said() -> None:
    given = (
        usual(90)
        + [{"cnn": 40.0, "lm": 2.0}]
        + usual(30)
        + [{"cnn": 40.0, "lm": 90.0}]
        + [{"cnn": 0.0, "lm": 1.0}] * 30
    )
    whole, first = Alarms(TrainConfig()), Alarms(TrainConfig())
    expected = steps(whole, given)
    assert Counter(a.kind for a in expected) == {"exploding gradient": 2, "vanishing gradient": 1}
    for at in (60, 95, 140):
        first, second = Alarms(TrainConfig()), Alarms(TrainConfig())
        said = steps(first, given[:at])
        second.load_state(json.loads(json.dumps(first.state())))
        results = [StepResult(i + 1, 4.0 + 0.01 * (i % 7), 9, 3, n, 0.1) for i, n in enumerate(given)][at:]
        assert said + [a for r in results for a in second.step(r, "captions")] == expected


# Validations ------------------------------------------------------------------------------------------------------------


def seen(dead: dict[str, tuple[int, int]], spread: float | None = 0.7) -> Relus:
    return Relus(128, dead, spread)


def test_dead_relus_are_told_by_layer_and_again_when_more_are_dead() -> None:
    made = Alarms(TrainConfig(cnn_learning_rate=0.5))
    healthy = seen({"cnn.conv1_1": (4, 8), "cnn.fc6": (160, 256)})
    assert made.validation(10, healthy, None) == []
    (alarm,) = made.validation(20, seen({"cnn.conv1_1": (5, 8), "cnn.fc6": (160, 256)}), None)
    assert alarm.figures == {"layer": "cnn.conv1_1", "dead": 5, "channels": 8, "images": 128}
    assert alarm.text.startswith("5 of 8 channels of cnn.conv1_1 are 0 at every place of 128 held-out images")
    assert "--cnn-learning-rate 0.5" in alarm.text
    assert made.validation(30, seen({"cnn.conv1_1": (5, 8)}), None) == []
    (alarm,) = made.validation(40, seen({"cnn.conv1_1": (8, 8)}), None)
    assert alarm.text.startswith("all channels") and "nothing below it learns" in alarm.text
    (alarm,) = made.validation(40, seen({"cnn.fc6": (240, 256)}), None)
    assert alarm.figures["layer"] == "cnn.fc6"
    assert Alarms(TrainConfig()).validation(9, Relus(19, {"cnn.fc6": (9, 9)}, None), None) == []  # too few images


def captions(different: int, of: int = 100, people: float = 1.0) -> Variety:
    references = {i: [f"people's {i if i < people * of else 0}"] for i in range(of)}
    return variety({i: f"caption {min(i, different - 1)}" for i in range(of)}, references)


def test_variety() -> None:
    assert captions(4) == Variety(100, 4, 0.97, "caption 3", 1.0) and captions(4).distinct == 0.04
    assert captions(100, people=0.3).people == 0.3
    assert variety({}, {}).captions == 0


def test_captions_that_are_alike_are_told_once_that_is_no_longer_usual() -> None:
    made = Alarms(TrainConfig(learning_rate=0.5))
    steps(made, usual(alarms.FIRST_STEPS - 1))
    assert made.validation(999, None, captions(1)) == []  # a model that learns says one sentence at first
    steps(made, usual(1))
    (alarm,) = made.validation(1000, seen({}), captions(1))
    assert alarm.kind == "collapsed captions" and "only 1 different captions for 100 images" in alarm.text
    assert "100 % of them \u201ccaption 0\u201d" in alarm.text and "the CNN tells images apart" in alarm.text
    (alarm,) = made.validation(1000, seen({}, spread=1e-4), captions(1))
    assert "the CNN gives every image the same vector (fc7 differs by 0.01 %" in alarm.text
    (alarm,) = made.validation(1000, seen({}, spread=2e-3), captions(1))
    assert "the CNN tells images apart" in alarm.text and "people's differ in 100 %" in alarm.text
    assert made.validation(1000, None, captions(60)) == []
    assert made.validation(1000, None, captions(1, people=0.2)) == []  # the data is as little varied
    assert made.validation(1000, None, captions(1, of=19)) == []
    blind = Alarms(TrainConfig(blind=True))
    steps(blind, usual(1001))
    assert blind.validation(1001, None, captions(1)) == []


def test_captions_that_were_varied_before_are_told_at_once() -> None:
    made = Alarms(TrainConfig(learning_rate=0.5))
    assert made.validation(100, None, captions(60)) == []
    (alarm,) = made.validation(200, None, captions(5))
    assert "they were 60 % before: the learning rate (--learning-rate 0.5)" in alarm.text
    least = Alarms(TrainConfig())
    assert least.validation(100, None, captions(int(200 * alarms.SAME))) == []  # varied enough to fall from
    assert len(least.validation(200, None, captions(int(100 * alarms.SAME) - 1))) == 1
    never = Alarms(TrainConfig())
    assert never.validation(100, None, captions(int(200 * alarms.SAME) - 1)) == []
    assert never.validation(200, None, captions(1)) == []


# Looking at ReLUs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_dead_channels_are_found_and_nothing_is_read_back_before_the_result(
    where: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one.standin(monkeypatch) if where == "cuda" else backends.use("reference"):
        made = one.trainer(where == "cuda", precision=dtype)
        layers = made.model.named_parameters()
        for name, channel in (("cnn.conv2_1", 3), ("cnn.conv2_1", 7), ("cnn.fc6", 2)):
            layers[f"{name}.bias"].data[channel] = -1e6
        watch = Watch(made.model)
        plain = made.loss([one.batch(0), one.batch(1)])
        before = cupy_standin.ndarray.reads
        assert made.loss([one.batch(0), one.batch(1)], watch) == plain
        reads = cupy_standin.ndarray.reads - before
        found = watch.result(made._ranks)
    assert found is not None and found.images == 8
    assert {"cnn.conv2_1", "cnn.fc6"} <= found.shares.keys() and found.dead["cnn.conv2_1"][0] >= 2
    assert list(found.dead) == ["cnn.conv1_1", "cnn.conv2_1", "cnn.conv3_1", "cnn.conv4_1", "cnn.fc6", "cnn.fc7"]
    assert found.spread is not None and found.spread > 0.01
    assert reads == (2 if where == "cuda" else 0)  # the losses


def test_what_is_dead_is_dead_for_all_ranks() -> None:
    def part(ranks: Lockstep) -> Relus | None:
        with backends.use("reference"):
            made = one.trainer(False, ranks=ranks)
            watch = Watch(made.model)
            made.loss([one.batch(ranks.rank)], watch)
            return watch.result(ranks)

    with backends.use("reference"):
        made = one.trainer(False)
        watch = Watch(made.model)
        made.loss([one.batch(0), one.batch(1)], watch)
        whole = watch.result(made._ranks)
    first, second = together(2, part)
    assert first == second and whole is not None
    assert first.images == whole.images and first.dead == whole.dead
    assert first.spread == pytest.approx(whole.spread)


def test_by_how_much_images_differ_is_of_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Largest less smallest output of each channel of fc7 over all images, as a vector, over that of the largest."""
    outputs = []
    plain = VGG.__call__

    def forward(self: VGG, *arguments: Any) -> Any:
        made = plain(self, *arguments)
        outputs.append(made.data.copy())
        return made

    monkeypatch.setattr(VGG, "__call__", forward)
    with backends.use("reference"):
        made = one.trainer(False)
        watch = Watch(made.model)
        made.loss([one.batch(0), one.batch(1)], watch)
        found = watch.result(made._ranks)
    fc7 = np.concatenate(outputs).astype(np.float64)
    high, low = fc7.max(0), fc7.min(0)
    assert found is not None and found.spread == pytest.approx(np.linalg.norm(high - low) / np.linalg.norm(high))


def test_only_the_first_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycap.training.relus.IMAGES", 6)
    with backends.use("reference"):
        made = one.trainer(False)
        watch = Watch(made.model)
        made.loss([one.batch(i) for i in range(4)], watch)
        found = watch.result(made._ranks)
    assert found is not None and found.images == 8


# Runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_warns_and_goes_on_and_says_the_same_when_continued(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alarms, "WARM_UP", 2)
    monkeypatch.setattr(alarms, "EXPLODES", 1.0)
    monkeypatch.setattr(alarms, "QUIET", 2)
    monkeypatch.setattr(alarms, "FEW", 5)
    monkeypatch.setattr(alarms, "DEAD", -0.5)
    monkeypatch.setattr(alarms, "DEAD_AGAIN", 0.0)
    pycap.train(tiny(data, tmp_path / "whole"))
    said = capsys.readouterr().out
    logged = rows(tmp_path / "whole", "alarm")
    kinds = Counter(row["alarm"] for row in logged)
    assert kinds["exploding gradient"] >= 1 and kinds["dead ReLUs"] == 8  # each convolution, twice
    assert all(f"warning: {row['text']}" in said for row in logged)
    assert set(logged[0]) == {"kind", "step", "alarm", "group", "norm", "usual", "text"}
    assert all("dead_relus" in row for row in rows(tmp_path / "whole", "val"))
    pycap.train(tiny(data, tmp_path / "parts", max_steps=4, val_every=9))
    pycap.train(config.resumed(tmp_path / "parts", max_steps=0, val_every=1))
    steps = [row for row in logged if "group" in row]
    assert [row for row in rows(tmp_path / "parts", "alarm") if "group" in row] == steps


def test_a_run_whose_captions_are_all_alike_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "FIRST_STEPS", 1)
    monkeypatch.setattr(alarms, "FEW", 5)
    plain = Trainer.launch

    def numbed(self: Trainer, *batch: Any) -> Any:
        self.model.image_embedding.weight.data[...] = 0
        return plain(self, *batch)

    monkeypatch.setattr(Trainer, "launch", numbed)
    pycap.train(tiny(data, tmp_path / "run", epochs=1, freeze_cnn=True, max_steps=2))
    (row,) = rows(tmp_path / "run", "alarm")
    assert row["alarm"] == "collapsed captions" and row["different"] == 1 and row["most_common"] == 1.0


def test_bits_of_what_a_relu_gives_are_ordered_as_the_numbers() -> None:
    for dtype in (np.dtype(np.float32), bfloat16()):
        values = np.array([0.0, -0.0, 1e-30, 0.5, 3.0, 1e30]).astype(dtype)
        bits = values.view(f"int{8 * dtype.itemsize}")
        assert np.all(np.diff(bits[[0, 2, 3, 4, 5]].astype(np.int64)) > 0) and bits[1] < 0
