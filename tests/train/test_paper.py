"""`pycap paper` on tiny demo domains: the chain, stopped and continued, its tables, its page, and the selection."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycap import checkpoint, cli, config, metrics
from pycap.captioner import Captioner
from pycap.config import TrainConfig
from pycap.data import DataError
from pycap.paper import plan, report, scores, selection
from pycap.paper.chain import Chain, Request
from pycap.paper.plan import ALL, BASELINE, CLAIMS, QUARTER, SELECTED, STAGES, SUBMISSIONS, TABLES, TUNED
from pycap.paper.scores import Score
from pycap.training import run as training
from pycap.training.progress import Display

SIZES = {"epochs": 1, "image_size": 32, "resize": 36, "fc_size": 32, "rnn_size": 16, "input_encoding_size": 16}
SIZES |= {"warmup_steps": 0, "learning_rate": 0.02}  # the models come to differ
MACHINE = {"threads": 1, "workers": 0}
TINY = [text for name, value in (SIZES | MACHINE).items() for text in (f"--{name.replace('_', '-')}", str(value))]
STOPPED = "coco_joint"
NAMES = [stage.name for stage in STAGES]


@dataclasses.dataclass
class Done:
    """What three calls of the command left: stopped in a stage, continued without a selection, finished with one."""

    folder: Path
    out: Path
    trained: list[list[TrainConfig]]
    status: list[object]
    printed: list[str]
    unselected: dict[str, Any]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("paper")
    found = Done(folder, folder / "runs" / "paper", [], [], [], {})
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("PATH", str(folder))  # no java
    patch.setenv("COLUMNS", "300")
    real, step = training.run, Display.step

    def noted(asked: TrainConfig) -> training.RunResult:
        found.trained[-1].append(asked)
        return real(asked)

    def stop_once(self: Display, *args: Any, **options: Any) -> None:
        step(self, *args, **options)
        if found.trained[-1][-1].run_dir.name == STOPPED:
            patch.setattr(Display, "step", step)
            signal.raise_signal(signal.SIGINT)

    patch.setattr(training, "run", noted)
    patch.setattr(Display, "step", stop_once)
    try:
        for arguments in ([], [], ["--auto-select"]):
            found.trained.append([])
            with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()) as printed:
                cli.main(["paper", *arguments, "--demo-train", "160", *TINY])
            found.status.append(stop.value.code)
            found.printed.append(printed.getvalue())
            if len(found.trained) == 2:
                found.unselected = json.loads((found.out / "paper.json").read_text())
    finally:
        patch.undo()
    return found


# The chain


def test_a_stopped_chain_goes_on_in_the_middle_of_the_stage_and_repeats_none(done: Done) -> None:
    assert done.status == [130, 0, 0]
    runs = [[asked.run_dir.name for asked in asked_for] for asked_for in done.trained]
    assert runs == [NAMES[: NAMES.index(STOPPED) + 1], NAMES[NAMES.index(STOPPED) : -1], [SELECTED]]
    first, again = done.trained[0][-1], done.trained[1][0]
    assert first.resume is None and again.resume == again.run_dir == Path("runs/paper") / STOPPED
    assert "the same command goes on from here" in done.printed[0]
    assert f"{STOPPED}: CNN and LSTM jointly, on COCO's train split, continued." in done.printed[1]
    assert all(f"{name}: " in done.printed[2] and ": done" in done.printed[2] for name in NAMES)


def test_the_stage_that_was_stopped_ends_as_one_that_was_not(done: Done, tmp_path: Path) -> None:
    asked = done.trained[0][-1]
    places = {name: done.folder / getattr(asked, name) for name in ("data", "vgg_weights")}
    training.run(dataclasses.replace(asked, out_dir=tmp_path / "whole", **places))
    whole, stopped = (checkpoint.load(run / "last").model for run in (tmp_path / "whole", done.out / STOPPED))
    assert whole.keys() == stopped.keys()
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)


def test_each_stage_starts_from_what_the_paper_says_and_learns_what_it_says(done: Done) -> None:
    configs = {asked.run_dir.name: asked for asked_for in done.trained for asked in asked_for}
    assert list(configs) == NAMES
    for name in ("coco_frozen", "flickr8k_frozen", "flickr30k_frozen", "coco_joint", "coco_all_joint"):
        assert configs[name].vgg_weights == Path("runs/paper/pretrain") and configs[name].init_from is None
        assert configs[name].freeze_cnn == name.endswith("_frozen")
    for name, stage in (("ft_val", "imageclef"), ("ft_flickr", "flickr"), ("ft_selected", "selected")):
        assert configs[name].init_from == Path("runs/paper/coco_all_joint/last") and not configs[name].freeze_cnn
        assert configs[name].stage == stage and configs[name].extend_vocab
    before = checkpoint.load(done.out / "pretrain" / "best").model["cnn.conv1_1.weight"]
    frozen, joint = (checkpoint.load(done.out / name / "last").model["cnn.conv1_1.weight"] for name in NAMES[1:5:3])
    assert np.array_equal(before, frozen) and not np.array_equal(before, joint)
    assert configs["ft_selected"].picks == Path("runs/paper/picks.jsonl") and configs["ft_flickr"].picks is None


def test_a_person_is_told_what_to_pick_from_and_the_rest_is_there(done: Done) -> None:
    captioned = f"runs/paper/captions/{TUNED}.target.jsonl"
    todo = (
        f"pick good pairs (the paper: 1000) with pycap select {captioned} --images data/demo_domains for --picks FILE"
    )
    assert todo in " ".join(done.printed[1].split())
    rows = [row for table in done.unselected["tables"] for row in table["rows"]]
    assert [row["stage"] for row in rows if row["here"] is None] == [SELECTED]
    assert todo in done.unselected["selection"]["todo"] and done.unselected["selection"]["pairs"] == 0
    assert [finding["verdict"] for finding in done.unselected["directions"]].count(report.OPEN) == 1
    captions = (done.out / "captions" / f"{TUNED}.target.jsonl").read_text().splitlines()
    target = list((done.folder / "data" / "demo_domains" / "target").rglob("*.jpg"))
    assert len(captions) == len(target) > 5


def test_the_selection_is_told_and_its_pairs_are_those_of_the_rule(done: Done) -> None:
    rows = scores.read(done.out / "captions" / f"{TUNED}.target.jsonl")
    picks = [json.loads(line) for line in (done.out / "picks.jsonl").read_text().splitlines()]
    expected = selection.most_probable(rows, len(picks))
    assert [pick["caption"] for pick in picks] == [row["caption"] for row in expected] and picks
    assert all(Path(pick["file_name"]).is_file() for pick in picks)
    assert f"automatic: the {len(picks)} most probable distinct captions" in done.printed[2]
    assert json.loads((done.out / "paper.json").read_text())["selection"]["pairs"] == len(picks)


def test_other_picks_train_the_last_stage_anew_and_no_other(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder)
    (pick, *_) = (json.loads(line) for line in (done.out / "picks.jsonl").read_text().splitlines())
    (tmp_path / "mine.jsonl").write_text(json.dumps({**pick, "caption": "a red disc"}) + "\n")
    chain = Chain(request(done, picks=tmp_path / "mine.jsonl"))
    stages = {stage.name: stage for stage in chain.stages}
    old = {name: chain.state["stages"][name]["identity"] for name in NAMES}
    assert {name for name in NAMES if chain._identity(stages[name]) != old[name]} == {SELECTED}
    longer = Chain(request(done, options={"epochs": 2}))
    assert all(longer._identity(stage) != old[stage.name] for stage in longer.stages)
    machine = Chain(request(done, options={"workers": 1, "threads": 2}))
    assert all(machine._identity(stage) == old[stage.name] for stage in machine.stages)


def test_a_stage_that_was_killed_while_its_checkpoint_was_replaced_goes_on(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder)
    chain = Chain(dataclasses.replace(request(done), out=tmp_path))
    (stage,) = (stage for stage in chain.stages if stage.name == STOPPED)
    run = shutil.copytree(done.out / STOPPED, tmp_path / STOPPED)
    shutil.copytree(run / "last", run / ".last.pycap-new")
    (run / "last").rename(run / ".last.pycap-old")
    chain.state["stages"][STOPPED] = {"identity": chain._identity(stage), "done": False, "seconds": 0.0}
    asked: list[TrainConfig] = []
    monkeypatch.setattr(training, "run", asked.append)
    chain._train(stage, STOPPED)
    assert [(options.run_dir, options.resume) for options in asked] == [(run, run)]
    assert not (tmp_path / f"{STOPPED}.1").exists()  # it was not moved aside
    assert checkpoint.load(asked[0].run_dir, prefer="last").optimizer is not None


def test_the_time_that_is_left_is_that_of_the_stages_that_are_left(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.folder)
    chain = Chain(request(done))
    stages = {stage.name: stage for stage in chain.stages}
    for name, entry in chain.state["stages"].items():  # a minute for an image trained on
        entry |= {"seconds": 60.0 * chain._cost(stages[name]), "done": name != "coco_joint"}
    own, last = (chain._cost(stages[name]) for name in ("coco_joint", SELECTED))
    assert chain._remaining(stages["coco_joint"]) == (
        f"Expected: {own:.1f} min for this stage, {own + last:.1f} min for all that are left."
    )
    for entry in chain.state["stages"].values():
        entry["done"] = False
    assert "told when this stage is done" in chain._remaining(stages["pretrain"])


def request(done: Done, **changes: Any) -> Request:
    """As the fixture's last call."""
    options = SIZES | MACHINE | changes.pop("options", {})
    root = Path("data/demo_domains")
    return Request(root, Path("runs/paper"), demo=True, auto="picks" not in changes, options=options, **changes)


