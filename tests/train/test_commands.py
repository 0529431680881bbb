"""pycap caption, evaluate and score, and the same from Python, on a tiny trained model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import pycap
from pycap.checkpoint import CheckpointError
from pycap.cli import main
from pycap.config import save
from tests.train.runs import tiny


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int | str | None, str]:
    """Exit status and all that was printed."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in argv])
    printed = capsys.readouterr()
    code = exit.value.code
    return code, printed.out + printed.err + (code if isinstance(code, str) else "")


def test_captions_of_a_folder_come_in_order_with_names_and_beams(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "captions.jsonl"
    code, text = run(capsys, "caption", trained, data / "val2017", "--output", output, "--batch-size", 4)
    assert code == 0, text
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    files = sorted((data / "val2017").iterdir())
    assert [row["file_name"] for row in rows] == [str(f) for f in files]
    for row in rows:
        assert row.keys() == {"image_id", "file_name", "caption", "logprob", "beams"}
        assert row["caption"] == row["beams"][0]["caption"] and row["logprob"] == row["beams"][0]["logprob"] <= 0
        assert 1 <= len(row["beams"]) <= 3
    assert not output.with_name(output.name + ".partial").exists()


def test_a_broken_image_is_told_and_the_others_are_captioned(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((data / "val2017").iterdir())[0]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(good.read_bytes()[:300])
    code, text = run(capsys, "caption", trained, bad, good)
    assert code == 1
    assert str(bad) in text and "1 of 2 images could not be read" in text
    lines = [line for line in text.splitlines() if line.startswith("{")]
    assert [json.loads(line)["file_name"] for line in lines] == [str(good)]


def test_the_same_caption_alone_and_in_a_batch(trained: Path, data: Path) -> None:
    captioner = pycap.load(trained)
    files = sorted((data / "val2017").iterdir())
    together = list(captioner.caption(files, beam_size=2, batch_size=5))
    for file, expected in zip(files, together, strict=True):
        (alone,) = captioner.caption(file, beam_size=2)
        assert (alone.file_name, alone.text) == (file.name, expected.text)
        assert alone.logprob == pytest.approx(expected.logprob, rel=1e-4)


def test_files_are_captioned_from_the_centre_of_the_resized_image(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = pycap.load(trained)
    captioner.spec = replace(captioner.spec, resize=72)
    seen = []
    plain = captioner.caption_batch
    monkeypatch.setattr(captioner, "caption_batch", lambda *args, **how: seen.append(args) or plain(*args, **how))
    list(captioner.caption(sorted((data / "val2017").iterdir())[:2]))
    ((images, crops),) = seen
    assert images.shape == (2, 72, 72, 3) and crops.tolist() == [[4, 4, 0]] * 2


def test_evaluate_writes_results_that_score_scores_alike(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    code, evaluated = run(capsys, "evaluate", trained, "--data", data, "--split", "val", "--output", results)
    assert code == 0, evaluated
    rows = json.loads(results.read_text())
    assert len(rows) == 10 and all(row.keys() == {"image_id", "caption"} for row in rows)
    code, scored = run(capsys, "score", results, data / "annotations" / "captions_val2017.json")
    assert code == 0
    bleu = [line for line in evaluated.splitlines() if line.startswith("BLEU")]
    assert len(bleu) == 4 and bleu == [line for line in scored.splitlines() if line.startswith("BLEU")]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "the file is empty"),
        ('[{"image_id"', "not valid JSON at line 1"),
        ('[{"image_id": 1}]', "not COCO results"),
        ('{"a": 1}', "line 1 is not"),
        ("1.jpg", "line 1 is not IMAGE_ID"),
        (None, "No such file"),
    ],
)
def test_score_names_what_is_wrong_with_a_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, named: str
) -> None:
    results = tmp_path / "results.json"
    if content is not None:
        results.write_text(content)
    code, text = run(capsys, "score", results, data / "annotations" / "captions_val2017.json")
    assert code != 0 and "results.json" in text and named in text and "Traceback" not in text


def test_score_names_a_caption_of_an_unknown_image(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 77, "caption": "a cat"}]')
    code, text = run(capsys, "score", results, data / "annotations" / "captions_val2017.json")
    assert code != 0 and "77" in text


def test_a_checkpoint_that_is_none_and_an_image_that_is_not_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        pycap.load(tmp_path / "nothing")
    code, text = run(capsys, "caption", trained, tmp_path / "gone.jpg")
    assert code != 0 and "gone.jpg" in text


def test_evaluate_from_python() -> None:
    scores = pycap.evaluate({1: "a red circle", 2: "two blue squares"}, {1: ["a red circle"], 2: ["two blue squares"]})
    assert scores["BLEU-1"] == pytest.approx(1.0) and scores["BLEU-3"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3"):
        pycap.evaluate({3: "a cat"}, {1: ["a dog"]})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_saves_and_ends_cleanly(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    save(tiny(data, tmp_path / "run", epochs=10_000), tmp_path / "config.yaml")
    program = "import sys; from pycap.train import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed
    assert f"continue with --resume {tmp_path / 'run'}" in printed and "Traceback" not in printed
    assert pycap.load(tmp_path / "run" / "last").config.epochs == 10_000
