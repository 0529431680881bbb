"""Options of pycap caption, evaluate and score: sampling, ensembles, forms of files, scores of each image."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace

import pytest

import pycap
from pycap import metrics
from pycap.decode import Sampling
from tests.train.runs import lines
from tests.train.test_commands import run


@pytest.fixture
def photos(data: Path) -> list[Path]:
    return sorted((data / "val2017").iterdir())[:4]


def test_samples_by_command_are_those_from_python_best_first(
    trained: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "captions.jsonl"
    options = ["--samples", 5, "--temperature", 1.5, "--top-k", 9, "--top-p", 0.95, "--seed", 3, "--max-length", 4]
    code, text = run(capsys, "caption", trained, *photos, *options, "--output", output, "--batch-size", 3)
    assert code == 0, text
    drawn = Sampling(temperature=1.5, top_k=9, top_p=0.95, samples=5, seed=3)
    expected = list(pycap.load(trained).caption(photos, sampling=drawn, max_length=4))
    for row, caption in zip(lines(output), expected, strict=True):
        assert row.keys() == {"image_id", "file_name", "caption", "logprob", "samples"}
        assert [each["caption"] for each in row["samples"]] == [text for text, _ in caption.beams]
        logprobs = [each["logprob"] for each in row["samples"]]
        assert len(logprobs) == 5 and logprobs == sorted(logprobs, reverse=True) and row["logprob"] == logprobs[0]
        assert row["caption"] == caption.text and len(row["caption"].split()) <= 4
    assert len({each["caption"] for row in lines(output) for each in row["samples"]}) > 5


def test_what_is_drawn_for_a_file_depends_on_its_name_alone(trained: Path, photos: list[Path], tmp_path: Path) -> None:
    captioner = pycap.load(trained)
    hot = Sampling(temperature=2, samples=3)
    together = {c.file_name: [t for t, _ in c.beams] for c in captioner.caption(photos, sampling=hot, batch_size=2)}
    assert len(set(map(str, together.values()))) == 4
    moved = tmp_path / photos[2].name
    moved.write_bytes(photos[2].read_bytes())
    (alone,) = captioner.caption(moved, sampling=hot)
    assert [text for text, _ in alone.beams] == together[moved.name]
    other = tmp_path / "other.jpg"
    other.write_bytes(photos[2].read_bytes())
    (renamed,) = captioner.caption(other, sampling=hot)
    assert [text for text, _ in renamed.beams] != together[moved.name]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--temperature", 0.5, "--beam-size", 3], "--beam-size 3 is of a search, and --temperature of drawing"),
        (
            ["--samples", 2, "--top-k", 5, "--length-penalty", 1],
            "--length-penalty is of a search, and --top-k, --samples",
        ),
        (["--seed", 1], "--seed is of what is drawn, and nothing is: give --temperature"),
        (["--temperature", -1], "temperature -1 is not 0"),
        (["--top-p", 1.5], "top_p 1.5 is not above 0"),
        (["--samples", 0], "0 is not 1 or more"),
        (["--format", "imageclef", "--separator", "x"], "separator 'x'"),
        (["--output", "/no/such/folder/a.jsonl"], "there is no folder /no/such/folder"),
    ],
)
def test_options_that_contradict_each_other_are_named_before_anything_is_read(
    photos: list[Path], capsys: pytest.CaptureFixture[str], options: list[object], named: str
) -> None:
    code, text = run(capsys, "caption", "no-such-checkpoint", *photos, *options)
    assert code != 0 and named in text and "Traceback" not in text and "no such folder\n" not in text


def test_a_beam_of_one_may_be_drawn_from_and_is_greedy_at_0(
    trained: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for options in (["--beam-size", 1], ["--temperature", 0, "--beam-size", 1]):
        code, text = run(capsys, "caption", trained, *photos, *options)
        assert code == 0
        texts.append([json.loads(line)["caption"] for line in text.splitlines()])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("form", ["coco", "imageclef"])
def test_other_forms_hold_the_same_captions_and_score_takes_them(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    plain, other = tmp_path / "captions.jsonl", tmp_path / "run"
    annotations = data / "annotations" / "captions_val2017.json"
    folder = data / "val2017"
    assert run(capsys, "caption", trained, folder, "--output", plain)[0] == 0
    separator = ["--separator", " | "] if form == "imageclef" else []
    assert run(capsys, "caption", trained, folder, "--output", other, "--format", form, *separator)[0] == 0
    if form == "coco":
        assert json.loads(other.read_text()) == [
            {"image_id": int(row["image_id"]), "caption": row["caption"]} for row in lines(plain)
        ]
    else:
        assert other.read_text() == "".join(f"{row['image_id']} | {row['caption']}\n" for row in lines(plain))
    scores = [run(capsys, "score", plain, annotations), run(capsys, "score", other, annotations, *separator)]
    assert scores[0] == scores[1] and scores[0][0] == 0 and "CIDEr" in scores[0][1]


def test_images_of_one_name_do_not_share_a_row(
    trained: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / photos[0].name
    other.write_bytes(photos[0].read_bytes())
    code, text = run(capsys, "caption", trained, photos[0], other, "--format", "imageclef")
    assert code != 0 and f"{other} and {photos[0]} have the same image id" in text
    code, text = run(capsys, "caption", trained, photos[0], other)
    assert code == 0 and len(text.splitlines()) == 2


def test_an_ensemble_is_named_by_further_checkpoints(
    trained: Path, data: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, alone = run(capsys, "caption", trained, *photos)
    code_together, together = run(capsys, "caption", trained, *photos, "--ensemble", trained, trained)
    assert code == code_together == 0
    captions = [[json.loads(line)["caption"] for line in text.splitlines()] for text in (alone, together)]
    assert captions[0] == captions[1] and len(captions[0]) == 4
    code, text = run(capsys, "evaluate", trained, "--data", data, "--images", 2, "--ensemble", trained)
    assert code == 0 and "beam 3, 2 checkpoints together" in text
    for command in (["evaluate", trained, "--data", data], ["caption", trained, *photos]):
        code, text = run(capsys, *command, "--ensemble", trained, tmp_path / "gone")
        assert code != 0 and "gone" in text


def test_evaluate_draws_and_writes_any_form(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run.txt"
    options = ["--samples", 2, "--seed", 1, "--images", 3, "--output", output, "--format", "imageclef"]
    code, text = run(capsys, "evaluate", trained, "--data", data, *options)
    assert code == 0 and "3 images of val (0 could not be used), drawn with samples 2, seed 1" in text
    assert len(output.read_text().splitlines()) == 3
    captions = [line.split("\t")[1] for line in output.read_text().splitlines()]
    expected = pycap.load(trained).caption(
        sorted((data / "val2017").iterdir())[:3], sampling=Sampling(samples=2, seed=1)
    )
    assert captions == [caption.text for caption in expected]


RESULTS = [(1, "a dog runs"), (2, "two men"), (3, "a red car on grass")]
HUMAN = [(1, "A dog runs."), (1, "a cat"), (2, "two women sit"), (3, "a red car"), (4, "not asked for")]


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments of pycap score on a machine without METEOR and without WordNet."""
    import nltk.corpus

    def missing() -> None:
        raise LookupError

    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=missing))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    results, annotations = tmp_path / "results.json", tmp_path / "annotations.json"
    results.write_text(json.dumps([{"image_id": i, "caption": text} for i, text in RESULTS]))
    annotations.write_text(json.dumps({"annotations": [{"image_id": i, "caption": text} for i, text in HUMAN]}))
    return [results, annotations]


