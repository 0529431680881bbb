"""Files of captions: what is written in each form is read again, what is wrong is named, ids find their images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycap.data import DataError
from pycap.data.forms import FILE_FORMATS, check_separator, image_id, write
from pycap.data.results import read_references, read_results, renamed

ROWS: list[dict[str, Any]] = [
    {"image_id": "b 1", "caption": "a caf\u00e9, red", "logprob": -1.5},
    {"image_id": "a", "caption": ""},
    {"image_id": "007", "caption": "two dogs"},
]


def written(path: Path, form: str, *rows: dict[str, Any], separator: str = "\t") -> str:
    write(path, form, rows, separator)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path.read_bytes().decode()


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_what_is_written_is_read_again_in_order(tmp_path: Path, form: str) -> None:
    path = tmp_path / "captions"
    written(path, form, *ROWS)
    found = read_results(path)
    assert list(found.items()) == [(row["image_id"], row["caption"]) for row in ROWS]


def test_the_forms_as_they_are(tmp_path: Path) -> None:
    assert json.loads(written(tmp_path / "a", "coco", *ROWS)) == [
        {"image_id": row["image_id"], "caption": row["caption"]} for row in ROWS
    ]
    assert [json.loads(line) for line in written(tmp_path / "a", "jsonl", *ROWS).splitlines()] == ROWS
    assert written(tmp_path / "a", "imageclef", *ROWS) == "b 1\ta caf\u00e9, red\na\t\n007\ttwo dogs\n"
    assert json.loads(written(tmp_path / "a", "coco")) == []
    assert written(tmp_path / "a", "csv", *ROWS, {"image_id": 4, "file_name": 'x/4 "b".jpg', "caption": "a\nb"}) == (
        "file_name,image_id,caption,logprob\r\n"
        ',b 1,"a caf\u00e9, red",-1.5\r\n,a,,\r\n,007,two dogs,\r\n"x/4 ""b"".jpg",4,"a\nb",\r\n'
    )


def test_a_caption_holds_no_separator_and_no_line_end(tmp_path: Path) -> None:
    row = {"image_id": 5, "caption": " a dog,\tand\r\na  cat,"}
    assert written(tmp_path / "a", "imageclef", row, separator=",") == "5,a dog and a cat\n"
    assert written(tmp_path / "a", "imageclef", row, separator="\t") == "5\ta dog, and a cat,\n"
    assert written(tmp_path / "a", "imageclef", row, separator=" | ") == "5 | a dog, and a cat,\n"


def test_a_separator_of_ones_own_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run"
    written(path, "imageclef", *ROWS, separator=" | ")
    assert read_results(path, " | ") == {row["image_id"]: row["caption"] for row in ROWS}
    path.write_text("12 a dog runs\n\n34  two dogs\n")
    assert read_results(path) == {"12": "a dog runs", "34": "two dogs"}


@pytest.mark.parametrize("separator", ["", "a", "\n", "_", "7", "'"])
def test_a_separator_that_words_or_lines_may_hold_is_refused(separator: str) -> None:
    with pytest.raises(DataError, match="separator"):
        check_separator(separator)


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_what_is_not_whole_leaves_the_old_file(tmp_path: Path, form: str) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise KeyboardInterrupt

    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(path, form, rows())
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_a_file_name_that_is_no_text_stops_nothing(tmp_path: Path, form: str) -> None:
    name = os.fsdecode(b"caf\xe9")
    row = {"image_id": name, "file_name": f"{name}.jpg", "caption": "a caf\u00e9"}
    write(tmp_path / "a", form, [row])
    content = (tmp_path / "a").read_bytes()
    escaped = form in ("jsonl", "coco")
    assert (b"caf\\udce9" if escaped else b"caf\xe9") in content
    if escaped:
        assert read_results(tmp_path / "a") == {name: "a caf\u00e9"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "1 image ids stand in it twice"),
        ("1\ta\n2\tb\n1\tc\n", "1 image ids stand in it twice"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id": 2}\n', "line 2 is not"),
        ('{"image_id": 1, "caption": "a"}\n{"image', "line 2 is not"),
        ("1\ta\nno tab here\n", r"line 2 is not IMAGE_ID'\\t'CAPTION.*no tab here.*--separator"),
        ("\ta\n", "line 1 is not"),
        ("[1, 2]", "not COCO results"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "run.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=f"run.txt: .*{named}"):
        read_results(path)


def test_ids_are_names_and_in_cocos_results_numbers() -> None:
    assert image_id(Path("x/COCO_val2014_000000391895.jpg"), "coco") == 391895
    assert image_id(Path("000000391895.jpg"), "coco") == 391895
    assert image_id(Path("1000268201_693b08cb0e.jpg"), "coco") == "1000268201_693b08cb0e"
    assert (
        image_id(Path("000000391895.jpg"), "imageclef") == image_id(Path("000000391895.jpg"), "jsonl") == "000000391895"
    )


def test_results_find_the_ids_that_references_have() -> None:
    results: dict[int | str, str] = {"000000391895": "a", "0": "b", "x_01.jpg": "c", 7: "d", "gone": "e", "08": "f"}
    found = renamed(results, [391895, 0, "x_01", "007", "08", 8])
    assert found == {391895: "a", 0: "b", "x_01": "c", "007": "d", "gone": "e", "08": "f"}
    with pytest.raises(DataError, match="two captions are of image 7, one of them under the id '007.png'"):
        renamed({7: "a", "007.png": "b"}, [7])


def test_references_are_cocos_captions_or_lines_of_sentences(tmp_path: Path) -> None:
    path = tmp_path / "human"
    path.write_text(
        json.dumps({"annotations": [{"image_id": i, "caption": t} for i, t in ((1, "a"), (2, "b"), (1, "c"))]})
    )
    assert read_references(path) == {1: ["a", "c"], 2: ["b"]}
    path.write_text("x.jpg#0\ta dog\ny\ta cat\nx.jpg#1\ttwo dogs\n")
    assert read_references(path) == {"x": ["a dog", "two dogs"], "y": ["a cat"]}
    for text, named in (("[1]", 'no "annotations"'), ('{"annotations": [{"image_id": 1}]}', r"annotations\[0\] lacks")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"human: {named}"):
            read_references(path)


def test_a_separator_that_is_taken_for_captions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    rows = [{"image_id": "a", "caption": "two dogs"}, {"image_id": "b", "caption": "a cat"}]
    written(path, "imageclef", *rows, separator=" | ")
    with pytest.raises(DataError, match=r"every caption begins with '\|'.*--separator '\|'"):
        read_results(path)
    assert read_results(path, "|") == {"a": "two dogs", "b": "a cat"}
    path.write_text('a "two dogs"\nb "a cat"\n', "utf-8")
    assert read_results(path) == {"a": '"two dogs"', "b": '"a cat"'}


def test_an_error_does_not_repeat_a_long_id() -> None:
    long = "x" * 200_000
    with pytest.raises(DataError, match="two captions are of image 'xxx") as caught:
        renamed({long: "a cat", f"{long}.jpg": "a dog"}, [long])
    assert len(str(caught.value)) < 1000
