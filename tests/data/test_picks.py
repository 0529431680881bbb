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