# What is shown


def test_tables_hold_the_scores_of_the_captions_beside_the_papers(done: Done) -> None:
    document = json.loads((done.out / "paper.json").read_text())
    human: dict[str, list[str]] = {}
    for line in (done.folder / "data/demo_domains/imageclef/sentences.txt").read_text().splitlines():
        image, sentence = line.split("\t")
        human.setdefault(image, []).append(sentence)
    rows = [row for table in document["tables"] for row in table["rows"]]
    assert [row["paper"] for row in rows] == [row.paper for table in TABLES for row in table.rows]
    for row in rows:
        said = scores.read(done.out / "captions" / f"{row['stage']}.validation.jsonl")
        captions = {Path(found["file_name"]).stem: found["caption"] for found in said}
        if row["test"] == QUARTER:
            captions = {image: text for image, text in captions.items() if image in quarter(done)}
        expected = metrics.score(captions, human)  # type: ignore[arg-type]
        assert row["here"]["scores"] == expected and row["here"]["images"] == len(captions)
        assert row["here"]["metric"] == document["metric"] == "CIDEr" and row["here"]["value"] == expected["CIDEr"]
        shown = [f"{row['paper']:.4f}"] if row["paper"] else []
        assert any(
            all(text in line for text in (*shown, f"{expected['CIDEr']:.4f}", f"{expected['BLEU-4']:.4f}"))
            for line in done.printed[2].splitlines()
        )


