"""Jobs of captioning: what comes out in every form, what is told meanwhile, and what is told before they begin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import pytest

from pycap.bulk import job as jobs
from pycap.bulk.job import run
from pycap.bulk.journal import JournalError, Standing
from pycap.bulk.target import Target
from pycap.captioner import Caption
from pycap.data import DataError
from pycap.data.forms import FILE_FORMATS
from pycap.data.items import Item
from pycap.data.results import read_results
from tests.bulk.jobs import (
    BATCH,
    COUNT,
    READABLE,
    begun,
    complete,
    folder,
    job,
    left,
    said,
    stopped_after,
)


def test_rows_come_in_order_and_failures_beside_them(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    assert run(job(images, output)) == Standing(COUNT, COUNT - len(READABLE), True)
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [row["file_name"] for row in rows] == [str(images / f"{number:04}.jpg") for number in READABLE]
    assert list(rows[0]) == ["image_id", "file_name", "caption", "logprob", "beams"] and rows[1]["image_id"] == "0001"
    failed = [json.loads(line) for line in (tmp_path / "captions.failed.jsonl").read_text().splitlines()]
    assert failed == [
        {"file_name": str(images / f"{number:04}.jpg"), "error": "corrupt or cut short"} for number in (3, 10, 17)
    ]
    assert left(tmp_path) == ["captions.failed.jsonl", "captions.jsonl"]


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_every_form_holds_every_caption(images: Path, tmp_path: Path, form: str) -> None:
    run(job(images, tmp_path / "a", form))
    number = int if form == "coco" else "{:04}".format
    assert read_results(tmp_path / "a") == {number(n): f'image {n}, a "caf\u00e9"' for n in READABLE}
    run(job(images, tmp_path / "b", form))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_text_files_stand_beside_the_images_or_under_a_folder(images: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    run(job(images, tmp_path / "texts", "txt-sidecar"))
    mirrored = tmp_path / "texts" / str(images)[1:]
    assert sorted(path.name for path in mirrored.iterdir()) == [f"{number:04}.txt" for number in READABLE]
    assert (mirrored / "0001.txt").read_text("utf-8") == 'image 1, a "caf\u00e9"\n'
    assert left(tmp_path / "texts") == sorted([str(images).split("/")[1], "captions.failed.jsonl"])


def test_no_text_file_leaves_its_folder(tmp_path: Path) -> None:
    target = Target(tmp_path, "txt-sidecar")
    for name in ("../x/a.jpg", "/x/a.png", "x/a.jpg", "./x/../x/a.jpg"):
        assert tmp_path in target.place(name).parents and ".." not in target.place(name).parts
    assert target.place("../x/a.jpg") == tmp_path / "x" / "a.txt"
    assert Target(None, "txt-sidecar").place("../x/a.jpg") == Path("../x/a.txt")


def test_text_files_beside_the_images_continue(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert begun(Path("images"), None, form="txt-sidecar").name == "captions.partial"  # type: ignore[arg-type]
    assert not list(images.glob("*.txt"))
    run(job(Path("images"), None, "txt-sidecar", resume=True))
    texts = {path.name: path.stat().st_ino for path in images.glob("*.txt")}
    assert sorted(texts) == [f"{number:04}.txt" for number in READABLE]
    (images / "0005.txt").unlink()
    for number in (3, 10, 17):
        (images / f"{number:04}.jpg").unlink()
    assert run(job(Path("images"), None, "txt-sidecar", resume=True)) == Standing(1, 0, True)
    now = {path.name: path.stat().st_ino for path in images.glob("*.txt")}
    assert now.keys() == texts.keys() and {name for name in now if now[name] != texts[name]} <= {"0005.txt"}
    assert run(job(Path("images"), None, "txt-sidecar", skip_existing=True)) is None


def test_a_text_file_that_is_there_is_not_replaced(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / "0005.txt").write_text("what a person wrote\n")
    with pytest.raises(DataError, match="^images/0005.txt: is there already, .*--skip-existing .*--output FOLDER"):
        run(job(Path("images"), None, "txt-sidecar"))
    assert not (tmp_path / "captions.partial").exists() and len(list(images.glob("*.txt"))) == 1
    run(job(Path("images"), None, "txt-sidecar", skip_existing=True))
    assert (images / "0005.txt").read_text() == "what a person wrote\n"
    assert len(list(images.glob("*.txt"))) == len(READABLE)


def test_a_folder_that_takes_no_text_file_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / ".0000.txt.tmp").mkdir()
    with monkeypatch.context() as patch, pytest.raises(JournalError, match="^images: cannot be written .*--resume"):
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # of the folder that stands in its way
        run(job(Path("images"), None, "txt-sidecar"))
    assert (tmp_path / "captions.partial").exists()


def test_another_form_may_be_asked_for_at_the_end(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(images, tmp_path / "whole", "coco"))
    complete(images, tmp_path / "a", monkeypatch, form="csv")
    run(job(images, tmp_path / "a", "coco", resume=True, batches=stopped_after(0)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_form_that_would_confuse_images_is_refused_at_the_end_too(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(images / "more", 2)
    complete(images, tmp_path / "a", monkeypatch)
    with pytest.raises(DataError, match="more/0000.jpg and .*images/0000.jpg have the same image id, '0'"):
        run(job(images, tmp_path / "a", "coco", resume=True))
    assert left(tmp_path) == ["a.partial"]


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ("coco", "more/0001.jpg and .*images/0001.jpg have the same image id, '1'"),
        ("imageclef", "more/0001.jpg and .*images/0001.jpg have the same image id, '0001'"),
        ("txt-sidecar", "images/0001.png and .*images/0001.jpg have the same text file, '.*0001.txt'"),
    ],
)
def test_images_that_the_form_would_confuse_are_told_before_any_is_captioned(
    images: Path, tmp_path: Path, form: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / "more").mkdir()
    (images / ("0001.png" if form == "txt-sidecar" else "more/0001.jpg")).touch()
    output = None if form == "txt-sidecar" else tmp_path / "a"
    with pytest.raises(DataError, match=named):
        run(job(images, output, form, batches=stopped_after(0)))
    assert left(tmp_path) == []


def test_an_id_with_the_separator_is_told(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 2)
    (images / "my photo.jpg").touch()
    work = job(images, tmp_path / "a", "imageclef", batches=stopped_after(0))
    object.__setattr__(work.target, "separator", " ")
    with pytest.raises(DataError, match="my photo.jpg.*holds the separator ' '"):
        run(work)


def test_what_the_file_of_an_earlier_job_held_is_replaced_at_once_at_the_end(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.failed.jsonl").write_text("old")
    begun(images, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    for number in (3, 10, 17):
        shutil.move(images / f"{number:04}.jpg", images / f"{number:04}.gone")
    (tmp_path / "a.partial").unlink()
    run(job(images, tmp_path / "a"))
    assert len(read_results(tmp_path / "a")) == len(READABLE) and left(tmp_path) == ["a"]


def test_progress_counts_what_this_process_did(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("pycap.progress.time.monotonic", lambda: now[0])
    begun(images, tmp_path / "a", 2)
    capsys.readouterr()

    def slow(items: Iterable[Item]) -> Generator[Sequence[Caption], None, None]:
        for batch in said(items):
            now[0] += 20
            yield batch

    run(job(images, tmp_path / "a", batches=slow, resume=True))
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "captioning  images 15/23  0.2 images/s  2 failed  0.5 min left"
    assert second == "captioning  images 20/23  0.2 images/s  3 failed  0.2 min left"
    assert third == "captioning  images 23/23  0.2 images/s  3 failed  0.0 min left"


def test_many_failures_are_not_all_printed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_TOLD", 2)
    run(job(images, tmp_path / "a"))
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{images / name}.jpg: corrupt or cut short" for name in ("0003", "0010")]
    assert BATCH == 5
