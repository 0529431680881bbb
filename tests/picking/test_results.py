"""The index of results: which rows are pairs, what is told of the others, and which file a name means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pycap.data import DataError
from pycap.data.names import hashed
from pycap.picking.images import ImageFolder, endings
from pycap.picking.results import Candidate, Results, Unusable, parsed
from tests.picking import pairs


def test_rows_are_indexed_and_read_when_asked_for(tmp_path: Path) -> None:
    results = pairs.results(tmp_path)
    assert len(results) == pairs.COUNT and results.there.all() and results.left_out == []
    assert results.logprobs.tolist() == [-1.0 - number * 5 % 7 for number in range(pairs.COUNT)]
    assert results.captions[0] == results.captions[3] != results.captions[1]
    for number in range(pairs.COUNT):
        read = results.row(number)
        assert (read.image_id, read.file_name) == (f"{number:02}", pairs.name(number))
        assert read.captions == (
            Candidate(pairs.SAID[number % 3], results.logprobs[number]),
            Candidate(f"number {number}", -9.5),
        )
        below = pairs.name(number).removeprefix("target/")
        assert results.image(number, read) == below and results.find(below) == number
    assert results.find("0/99.png") is None


def test_what_cannot_be_a_pair_is_counted_by_its_reason_and_costs_no_other(tmp_path: Path) -> None:
    rows = [
        pairs.row(0),
        '{"file_name": "target/0/02.png", "capt',
        "",
        "[1, 2]",
        {"image_id": 5, "caption": "no name"},
        pairs.row(2, caption="", beams=[]),
        pairs.row(4, caption="...", beams=[{"caption": 7}]),
        pairs.row(6),
        pairs.row(0, caption="again"),
        pairs.row(8, file_name="./target/0/00.png"),
        pairs.row(10, file_name="target/0/gone.png"),
        pairs.row(1),
    ]
    results = pairs.results(tmp_path, rows)
    assert [results.row(n).file_name for n in range(len(results))] == [
        "target/0/00.png", "target/0/06.png", "target/0/gone.png", "target/1/01.png"
    ]  # fmt: skip
    assert results.there.tolist() == [True, True, False, True]
    broken, speechless, repeated, missing = results.left_out
    assert broken.startswith("lines that are no rows of results: 3 (first: line 2: not JSON (Unterminated string")
    assert speechless == "rows without a caption: 2 (first: line 6: target/0/02.png)"
    assert repeated == "rows of an image that an earlier row is of: 2 (first: target/0/00.png)"
    assert missing == f"images that are not in {tmp_path / 'target'}: 1 (first: target/0/gone.png)"


def test_lines_that_are_no_text_are_broken_ones(tmp_path: Path) -> None:
    path = pairs.write(tmp_path / "captions.jsonl", [pairs.row(0)])
    path.write_bytes(b'{"file_name": "\xff.png", "caption": "a"}\n' + path.read_bytes() + b'{"file_name": "a.p')
    results = Results(path, ImageFolder(pairs.images(tmp_path)))
    assert len(results) == 1 and results.left_out[0].startswith("lines that are no rows of results: 2 (first: line 1")


def test_half_a_character_and_brackets_without_end_are_no_harm(tmp_path: Path) -> None:
    rows = [pairs.row(0, beams=[{"caption": "a dog \ud83d"}]), "[" * 100_000, pairs.row(1, file_name="\ud83d.png")]
    rows.append(pairs.row(1))
    results = Results(pairs.write(tmp_path / "captions.jsonl", rows), ImageFolder(pairs.images(tmp_path)))
    assert len(results) == 1 and results.row(0).captions[0].caption == pairs.SAID[1] and results.there.all()
    assert results.left_out[0].startswith(
        "lines that are no rows of results: 3 (first: line 1: holds half of a character"
    )


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"caption": "a  dog", "logprob": -2}, [("a dog", -2.0)]),
        ({"caption": "a dog"}, [("a dog", None)]),
        ({"caption": "a dog", "logprob": float("nan")}, [("a dog", None)]),
        ({"caption": "a dog", "logprob": "-2"}, [("a dog", None)]),
        ({"caption": "a dog", "logprob": -(10**400)}, [("a dog", None)]),
        (
            {"caption": "x", "samples": [{"caption": "a", "logprob": -1}, {"caption": "a"}, {"caption": "b"}]},
            [("a", -1.0), ("b", None)],
        ),
        ({"caption": "a dog", "beams": []}, [("a dog", None)]),
        ({"caption": "a dog", "beams": "broken"}, [("a dog", None)]),
        ({"beams": [{"caption": " "}, 3, {"caption": "two"}]}, [("two", None)]),
    ],
)
def test_the_n_best_are_beams_samples_or_the_caption(row: dict[str, object], captions: list[object]) -> None:
    found = parsed(json.dumps({"file_name": "a/b.jpg", **row}).encode())
    assert [tuple(each) for each in found.captions] == captions
    assert (found.image_id, found.checkpoint) == ("b", None)


@pytest.mark.parametrize("name", ["", ".", "a/..", "a/", "a\0.jpg", 7, None])
def test_a_row_whose_name_is_no_files_is_broken(name: object) -> None:
    with pytest.raises(Unusable, match='no object with "file_name"'):
        parsed(json.dumps({"file_name": name, "caption": "a dog"}).encode())


def test_the_hash_is_the_same_in_every_process() -> None:
    assert hashed("a dog runs") == 12488867095879994008


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b/c.jpg", ["a/b/c.jpg", "b/c.jpg", "c.jpg"]),
        ("/x/a.jpg", ["x/a.jpg", "a.jpg"]),
        ("../../t/a.jpg", ["t/a.jpg", "a.jpg"]),
        ("t/../../etc/a.jpg", ["etc/a.jpg", "a.jpg"]),
        ("./t//a.jpg", ["t/a.jpg", "a.jpg"]),
    ],
)
def test_what_a_name_may_be_called_below_the_folder(name: str, found: list[str]) -> None:
    assert endings(name) == found


def test_of_several_files_the_one_with_the_longest_ending_is_meant(tmp_path: Path) -> None:
    for place in ("a.jpg", "t/a.jpg", "x/t/b.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    folder = ImageFolder(tmp_path)
    assert folder.find("data/t/a.jpg") == "t/a.jpg" and folder.find("data/u/a.jpg") == "a.jpg"
    assert folder.find(str(tmp_path / "x/t/b.jpg")) == "x/t/b.jpg"
    assert folder.find("t/b.jpg") is None and folder.find("t") is None


def test_no_name_and_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for place in (outside, inside / "sub"):
        place.mkdir(parents=True)
    (outside / "a.jpg").touch()
    (inside / "sub" / "c.jpg").touch()
    (inside / "notes.txt").touch()
    (inside / "folder.jpg").mkdir()
    os.symlink(outside / "a.jpg", inside / "link.jpg")
    os.symlink(outside, inside / "away")
    os.symlink(inside / "sub" / "c.jpg", inside / "within.jpg")
    folder = ImageFolder(inside)
    names = ("../outside/a.jpg", "away/a.jpg", "link.jpg", "notes.txt", "folder.jpg", str(outside / "a.jpg"))
    assert [folder.find(name) for name in names] == [None] * 6
    assert [folder.path(name) for name in names] == [None] * 6
    assert folder.find("within.jpg") == "within.jpg"
    assert folder.path("within.jpg") == os.path.realpath(inside / "sub" / "c.jpg")


def test_results_that_change_while_they_are_open_are_an_error(tmp_path: Path) -> None:
    results = pairs.results(tmp_path)
    with open(tmp_path / "captions.jsonl", "r+b") as file:
        file.write(b"#")
    with pytest.raises(DataError, match="captions.jsonl: has been changed since this began"):
        results.row(0)
    assert results.row(1).file_name == pairs.name(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no captions in it; give what pycap caption --output wrote"),
        ('[{"image_id": 1, "caption": "a dog"}]\n', "no captions in it; lines that are no rows of results: 1"),
        ('{"file_name": "\\ud800.jpg", "caption": "a dog"}\n', r"holds half of a character \(such as .ud800\)"),
        (
            f'{{"file_name": "{"x" * 4000}.jpg"}}\n',
            r"rows without a caption: 1 \(first: line 1: x{200}\.\.\.x{196}\.jpg\)",
        ),
        (
            f'{{"file_name": "{"x/" * 4000}a.jpg", "caption": "a dog"}}\n',
            "a name of 8,005 letters, which no file can have: x/",
        ),
        (
            '{"file_name": "elsewhere.jpg", "caption": "a dog"}\n',
            "none of its images is in .*target .first: elsewhere.jpg",
        ),
    ],
)
def test_a_file_without_any_pair_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        Results(tmp_path / "captions.jsonl", ImageFolder(pairs.images(tmp_path)))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; give --images .*holds: target/"):
        ImageFolder(pairs.images(tmp_path).parent / "nowhere")
    with pytest.raises(DataError, match="none.jsonl: cannot be read"):
        Results(tmp_path / "none.jsonl", ImageFolder(tmp_path))


def test_a_file_name_that_is_no_text_is_found(tmp_path: Path) -> None:
    pairs.images(tmp_path, [0])
    raw = os.fsdecode(b"target/0/\xff.png")
    os.rename(tmp_path / pairs.name(0), tmp_path / raw)
    results = pairs.results(tmp_path, [pairs.row(0, file_name=raw)])
    assert results.there.all() and np.array_equal(results.images, [hashed(raw.removeprefix("target/"))])