def quarter(done: Done) -> set[str]:
    captioned = scores.read(done.out / "captions" / "ft_val.validation.jsonl")
    return {Path(row["file_name"]).stem for row in captioned}


def test_without_meteor_the_other_score_is_never_called_so(done: Done) -> None:
    assert "METEOR cannot be computed here (no java on PATH" in done.printed[2]
    assert "Directions and medians are by CIDEr" in done.printed[2]
    assert "Directions and medians are by CIDEr" in done.printed[2] and "Directions, by CIDEr:" in done.printed[2]
    document = json.loads((done.out / "paper.json").read_text())
    assert all("METEOR" not in row["here"]["scores"] for table in document["tables"] for row in table["rows"])


def test_a_reader_is_told_of_the_chance_that_the_errors_leave_out(done: Done) -> None:
    assert "± is of the images alone" in done.printed[2]
    assert "± is of the images alone" in (done.out / "paper.html").read_text("utf-8")


def test_run_files_hold_a_line_for_each_target_image(done: Done) -> None:
    files = {s.file: (done.out / s.file).read_text().splitlines() for s in SUBMISSIONS}
    target = sorted(path.stem for path in (done.folder / "data/demo_domains/target").rglob("*.jpg"))
    for lines in files.values():
        assert sorted(line.split("\t")[0] for line in lines) == target
    assert files["id_sentence2.txt"] == files["id_sentence3.txt"] != files["id_sentence.txt"]


def test_the_page_needs_nothing_else_and_shows_both_models_captions(done: Done) -> None:
    page = (done.out / "paper.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    ours, baseline = (
        {row["file_name"]: row["caption"] for row in scores.read(done.out / "captions" / f"{name}.validation.jsonl")}
        for name in (SELECTED, BASELINE)
    )
    differing = [name for name in ours if ours[name] and baseline[name] and ours[name] != baseline[name]]
    figures = re.findall(r"<figure .*?</figure>", page, re.S)
    assert len(figures) == min(len(differing), plan.FIGURE_IMAGES) > 0
    for name, figure in zip(differing, figures, strict=False):
        assert name in figure and "data:image/jpeg;base64," in figure
        assert re.findall('<p class="caption">(.*?)</p>', figure) == [ours[name], baseline[name]]
    assert all(f"{row.paper:.4f}" in page for table in TABLES for row in table.rows if row.paper)


