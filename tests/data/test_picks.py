"""Picked pairs: rows that are read, where their images are looked for, rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycap.data import DataError
from pycap.data.picks import listed
from tests.data.fixtures import write_jpeg


def write_rows(file: Path, *rows: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return file


def test_rows_of_one_image_are_its_captions(tmp_path: Path) -> None:
    here, there, far = (write_jpeg(tmp_path / place / "a.jpg") for place in ("picked", "root/b", "far"))
    file = write_rows(
        tmp_path / "picked" / "picks.jsonl",
        {"file_name": "a.jpg", "caption": " a dog\n runs "},
        {"file_name": "b/a.jpg", "caption": "a cat", "logprob": -3.5, "beams": []},  # as pycap caption writes them
        "",
        {"file_name": str(far), "caption": "a bird"},
        {"file_name": "../picked/a.jpg", "caption": "one dog"},
        {"file_name": "a.jpg", "caption": "a brown dog"},
    )
    found = listed(file, tmp_path / "root")
    assert found.problems == []
    assert [(e.file_name, e.path, e.captions) for e in found.entries] == [
        ("a.jpg", here, ["a dog runs", "a brown dog"]),
        ("b/a.jpg", there, ["a cat"]),
        (str(far), far, ["a bird"]),
        ("../picked/a.jpg", tmp_path / "picked" / ".." / "picked" / "a.jpg", ["one dog"]),
    ]
    assert len({e.image_id for e in found.entries}) == 4


def test_the_picks_folder_goes_before_the_data_folder(tmp_path: Path) -> None:
    for place in ("picked", "root"):
        write_jpeg(tmp_path / place / "a.jpg")
    file = write_rows(tmp_path / "picked" / "picks.jsonl", {"file_name": "a.jpg", "caption": "a dog"})
    assert listed(file, tmp_path / "root").entries[0].path == tmp_path / "picked" / "a.jpg"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"file_name": "a.jpg", "caption"', "not JSON"),
        ('["a.jpg", "a dog"]', "a list, not an object"),
        ({"caption": "a dog"}, '"file_name" is None'),
        ({"file_name": 7, "caption": "a dog"}, '"file_name" is 7'),
        ({"file_name": "a.jpg"}, '"caption" of a.jpg is None'),
        ({"file_name": "a.jpg", "caption": " 12 ."}, "has no words"),
        ({"file_name": "z.jpg", "caption": "a dog"}, "no image file z.jpg"),
        ({"file_name": "a.jpg", "caption": "A  dog ."}, "twice"),
    ],
)
def test_rows_that_cannot_be_used_are_listed(tmp_path: Path, row: object, said: str) -> None:
    write_jpeg(tmp_path / "a.jpg")
    file = write_rows(tmp_path / "picks.jsonl", {"file_name": "a.jpg", "caption": "A dog ."}, "", row)
    found = listed(file, tmp_path)
    assert [e.captions for e in found.entries] == [["A dog ."]]
    (problem,) = found.problems
    assert (problem["file"], problem["line"]) == ("picks.jsonl", 3)
    assert problem["reason"].startswith("line 3: ") and said in problem["reason"]


def test_both_places_are_named_where_an_image_is_missing(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "picks.jsonl", {"file_name": "z.jpg", "caption": "a dog"})
    assert (
        f"{tmp_path / 'z.jpg'}, {tmp_path / 'root' / 'z.jpg'}" in listed(file, tmp_path / "root").problems[0]["reason"]
    )


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "picks.jsonl"
    file.write_text("\n")
    with pytest.raises(DataError, match=r"picks.jsonl: the file is empty"):
        listed(file, tmp_path)


def decided(name: str, decision: str, caption: str = "a dog", **others: object) -> dict[str, object]:
    return {"file_name": name, "caption": caption, "decision": decision, **others}


def test_of_decisions_the_accepted_that_stand_are_pairs(tmp_path: Path) -> None:
    for name in "abcdef":
        write_jpeg(tmp_path / f"{name}.jpg")
    file = write_rows(
        tmp_path / "picks.jsonl",
        decided("a.jpg", "accept", "one"),
        decided("b.jpg", "accept", "two"),
        {"file_name": "f.jpg", "caption": "by hand"},
        decided("c.jpg", "reject"),
        decided("d.jpg", "skip"),
        decided("b.jpg", "reject"),
        decided("a.jpg", "accept", "my own", edited=True),
        decided("e.jpg", "accept"),
        decided("e.jpg", "undo"),
        decided("c.jpg", "undo"),
        decided("c.jpg", "undo"),  # of nothing
        decided("c.jpg", "accept", "three"),
        decided("f.jpg", "accept", "by page"),
        decided("f.jpg", "reject"),
        decided("f.jpg", "undo"),
        decided("./d.jpg", "accept", "four"),  # the same image
    )
    found = listed(file, tmp_path)
    assert found.problems == []
    assert [(e.path.name, e.captions) for e in found.entries] == [
        ("f.jpg", ["by hand", "by page"]),
        ("a.jpg", ["my own"]),
        ("c.jpg", ["three"]),
        ("d.jpg", ["four"]),
    ]


def test_an_undo_brings_the_decision_before_back(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg")
    rows = [decided("a.jpg", "accept", text) for text in ("one", "two")] + [decided("a.jpg", "undo")]
    assert listed(write_rows(tmp_path / "picks.jsonl", *rows), tmp_path).entries[0].captions == ["one"]


@pytest.mark.parametrize("size", [-1, -20, -2])
def test_a_torn_last_line_is_no_decision(tmp_path: Path, size: int) -> None:
    write_jpeg(tmp_path / "a.jpg")
    file = write_rows(tmp_path / "picks.jsonl", decided("a.jpg", "accept"), decided("a.jpg", "reject", "caf\u00e9"))
    file.write_bytes(file.read_bytes()[:size])
    if size == -1:  # the line's end alone is missing
        with pytest.raises(
            DataError, match="no pair in it: 1 rejected, 0 skipped, none accepted; go on with pycap select"
        ):
            listed(file, tmp_path)
        return
    found = listed(file, tmp_path)
    assert [e.captions for e in found.entries] == [["a dog"]]
    assert [problem["reason"] for problem in found.problems] == ["line 2: cut short: this decision was never confirmed"]


def test_what_was_not_accepted_need_not_be_usable(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg")
    rows = [decided("gone.jpg", "reject"), decided("gone.jpg", "accept"), decided("a.jpg", "accept", "7")]
    rows += [decided("a.jpg", "perhaps"), decided("none.jpg", "skip", "")]
    found = listed(write_rows(tmp_path / "picks.jsonl", *rows), tmp_path)
    assert found.entries == []
    assert [(problem["line"], problem["reason"].partition(" (")[0]) for problem in found.problems] == [
        (2, "line 2: no image file gone.jpg"),
        (3, "line 3: the \"caption\" of a.jpg is '7', which has no words"),
        (4, "line 4: the \"decision\" of a.jpg is 'perhaps', none of accept, reject, skip, undo"),
    ]


def test_bytes_that_are_no_text_cost_their_own_line(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg")
    file = tmp_path / "picks.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"file_name": "a.jpg", "caption": "a dog"}\n{"file_name": "\xff"}\n')
    found = listed(file, tmp_path)
    assert [e.captions for e in found.entries] == [["a dog"]]
    assert found.problems[0]["line"] == 2 and "not JSON" in found.problems[0]["reason"]
