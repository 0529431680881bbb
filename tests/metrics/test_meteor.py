"""METEOR: the program itself where it is installed, and everywhere its protocol, against a stand-in for Java."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pycap import metrics
from pycap.cli import main
from pycap.metrics.meteor import meteor_missing

CAPTIONS = {5: ["a", "dog"], "x": ["red", "car"]}
REFERENCES = {5: [["a", "dog", "runs"], ["dogs"]], "x": [["blue", "bus"]], 9: [["not", "asked", "for"]]}

# Answers each SCORE line with the words that the caption shares with the references and the number of its words, and EVAL with
# their quotients: those of the lines, then that of the sums.
STAND_IN = """#!{python}
import os, sys, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
option = lambda name: sys.argv[sys.argv.index(name) + 1]
assert Path(option("-jar")).is_file() and Path(option("-a")).is_file() and option("-l") == "en" and "-norm" in sys.argv
{before}
for line in sys.stdin:
    kind, *rest = [part.split() for part in line.split("|||")]
    if kind == ["SCORE"]:
        *references, words = rest
        print(len({{w for r in references for w in r}} & set(words)), len(words), {padding}, flush=True)
    else:
        assert kind == ["EVAL"]
        rows = [(int(a), int(b)) for a, b, *_ in rest]
        for a, b in [*rows, tuple(map(sum, zip(*rows)))]:
            print(a / b, flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a `java` and a pycocoevalcap in a folder with a space in its name; returns the folder of the program."""

    def install(before: str = "", padding: str = "''") -> Path:
        place = tmp_path / "of a user"
        folder = place / "pycocoevalcap" / "meteor"
        (folder / "data").mkdir(parents=True)
        (place / "pycocoevalcap" / "__init__.py").touch()
        (folder / "meteor-1.5.jar").touch()
        (folder / "data" / "paraphrase-en.gz").touch()
        (tmp_path / "bin").mkdir()
        java = tmp_path / "bin" / "java"
        java.write_text(STAND_IN.format(python=sys.executable, before=before, padding=padding))
        java.chmod(0o755)
        monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.syspath_prepend(place)
        return folder

    return install


def ended(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_the_corpus_is_pooled_and_images_have_their_own(stand_in) -> None:
    folder = stand_in()
    pooled, images = metrics.meteor({**CAPTIONS, 7: ["a"]}, {**REFERENCES, 7: [["a"]]})
    assert images == {5: 1.0, "x": 0.0, 7: 1.0} and pooled == 3 / 5
    assert ended(folder)


def test_the_mark_between_captions_does_not_stand_in_one(stand_in) -> None:
    stand_in()
    assert metrics.meteor({1: ["a", "|||", "b"]}, {1: [["a", "|||"]]}) == (0.5, {1: 0.5})


def test_more_than_the_pipes_hold(stand_in) -> None:
    stand_in(padding="'0 ' * 500")
    captions = {i: ["word"] * 30 for i in range(1500)}
    pooled, images = metrics.meteor(captions, {i: [["word"]] for i in captions})
    assert pooled == pytest.approx(1 / 30) and len(images) == 1500


def test_a_program_that_fails_says_why(stand_in) -> None:
    stand_in(before="sys.exit('no memory for a heap of 2 GB')")
    with pytest.raises(metrics.MeteorUnavailable, match=r"exit status 1: no memory for a heap of 2 GB"):
        metrics.meteor(CAPTIONS, REFERENCES)


def test_a_program_that_hangs_is_ended(stand_in) -> None:
    folder = stand_in(before="time.sleep(600)")
    with pytest.raises(metrics.MeteorUnavailable, match=r"was ended after 3 s"):
        metrics.meteor(CAPTIONS, REFERENCES, timeout=3)
    assert ended(folder)


def test_what_is_missing_is_named_with_the_remedy(stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in()
    assert meteor_missing() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install pycocoevalcap" in meteor_missing()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no java on PATH" in meteor_missing() and "apt-get install" in meteor_missing()
    with pytest.raises(metrics.MeteorUnavailable, match="no java on PATH"):
        metrics.score({1: "a"}, {1: ["a"]}, also=["METEOR"])


def test_the_command_prints_it_or_why_not(stand_in, tmp_path: Path, monkeypatch, capsys) -> None:
    results, annotations = tmp_path / "results.json", tmp_path / "annotations.json"
    results.write_text(json.dumps([{"image_id": 1, "caption": "a dog"}]))
    annotations.write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "A cat."}]}))

    def told() -> list[str]:
        with pytest.raises(SystemExit, match="0"):
            main(["score", str(results), str(annotations)])
        return capsys.readouterr().out.splitlines()[1:]  # the first line names the columns

    stand_in()
    assert [line.split()[0] for line in told()] == [*metrics.NAMES, "METEOR"]
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = told()
    assert len(lines) == 7 and lines[-1].startswith("METEOR   not scored, nor its median: no java on PATH: install")


@pytest.mark.realdata
@pytest.mark.skipif(bool(meteor_missing()), reason=meteor_missing())
def test_equals_the_official_figure_from_a_folder_with_a_space(data_root: Path, tmp_path: Path, monkeypatch) -> None:
    package = importlib.util.find_spec("pycocoevalcap")
    assert package and package.submodule_search_locations
    origin = Path(package.submodule_search_locations[0]) / "meteor"
    copy = tmp_path / "of a user" / "pycocoevalcap" / "meteor"
    copy.mkdir(parents=True)
    (copy.parent / "__init__.py").touch()
    shutil.copy(origin / "meteor-1.5.jar", copy)
    (copy / "data").symlink_to(origin / "data")
    monkeypatch.syspath_prepend(copy.parents[1])
    rows = json.loads((data_root / "caption_metrics" / "fakecap_ref_tokenized.json").read_text())
    said = json.loads((data_root / "caption_metrics" / "captions_val2014_fakecap_results.json").read_text())
    pooled, images = metrics.meteor(
        {r["image_id"]: r["caption"].split() for r in said},
        {r["image_id"]: [c.split() for c in r["refs"]] for r in rows},
    )
    assert pooled == pytest.approx(0.1952546718, abs=5e-11)
    assert sum(images.values()) / len(images) == pytest.approx(0.20023, abs=5e-6)