def test_interrupted_captioning_goes_on_where_it_was(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "_BATCH", 4)
    plain = Captioner.batches

    def interrupted(self: Captioner, *args: Any, **how: Any) -> Iterator[Any]:
        yield next(plain(self, *args, **how))
        raise KeyboardInterrupt

    names = sorted(path.name for path in (done.folder / "data/demo_domains/imageclef").rglob("*.jpg"))
    paths = [next((done.folder / "data/demo_domains/imageclef").rglob(name)) for name in names]
    scores.caption(done.out / "coco_joint" / "best", paths, names, tmp_path / "whole.jsonl", 2, "all")
    whole = (tmp_path / "whole.jsonl").read_text()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Captioner, "batches", interrupted)
        scores.caption(done.out / "coco_joint" / "best", paths, names, tmp_path / "cut.jsonl", 2, "a part")
    partial = tmp_path / "cut.jsonl.partial"
    assert partial.read_text().count("\n") == 1 + 4
    partial.write_bytes(partial.read_bytes()[:-9])
    scores.caption(done.out / "coco_joint" / "best", paths, names, tmp_path / "cut.jsonl", 2, "the rest")
    assert (tmp_path / "cut.jsonl").read_text() == whole and not (tmp_path / "cut.jsonl.partial").exists()


# The plan, the rules


def test_the_plan_is_whole() -> None:
    for number, stage in enumerate(STAGES):
        assert stage.start in ("", plan.VGG, *NAMES[:number])
        for recipe in (stage.recipe, stage.demo):
            assert config.recipe(recipe)
    scored = {(row.stage, row.test) for table in TABLES for row in table.rows}
    assert {stage.name for stage in STAGES if stage.test} == {stage for stage, _ in scored}
    assert all({(claim.more, claim.test), (claim.less, claim.test)} <= scored for claim in CLAIMS)
    assert all((submission.stage, ALL) in scored for submission in SUBMISSIONS)


def test_on_real_data_the_stages_have_their_own_recipes(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.folder)
    vgg = done.out / "coco_frozen" / "best" / "model.safetensors"
    chain = Chain(Request(Path("data/demo_domains"), Path("runs/real"), vgg=vgg, options={"batch_size": 4}))
    assert [stage.name for stage in chain.stages] == NAMES[1:]
    for stage in chain.stages:
        made, own = chain._config(stage), config.recipe(stage.recipe)
        assert (made.cnn, made.image_size, made.batch_size, made.epochs) == ("vgg16", 224, 4, own["epochs"])
        assert made.freeze_cnn == stage.name.endswith("_frozen") and made.finetune_cnn_after == 0
        assert made.cnn_learning_rate == (own["cnn_learning_rate"] if made.freeze_cnn else 1e-5)
    assert chain.wanted == 1000


