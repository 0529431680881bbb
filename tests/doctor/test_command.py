"""`pycap doctor DIR` as it is typed: status, forms of the report, what is refused, and how it is stopped."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pycap.cli import main
from pycap.data import images as data_images
from pycap.doctor import folder, images, layouts, report
from pycap.doctor.folder import Watch
from tests.doctor.planting import clean, photograph, saved

WORDS = ("--word-count-threshold", "2")


def typed(*options: str | Path) -> tuple[int, str]:
    """The status, and what an error said."""
    with pytest.raises(SystemExit) as exit:
        main(["doctor", *map(str, options)])
    code = exit.value.code
    return (1, str(code)) if isinstance(code, str) else (int(code or 0), "")


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """With one error, one warning and one note."""
    root = clean("coco", tmp_path / "data")
    names = sorted(os.listdir(root / "train2017"))
    (root / "train2017" / names[0]).write_bytes(b"")
    (root / "train2017" / "<orphan> & co.jpg").write_bytes(saved(photograph(5)))
    file = root / "annotations" / "captions_train2017.json"
    body = json.loads(file.read_text())
    body["annotations"][7]["caption"] = "!"
    file.write_text(json.dumps(body))
    return root


def test_status_and_text(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(clean("flickr8k", tmp_path), *WORDS) == (0, "")
    assert "nothing found: ready to train" in capsys.readouterr().out
    assert typed(spoilt, *WORDS) == (1, "")
    text = capsys.readouterr().out
    assert "error    1 image file of zero bytes  [empty-image]\n           000000000001.jpg\n" in text
    assert "remedy:  fetch it again" in text and "caption-without-words" in text and "<orphan> & co.jpg" in text
    assert "1 error, 1 warning, 1 note: do not train before the errors are settled" in text
    assert text.index("error  ") < text.index("warning  ") < text.index("note  ") and "\x1b" not in text
    (spoilt / "train2017" / "000000000001.jpg").write_bytes(saved(photograph(6)))
    assert typed(spoilt, *WORDS) == (0, "") and typed(spoilt, "--strict", *WORDS) == (1, "")


def test_several_folders_and_json(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = clean("imageclef", tmp_path)
    assert typed(other, spoilt, "--json", *WORDS) == (1, "")
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "pycap-doctor" and found["status"] == 1
    first, second = found["folders"]
    assert (first["kind"], first["findings"], first["stopped"]) == ("imageclef", [], False)
    assert second["counts"] == {"error": 1, "warning": 1, "note": 1}
    assert second["splits"]["train"]["images"] == 60 and second["images"]["looked_at"] == 80
    finding = second["findings"][0]
    assert finding["kind"] == "empty-image" and finding["first"] == [{"name": "000000000001.jpg", "detail": ""}]
    assert finding["why"] and finding["remedy"]


def test_data_sets_as_training_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layout in ("flickr8k", "flickr30k"):
        clean(layout, tmp_path)
    assert typed("--datasets", "flickr8k+flickr30k", "--data", tmp_path, "--json", *WORDS) == (0, "")
    (told,) = json.loads(capsys.readouterr().out)["folders"]
    assert told["kind"] == "flickr8k+flickr30k" and "flickr30k test" in told["splits"]
    assert typed(tmp_path, "--stage", "flickr", "--json", *WORDS) == (0, "")
    assert json.loads(capsys.readouterr().out)["folders"][0]["kind"] == "flickr8k+flickr30k"
    assert typed("--data", tmp_path / "flickr8k", "--json", *WORDS) == (0, "")
    assert json.loads(capsys.readouterr().out)["folders"][0]["kind"] == "flickr8k"


@pytest.mark.parametrize("suffix", report.SUFFIXES)
def test_a_report_is_written_whole_and_over_its_own_kind_only(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    file = tmp_path / f"report{suffix}"
    for _ in range(2):
        assert typed(spoilt, "--output", file, *WORDS) == (1, "")
        assert f"written: {file}" in capsys.readouterr().out
    text = file.read_text("utf-8")
    assert "000000000001.jpg" in text and "etch it again" in text
    assert os.listdir(tmp_path) == ["data", file.name] or sorted(os.listdir(tmp_path)) == ["data", file.name]
    if suffix.startswith(".htm"):
        assert "&lt;orphan&gt; &amp; co.jpg" in text and "<orphan>" not in text
        pages: list[str] = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attrs: pages.append(tag)  # type: ignore[method-assign]
        parser.feed(text)
        assert pages.count("section") == 3 and "script" not in pages
    file.write_text("my own notes")
    status, said = typed(spoilt, "--output", file, *WORDS)
    assert status == 1 and "holds something else than a report" in said and file.read_text() == "my own notes"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda p: (p / "x.txt").write_text("a") and p / "x.txt", "is a file; give the folder"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "the folder is empty"),
        (lambda p: p / "nowhere", "no such folder; check the path"),
    ],
)
def test_what_is_no_data_folder(tmp_path: Path, made: Any, said: str) -> None:
    path = made(tmp_path)
    status, told = typed(path)
    assert status == 1 and said in told and str(path) in told and told.startswith("pycap doctor: error: ")


def test_options_that_do_not_go_together(spoilt: Path, tmp_path: Path) -> None:
    for options, said in (
        (("--sample", "3"), "--sample is of a data folder"),
        (("--output", "x.html"), "--output is of a data folder"),
        ((spoilt, "--output", tmp_path / "x.pdf"), "a report ends in .html"),
        ((spoilt, "--output", tmp_path / "none" / "x.html"), "there is no folder"),
        ((spoilt, "--datasets", "coco"), "--datasets names the sets already"),
        ((spoilt, "--stage", "cocoo"), "no kind 'cocoo'"),
    ):
        status, told = typed(*options)
        assert status == 1 and said in told


def test_a_sample_is_said_to_be_one(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for _ in range(2):
        typed(spoilt, "--sample", "10", "--json", *WORDS)
        (told,) = json.loads(capsys.readouterr().out)["folders"]
        assert told["images"]["looked_at"] == 10 and told["images"]["named"] == 80
        seen.append(told["findings"])
    assert seen[0] == seen[1]
    typed(spoilt, "--sample", "10", *WORDS)
    assert re.search(r"\b10 decoded of 80|\b9 of 10 decoded of 80|10 of 10 decoded of 80", capsys.readouterr().out)


def test_control_c_ends_with_what_was_found(
    spoilt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see = images.see
    seen = []

    def slow(picture: images.Picture) -> images.Seen:
        seen.append(picture)
        if len(seen) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return see(picture)

    monkeypatch.setattr(images, "see", slow)
    assert typed(spoilt, *WORDS) == (130, "")
    text = capsys.readouterr().out
    assert "stopped before all was seen; so far 1 error" in text and "empty-image" in text and "ready" not in text
    assert len(seen) < 80 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_image_is_read_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = clean("coco", tmp_path)
    looked: list[str] = []
    look = data_images.look
    monkeypatch.setattr(images, "look", lambda *args: looked.append(args[2]) or look(*args))
    folder.examine(str(root), layouts.recognise(root), Watch(), threshold=2)
    assert len(looked) == 80 and len(set(looked)) == 80


def test_names_cannot_change_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = clean("coco", tmp_path)
    (root / "train2017" / "\x1b[2Jgone.jpg").write_bytes(b"")
    typed(root, *WORDS)
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\\x1b[2Jgone.jpg" in text


def test_on_a_terminal_errors_have_a_colour(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = folder.examine(str(spoilt), layouts.recognise(spoilt), Watch(), threshold=2)
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", screen)
    report.show([found])
    assert "\x1b[1;31merror" in screen.getvalue()


@pytest.mark.realdata
def test_real_photographs_bring_no_false_alarms(data_root: Path) -> None:
    """Flickr8k's captions and photographs: what is found there was looked at, one by one."""
    root = data_root / "flickr8k"
    found = folder.examine(str(root), layouts.recognise(root), Watch(), sample=500)
    assert {finding.kind: finding.count for finding in found.findings.sorted()} == {"caption-twice": 9}
