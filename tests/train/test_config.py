"""Options: which layer wins, what is refused and how it says so, and that files give back what was written."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from pycap import config as configuration
from pycap.config import ConfigError, TrainConfig, files, parse_args

ROOT = Path(__file__).resolve().parents[2]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_every_recipe_is_valid_and_stages_are_those_named_as_their_stage() -> None:
    names = sorted(p.stem for p in configuration.recipes_dir().glob("*.yaml"))
    for name in names:
        parse_args(["--recipe", name])
    assert {"coco", "flickr8k", "flickr30k"} <= set(configuration.stages())
    assert {"demo", "flickr8k_small"} <= set(names) - set(configuration.stages())


def test_small_flickr8k_recipe_is_the_peers_configuration() -> None:
    c = parse_args(["--recipe", "flickr8k_small"])
    assert (c.stage, c.cnn, c.fc_size, c.image_size, c.resize_to, c.flip) == (
        "flickr8k",
        "vgg_small6",
        1024,
        64,
        72,
        True,
    )
    assert (c.optimizer, c.learning_rate, c.cnn_learning_rate) == ("adam", 1e-3, None)
    assert (c.beta1, c.beta2, c.grad_clip, c.weight_decay, c.lr_schedule) == (0.9, 0.999, 0.0, 0.0, "constant")
    assert (c.batch_size, c.seq_per_img, c.word_count_threshold, c.max_length, c.epochs) == (50, 5, 5, 20, 12)
    assert (c.rnn_size, c.input_encoding_size, c.drop_prob_lm, c.drop_prob_cnn) == (256, 256, 0.5, 0.5)


def test_layers_whatever_their_order_on_the_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 7\nlearning-rate: 2e-3\nseed: 1\n")
    parts = [["--config", str(file)], ["--batch-size", "9"], ["--stage=flickr8k"], ["--recipe", "flickr8k_small"]]
    for order in itertools.permutations(parts):
        c = parse_args([token for part in order for token in part])
        assert c.batch_size == 9  # command line over file
        assert (c.learning_rate, c.seed) == (2e-3, 1)  # file over recipe and default
        assert c.rnn_size == 256  # recipe over default
        assert c.momentum == TrainConfig().momentum
        assert c.given == {"batch_size", "learning_rate", "seed", "stage"}


def test_random_layers(tmp_path: Path) -> None:
    rng = random.Random(5)
    names = ["batch_size", "rnn_size", "input_encoding_size", "max_length", "epochs", "log_every", "seq_per_img"]
    for trial in range(12):
        layers = [{n: rng.randint(1, 500) for n in names if rng.random() < 0.5} for _ in range(3)]
        own, file = tmp_path / f"recipe{trial}.yaml", tmp_path / f"file{trial}.yaml"
        own.write_text(yaml.safe_dump({"stage": "coco", **layers[0]}))
        file.write_text(yaml.safe_dump({"seed": 3, **layers[1]}))
        line = [["--recipe", str(own)], ["--config", str(file)]]
        line += [[f"--{n.replace('_', rng.choice('-_'))}", str(v)] for n, v in layers[2].items()]
        rng.shuffle(line)
        c = parse_args([token for part in line for token in part])
        for n in names:
            expected = [getattr(TrainConfig(), n)] + [layer[n] for layer in layers if n in layer]
            assert getattr(c, n) == expected[-1], (n, layers)


def test_flags_dashes_and_none() -> None:
    assert parse_args(["--freeze-cnn"]).freeze_cnn is True
    assert parse_args(["--freeze_cnn", "--batch_size=3"]).batch_size == 3
    assert parse_args(["--freeze-cnn", "false"]).freeze_cnn is False
    assert parse_args(["--no-flip"]).flip is False
    assert parse_args(["--stage", "coco"]).cnn_learning_rate == configuration.recipe("coco")["cnn_learning_rate"]
    for none in (["--cnn-learning-rate", "none"], ["--cnn-learning-rate=None"], ["--cnn_learning_rate", "null"]):
        assert parse_args(none).cnn_learning_rate is None
    assert parse_args(["--store", "none"]).store == "none"
    c = parse_args(["--data", "some where/x", "--learning-rate", "1e-3"])
    assert (c.data, c.learning_rate) == (Path("some where/x"), 1e-3)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--bacth-size", "3"], "unknown option --bacth-size (did you mean batch-size?)"),
        (["--bacth_size=3"], "unknown option --bacth_size (did you mean batch-size?)"),
        (["--no-data"], "unknown option --no-data"),
        (["--stage", "cocoo"], "stage: no stage 'cocoo' (did you mean coco?); stages: coco, coco_all, "),
        (["--recipe", "flickr8k_smal"], "recipe: no 'flickr8k_smal' (did you mean flickr8k_small?)"),
        (["--cnn", "vgg_micr"], "cnn: no 'vgg_micr' (did you mean vgg_micro?); one of vgg16"),
        (["--optimizer", "adagrad"], "optimizer: no 'adagrad'"),
        (["--cnn-optimizer", "adamm"], "cnn_optimizer: no 'adamm' (did you mean adam?)"),
        (["--batch-size", "x"], "batch_size: 'x' is not of type int"),
        (["--cnn-learning-rate", "2x"], "cnn_learning_rate: '2x' is not of type float or none"),
        (["--batch-size", "0"], "batch_size: 0 is below 1"),
        (["--batch-size"], "--batch-size: expected one argument"),
        (["stray"], "stray"),
        (
            ["--image-size", "100"],
            "image_size: 100 is not divisible by 32 (the CNN halves it five times); use 96 or 128",
        ),
        (["--resize", "200"], "resize: 200 is smaller than image_size 224"),
        (["--drop-prob-lm", "1"], "drop_prob_lm: 1.0 is not in [0, 1)"),
        (["--beta2", "1.0"], "beta2: 1.0 is not in [0, 1)"),
        (["--learning-rate", "-1"], "learning_rate: -1.0 is below 0"),
        (["--learning-rate", "nan"], "learning_rate: 'nan' is not of type float"),
        (["--lr-decay-rate", "0"], "lr_decay_rate: 0.0 is not in (0, 1]"),
        (["--cnn-width", "0"], "cnn_width: 0.0 is not above 0"),
        (["--micro-batch", "17"], "micro_batch: 17 exceeds batch_size 16"),
        (["--finetune-cnn-after", "-1"], "finetune_cnn_after: -1 is below 0"),
        (["--freeze-cnn", "--finetune-cnn-after", "2"], "finetune_cnn_after: 2 contradicts freeze_cnn"),
        (["--config", "/nowhere/x.yaml"], "/nowhere/x.yaml: no such file"),
        (["--resume", "/nowhere/run"], "resume: /nowhere/run holds no config.yaml"),
    ],
)
def test_refusals(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(argv, capsys)
    assert says in err
    assert err.startswith("train.py: error: ") and err.count("\n") == 1


@pytest.mark.parametrize("option", ["stage", "cnn", "epochs"])
def test_a_long_value_is_not_repeated_whole(tmp_path: Path, option: str) -> None:
    given = {"stage": "coco"} | {option: "x" * 20_000}
    (tmp_path / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
    with pytest.raises(ConfigError, match="xxx") as caught:
        files.load(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bacth_size: 3\n", "unknown option bacth_size (did you mean batch_size?)"),
        ("batch_size: many\n", "batch_size: 'many' is not of type int"),
        ("batch_size: true\n", "batch_size: True is not of type int"),
        ("learning_rate: .nan\n", "learning_rate: nan is not a finite number"),
        ('resume: "\\ud800"\n', "resume: '\\ud800' holds half of a character"),
        ("learning_rate: fast\n", "learning_rate: 'fast' is not of type float"),
        ("cnn: vg16\n", "cnn: no 'vg16' (did you mean vgg16?)"),
        ("- 1\n- 2\n", "holds list, not lines of `option: value`"),
        ("", "holds NoneType"),
        ("a: [1\n", "not readable as YAML"),
    ],
)
def test_refusals_in_a_file(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    err = refused(["--config", str(file)], capsys)
    assert says in err and str(file) in err
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        configuration.load(file)


def test_validate_refuses_wrong_types_from_python() -> None:
    assert TrainConfig(stage="coco", epochs=1, learning_rate=1).validate().epochs == 1
    assert TrainConfig(data="a/b").validate().data == Path("a/b")  # type: ignore[arg-type]
    for bad in (
        {"batch_size": "5"},
        {"batch_size": 5.0},
        {"flip": 1},
        {"stage": None},
        {"learning_rate": float("inf")},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            TrainConfig(**bad).validate()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pretrain_words: 2 contradicts freeze_cnn"):
        TrainConfig(freeze_cnn=True, pretrain_words=2).validate()
    with pytest.raises(ConfigError, match="vgg_weights: a contradicts blind"):
        TrainConfig(blind=True, vgg_weights=Path("a")).validate()
    with pytest.raises(ConfigError, match="pretrain_words: 2 contradicts blind, which has no use for a CNN"):
        TrainConfig(blind=True, pretrain_words=2).validate()
    with pytest.raises(ConfigError, match="init_from: a contradicts resume b"):
        TrainConfig(init_from=Path("a"), resume=Path("b")).validate()


def test_with_recipe_keeps_what_the_user_gave(tmp_path: Path) -> None:
    c = parse_args(["--stage", "coco", "--batch-size", "3", "--cnn-learning-rate", "1e-5"])
    demo = configuration.with_recipe(c, "demo")
    assert (demo.batch_size, demo.cnn_learning_rate) == (3, 1e-5)
    assert (demo.cnn, demo.image_size, demo.stage) == ("vgg_micro", 64, "coco")
    recipe = configuration.recipe("demo")
    assert (
        configuration.with_recipe(parse_args(["--stage", "coco"]), "demo").cnn_learning_rate
        == recipe["cnn_learning_rate"]
    )
    made = configuration.with_recipe(TrainConfig(stage="coco", epochs=1), "demo")
    assert (made.epochs, made.cnn) == (1, "vgg_micro")
    file = tmp_path / "x.yaml"
    file.write_text("image_size: 96\nresize: 96\n")
    assert configuration.with_recipe(parse_args(["--config", str(file)]), "demo").image_size == 96


def test_resume_takes_the_runs_options_and_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    old = TrainConfig(stage="flickr8k", batch_size=4, learning_rate=0.1 + 0.2, init_from=Path("w"), cnn="vgg11")
    configuration.save(old, run / "config.yaml")
    for checkpoint in ("last", "best"):
        configuration.save(old, run / checkpoint / "config.yaml")
        (run / checkpoint / "state.json").write_text("{}")
    for resume in (run, run / "last", run / "best"):
        c = parse_args(["--max-steps", "9", "--resume", str(resume)])
        assert (c.stage, c.batch_size, c.learning_rate, c.cnn) == ("flickr8k", 4, 0.1 + 0.2, "vgg11")
        assert (c.max_steps, c.resume, c.run_dir, c.init_from) == (9, resume, run, None)
    assert configuration.resumed(run, epochs=9) == parse_args(["--resume", str(run), "--epochs", "9"])
    assert configuration.with_recipe(configuration.resumed(run), "demo") == configuration.resumed(run)
    (run / "config.yaml").unlink()
    assert parse_args(["--resume", str(run)]).run_dir == run


def test_round_trip_is_exact(tmp_path: Path) -> None:
    rng = random.Random(1)
    for trial in range(20):
        values = {}
        for f in fields(TrainConfig):
            kind = type(f.default)
            if kind is float:
                values[f.name] = rng.choice([rng.random(), 1e-5, 5e-324, 1e300, 0.1 + 0.2, 3.0])
            elif kind is int:
                values[f.name] = rng.randint(1, 2**40)
            elif kind is bool:
                values[f.name] = rng.random() < 0.5
        values.update(data=Path("a b/\u00fc: #1"), store="null", cnn_learning_rate=rng.choice([None, rng.random()]))
        c = TrainConfig(**values)
        file = tmp_path / f"{trial}.yaml"
        file.write_text(configuration.to_yaml(c), "utf-8")
        options = configuration.read_options(file)
        assert TrainConfig(**options) == c
        assert {k: type(v) for k, v in options.items()} == {f.name: type(getattr(c, f.name)) for f in fields(c)}


def test_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "config.yaml"
    c = TrainConfig(stage="coco", learning_rate=1e-5, out_dir=Path("runs/x"))
    configuration.save(c, file)
    assert configuration.load(file) == c

    def fail(_: int) -> None:
        assert configuration.load(file) == c
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            configuration.save(replace(c, seed=7), file)
    assert configuration.load(file) == c and [p.name for p in file.parent.iterdir()] == ["config.yaml"]
    old = file.stat().st_ino
    configuration.save(replace(c, seed=7), file)
    assert configuration.load(file).seed == 7 and file.stat().st_ino != old  # renamed over, not written into
    configuration.save(c, file)
    file.write_text(file.read_text() + "preprocess:\n  size: 3\n")
    assert configuration.load(file) == c
    assert configuration.load_extra(file, "preprocess") == {"size": 3}


def test_print_config_prints_what_a_run_would_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(["--print-config", "--stage", "flickr8k", "--seed", "77"])
    assert caught.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert configuration.load(file) == parse_args(["--stage", "flickr8k", "--seed", "77"])


def test_help_shows_every_option_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(TrainConfig):
        assert f"--{f.name.replace('_', '-')} " in text
        assert f.metadata["help"] in text
        assert f.metadata["help"][0].islower() or f.metadata["help"].startswith(("HDF5", "LSTM", "CPU", "L2"))


def test_derived_sizes() -> None:
    assert TrainConfig().resize_to == 256
    assert TrainConfig(image_size=64).resize_to == 73
    assert TrainConfig(image_size=64, resize=72).resize_to == 72
    assert TrainConfig(stage="flickr8k").run_dir == Path("runs/flickr8k")


def test_recipes_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pycap"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(package / "config" / "files.py"))
    with pytest.raises(ConfigError, match="reinstall"):
        configuration.recipes_dir()
    (package / "recipes" / "coco.yaml").write_text("stage: coco\nseed: 9\n")
    assert configuration.stages() == ["coco"]
    assert parse_args([]).seed == 9


def test_import_is_cheap() -> None:
    code = "import sys, pycap.config; print([m for m in ('yaml', 'jsonargparse', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() in ("[]", "['numpy']")  # the package itself may import NumPy