def test_on_a_folder_of_data_the_chain_begins_with_the_vgg_that_is_given(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no java
    for name in ("coco", "flickr8k", "flickr30k", "imageclef"):  # no target/
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(done.folder / "data" / "demo_domains" / name)
    given = ["--data", "data", "--vgg-weights", str(done.out / "pretrain"), "--cnn", "vgg_micro", "--max-steps", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["paper", *given, *TINY])
    assert stop.value.code == 0
    document = json.loads((tmp_path / "runs/paper/paper.json").read_text())
    rows = [row for table in document["tables"] for row in table["rows"]]
    assert [row["stage"] for row in rows if row["here"] is None] == [SELECTED] and not document["demo"]
    assert "no images in data/target" in document["selection"]["todo"]
    lines = (tmp_path / "runs/paper/id_sentence.txt").read_text().splitlines()
    assert len(lines) == 8  # the validation images
    assert "the numbers cannot be compared" not in capsys.readouterr().out


def row(file_name: str, caption: str, logprob: float) -> dict[str, object]:
    return {"file_name": file_name, "caption": caption, "logprob": logprob, "beams": []}


def test_the_most_probable_distinct_captions_each_with_its_best_image() -> None:
    rows = [
        row("t/a.jpg", "a dog", -2.0),
        row("t/b.jpg", "a dog", -1.0),
        row("t/c.jpg", "a cat", -3.0),
        row("t/d.jpg", "two cats", -1.0),
        row("t/e.jpg", "", -0.1),
        row("t/f.jpg", "a bird", -0.5),
        row("t/g.jpg", "a fish", -9.0),
    ]
    picked = selection.most_probable(rows, 3, not_of={"f"})
    assert [(p["file_name"], p["caption"]) for p in picked] == [
        ("t/b.jpg", "a dog"),
        ("t/d.jpg", "two cats"),
        ("t/c.jpg", "a cat"),
    ]
    assert picked == selection.most_probable(rows[::-1], 3, not_of={"f"})
    assert len(selection.most_probable(rows, 99)) == 5


def test_picks_of_tested_images_are_refused() -> None:
    selection.require_untested(Path("p.jsonl"), ["x/a.jpg"], {"b"})
    with pytest.raises(DataError, match=r"p\.jsonl: 2 pairs .*first: x/b\.jpg"):
        selection.require_untested(Path("p.jsonl"), ["x/c.jpg", "x/b.jpg", "x/a.jpg"], {"b", "c"})


def scored(*each: float) -> Score:
    values = {str(i): value for i, value in enumerate(each)}
    return Score("METEOR", sum(each), 0.0, len(each), 1.0, {}, None, values)


def test_directions_are_told_by_the_numbers_alone() -> None:
    claim = CLAIMS[2]
    better, worse = scored(0.4, 0.6, 0.5), scored(0.1, 0.2, 0.3)
    holds = report.finding(claim, {(claim.more, ALL): better, (claim.less, ALL): worse})
    fails = report.finding(claim, {(claim.more, ALL): worse, (claim.less, ALL): better})
    equal = report.finding(claim, {(claim.more, ALL): worse, (claim.less, ALL): worse})
    assert (holds.verdict, fails.verdict, equal.verdict) == (report.HOLDS, report.FAILS, report.FAILS)
    assert report.finding(claim, {(claim.more, ALL): better}).verdict == report.OPEN
    # By hand: differences 0.3, 0.4, 0.2; their mean 0.3, their deviation 0.1, its error 0.1 / sqrt(3).
    assert holds.mean == pytest.approx(0.3) and holds.error == pytest.approx(0.1 / 3**0.5)
    assert "chance" not in holds.sentence() and "chance" in equal.sentence()
    ties = next(claim for claim in CLAIMS if claim.or_equal)
    same = {(ties.more, ties.test): worse, (ties.less, ties.test): worse}
    assert report.finding(ties, same).verdict == report.HOLDS


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "nowhere"], "nowhere: no coco/, flickr8k/, flickr30k/, imageclef/ in it"),
        (["--picks", "nowhere.jsonl"], "nowhere.jsonl: no such file; --picks wants picked pairs"),
        (["--freeze-cnn"], "freeze_cnn: the chain decides it itself"),
        (["--stage", "flickr"], "stage: the chain decides it itself"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=told):
        cli.main(["paper", *arguments])
    assert list(tmp_path.iterdir()) == []


def test_real_data_needs_a_pre_trained_vgg(tmp_path: Path) -> None:
    for name in ("coco", "flickr8k", "flickr30k", "imageclef"):
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="vgg_weights: the chain begins with a VGG"):
        cli.main(["paper", "--data", str(tmp_path)])


def test_picks_that_cannot_be_used_are_told_before_anything_is_trained(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder)
    tested = next((done.folder / "data/demo_domains/imageclef").rglob("*.jpg"))
    for name, line, told in (
        ("gone.jsonl", None, "gone.jsonl"),
        ("bad.jsonl", {"file_name": "nowhere.jpg", "caption": "a disc"}, "none of 0 images can be used"),
        ("leak.jsonl", {"file_name": str(tested), "caption": "a disc"}, "images of the validation set"),
    ):
        if line:
            (tmp_path / name).write_text(json.dumps(line) + "\n")
        asked = dataclasses.replace(request(done), picks=tmp_path / name, out=tmp_path / "runs")
        with pytest.raises(DataError, match=told):
            Chain(asked).run(lambda: None)
        assert not (tmp_path / "runs").exists()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_text("{")
    with pytest.raises(DataError, match=r"chain\.json is damaged"):
        Chain(Request(tmp_path, tmp_path))
