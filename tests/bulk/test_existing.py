"""What a file has already stays as it is, and only what it lacks is captioned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycap.bulk.job import run
from pycap.bulk.journal import JournalError, Standing
from pycap.data import DataError
from pycap.data.forms import FILE_FORMATS
from pycap.data.results import read_results
from tests.bulk.jobs import (
    COUNT,
    READABLE,
    Interrupted,
    begun,
    complete,
    folder,
    job,
    left,
    said,
    stopped_after,
)


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_only_what_is_missing_is_captioned(images: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / "a"
    run(job(images, output, form))
    old = output.read_bytes()
    for number in (COUNT, COUNT + 2):
        (images / f"{number:04}.jpg").touch()
    (images / "0003.jpg").rename(images / "1000.jpg")  # unreadable before
    done = run(job(images, output, form, skip_existing=True))
    assert done == Standing(2 + 3, 2, True)
    new = output.read_bytes()
    kept = old.removesuffix(b"\n]\n")
    assert new.startswith(kept) and len(new) > len(old)
    number = int if form == "coco" else "{:04}".format
    assert list(read_results(output)) == [*map(number, READABLE), number(COUNT), number(COUNT + 2), number(1000)]
    failed = [json.loads(line) for line in (tmp_path / "a.failed.jsonl").read_text().splitlines()]
    assert [Path(row["file_name"]).name for row in failed] == ["0010.jpg", "0017.jpg"]
    again = run(job(images, output, form, skip_existing=True, batches=said))
    assert again == Standing(2, 2, True) and output.read_bytes() == new


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_captions_are_added_once_though_the_end_came_between(
    images: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a"
    run(job(images, output, form))
    (images / "0100.jpg").touch()
    plain = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".partial":
            raise Interrupted
        plain(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Path, "unlink", killed)
        run(job(images, output, form, skip_existing=True))
    whole = output.read_bytes()
    assert "a.partial" in left(tmp_path)
    run(job(images, output, form, skip_existing=True, resume=True, batches=stopped_after(0)))
    assert output.read_bytes() == whole and "a.partial" not in left(tmp_path)


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_what_was_begun_is_added_to_a_file_that_loses_nothing(images: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / "a"
    for path in sorted(images.iterdir())[9:]:
        path.rename(images / f"1{path.name}")
    run(job(images, output, form))
    old = read_results(output)
    for number in (1, 2, 4):
        (images / f"000{number}.jpg").rename(images / f"200{number}.jpg")
    (images / "0000.jpg").rename(images / "0001.jpg")
    partial = begun(images, output, 4, form=form)  # to replace the file
    assert len(partial.read_bytes().splitlines()) == 1 + 20
    run(job(images, output, form, skip_existing=True))
    new = read_results(output)
    assert list(new.items())[: len(old)] == list(old.items())
    number = int if form == "coco" else str
    assert [int(name) for name in new][len(old) :] == [2001, 2002, 2004]
    assert number("2001") in new and not partial.exists()


def test_captions_are_not_added_to_a_file_of_another_form(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(images, tmp_path / "a"))
    (images / "0100.jpg").touch()
    complete(images, tmp_path / "a", monkeypatch, skip_existing=True)
    content = (tmp_path / "a").read_bytes()
    with pytest.raises(JournalError, match="a.partial: adds to a file of --format jsonl, and csv is asked for"):
        run(job(images, tmp_path / "a", "csv", skip_existing=True, resume=True))
    assert (tmp_path / "a").read_bytes() == content


def test_a_file_that_is_added_to_must_not_change_meanwhile(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "a"
    run(job(images, output))
    folder(tmp_path / "images" / "more", 12)
    (tmp_path / "a.failed.jsonl").unlink()
    partial = begun(images, output, 1, skip_existing=True)
    with open(output, "a") as file:
        file.write('{"image_id": "x", "file_name": "x.jpg", "caption": "x"}\n')
    with pytest.raises(JournalError, match="skip existing: size was"):
        run(job(images, output, skip_existing=True, resume=True))
    assert partial.exists()


def test_a_file_that_changed_before_captions_were_added_is_left_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a"
    run(job(images, output))
    (images / "0100.jpg").touch()
    complete(images, output, monkeypatch, skip_existing=True)
    changed = output.read_bytes().replace(b"image 2", b"image X")
    output.write_bytes(changed)
    with pytest.raises(DataError, match="a: has changed since the job began, which keeps what it held; put it back"):
        run(job(images, output, skip_existing=True, resume=True))
    assert output.read_bytes() == changed and "a.partial" in left(tmp_path)


def test_a_file_of_another_form_is_not_added_to(images: Path, tmp_path: Path) -> None:
    for content, form in (
        ("a b c\n", "jsonl"),
        ("a,b\n", "csv"),
        ('[{"image_id": 1}]', "coco"),
        ("abc\n", "imageclef"),
    ):
        (tmp_path / "a").write_text(content)
        with pytest.raises(DataError, match=f"a: .*is not {form} as pycap caption writes it|a: does not end as"):
            run(job(images, tmp_path / "a", form, skip_existing=True))
        assert (tmp_path / "a").read_text() == content