def test_score_prints_means_and_medians_and_what_is_missing(
    scored: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, "score", *scored, "--also", "meteor_nltk,bleu_keras")
    assert code == 0
    references: dict[int, list[str]] = {}
    for i, human in HUMAN:
        references.setdefault(i, []).append(human)
    expected = metrics.report(dict(RESULTS), references, also=["bleu_keras"])
    head, *lines = text.splitlines()
    assert head.split()[:3] == ["score", "mean", "median"]
    found = {line.split()[0]: line.split()[1:] for line in lines}
    for name, value in expected.scores.items():
        each = [row[name] for row in expected.images.values()]
        assert found[name] == [f"{x:.4f}" for x in (value, fmean(each), median(each))]
    assert len({*found["ROUGE-L"]}) == 2 and len({*found["BLEU-1"]}) == 3  # a mean of images, and a corpus's figure
    assert found.keys() == {*expected.scores, "METEOR", "meteor_nltk"}
    remedies = dict(line.split("  not scored, nor its median: ") for line in lines if "not scored" in line)
    assert "pip install" in remedies.pop("METEOR      ").replace("apt-get install", "pip install")
    assert "python -m nltk.downloader wordnet" in remedies.pop("meteor_nltk ") and not remedies


def test_scores_of_each_image_are_written(
    scored: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "images.jsonl"
    code, text = run(capsys, "score", *scored, "--per-image", output, "--also", "bleu_keras")
    assert code == 0 and f"scores of 3 images: {output}" in text
    found = lines(output)
    assert [(row["image_id"], row["caption"]) for row in found] == RESULTS
    assert found[0]["references"] == ["A dog runs.", "a cat"]
    assert found[0]["BLEU-3"] == pytest.approx(1) and found[1]["BLEU-1"] == pytest.approx(0.5 * 2.718281828**-0.5)
    keras = [f"bleu_keras-{n}" for n in range(1, 5)]
    assert list(found[0]) == ["image_id", "caption", "references", *metrics.NAMES, *keras]
    assert 1 > found[1]["bleu_keras-1"] > found[1]["BLEU-1"]


def test_a_score_that_there_is_not_is_named(scored: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "score", *scored, "--also", "bleu_keras,SPICE")
    assert code == 2 and "'SPICE' is none of bleu_keras, meteor_nltk" in text


def test_a_place_for_scores_that_there_is_not_is_told_at_once(
    scored: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, why in ((tmp_path / "no" / "i.jsonl", "there is no folder"), (tmp_path, "is a folder, not a file")):
        code, text = run(capsys, "score", *scored, "--per-image", output)
        assert code and f"pycap score: error: {output}: {why}" in text and "BLEU" not in text
