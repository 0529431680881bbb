"""Jobs of captioning: what comes out in every form, what goes on where it was stopped, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pycap.bulk import job as jobs
from pycap.bulk.job import run
from pycap.bulk.journal import VERSION, Journal, JournalError, Standing
from pycap.bulk.share import Shard
from pycap.bulk.target import Target
from pycap.captioner import Caption
from pycap.data import DataError
from pycap.data.forms import FILE_FORMATS
from pycap.data.inputs import Inputs
from pycap.data.items import Item
from pycap.data.results import read_results
from tests.bulk.jobs import BATCH, folder, job, said

COUNT = 23
READABLE = [number for number in range(COUNT) if number % 7 != 3]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path / "images", COUNT)


def left(place: Path) -> list[str]:
    """The names in a folder, but for the images."""
    return sorted(path.name for path in place.iterdir() if path.name != "images")


class Interrupted(Exception):
    """In place of a kill."""


def stopped_after(batches: int) -> Any:
    """Captions of some batches; then `Interrupted`."""

    def captions(items: Iterable[Item]) -> Generator[Sequence[Caption], None, None]:
        yield from islice(said(items), batches)
        raise Interrupted

    return captions


def interrupted(*arguments: object) -> None:
    raise Interrupted


def begun(images: Path, output: Path, batches: int = 2, **changes: Any) -> Path:
    """What a job leaves that is killed after some batches."""
    work = job(images, output, batches=stopped_after(batches), **changes)
    with pytest.raises(Interrupted):
        run(work)
    assert work.journal.exists()
    return work.journal


def complete(images: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """What a job leaves that is killed when its journal is complete."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(jobs, "finish", interrupted)
        run(job(images, output, **changes))


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


def test_cut_anywhere_it_ends_as_if_nothing_had_happened(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(images, tmp_path / "whole", "coco"))
    partial = tmp_path / "cut.partial"
    complete(images, tmp_path / "cut", monkeypatch, form="coco")
    whole = partial.read_bytes()
    assert whole.count(b"\n") == 1 + COUNT + 1
    for end in [*range(0, len(whole), 31), len(whole)]:
        partial.write_bytes(whole[:end])
        run(job(images, tmp_path / "cut", "coco", resume=True))
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes(), end
        assert left(tmp_path) == ["cut", "cut.failed.jsonl", "whole", "whole.failed.jsonl"]
        (tmp_path / "cut").unlink()


def test_what_is_done_is_not_done_again(images: Path, tmp_path: Path) -> None:
    partial = begun(images, tmp_path / "a", 3)
    rows = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(rows[:-2]))  # 13 rows: the batch in which it was stopped is made again as a whole
    read = []

    def recorded(items: Iterable[Item]) -> Generator[Sequence[Caption], None, None]:
        for batch in said(items):
            read.extend([caption.name for caption in batch])
            yield batch

    run(job(images, tmp_path / "a", batches=recorded, resume=True))
    assert read == [str(images / f"{number:04}.jpg") for number in range(10, COUNT)]


def test_a_journal_is_never_overwritten(images: Path, tmp_path: Path) -> None:
    partial = begun(images, tmp_path / "a")
    content = partial.read_bytes()
    with pytest.raises(JournalError, match=r"a.partial: is there already.*--resume goes on.*remove it"):
        run(job(images, tmp_path / "a"))
    assert partial.read_bytes() == content


def test_what_is_complete_says_so(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(job(images, tmp_path / "a", resume=True))
    before = (tmp_path / "a").stat()
    assert run(job(images, tmp_path / "a", resume=True, batches=stopped_after(0))) is None
    assert "a: is complete; for images that are new: --skip-existing" in capsys.readouterr().out
    assert (tmp_path / "a").stat() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {"decoding": {"beam_size": 3}}}, "decoding: beam size was 2 and is 3 now"),
        (
            {"options": {"decoding": {"beam_size": 2}, "checkpoints": ["ab"]}},
            r'checkpoints was none and is \["ab"\] now',
        ),
        ({"batch_size": 7}, "batch size was 5 and is 7 now"),
        ({"inputs": Inputs(["tests"])}, r'inputs was \[".*images"\] and is \["tests"\] now'),
        ({"skip_existing": True}, "skip existing was none and is .*size.* now"),
        ({"shard": Shard(1, 2)}, r"a.partial: is of a job that was divided otherwise than this one \(shard 1/2\)"),
    ],
)
def test_what_contradicts_the_journal_is_named(images: Path, tmp_path: Path, changes: Any, named: str) -> None:
    (tmp_path / "a").write_text('{"file_name": "x"}\n')
    partial = begun(images, tmp_path / "a")
    content = partial.read_bytes()
    with pytest.raises(JournalError, match=named):
        run(job(images, tmp_path / "a", resume=True, **changes))
    assert partial.read_bytes() == content


def test_a_journal_of_another_version_and_what_is_none_are_refused(images: Path, tmp_path: Path) -> None:
    partial = begun(images, tmp_path / "a")
    content = partial.read_bytes()
    for other, named in (
        (
            content.replace(b'{"journal": %d' % VERSION, b'{"journal": 99'),
            "a journal of version 99, and this pycap writes",
        ),
        (content.split(b"\n", 1)[1] + b"torn", "is no journal"),
        (b"no line end", "is no journal"),
    ):
        partial.write_bytes(other)
        with pytest.raises(JournalError, match=f"a.partial: {named}"):
            run(job(images, tmp_path / "a", resume=True))
        assert partial.read_bytes() == other


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda images: (images / "0002.jpg").unlink(), r"image number 3 is \S*0002.jpg, and now that is \S*0003.jpg"),
        (lambda images: (images / "00015.jpg").touch(), r"image number 3 is \S*0002.jpg, and now that is \S*00015.jpg"),
        (lambda images: [p.unlink() for p in sorted(images.iterdir())[8:]], "has 10 images, and now there are 8"),
    ],
)
def test_inputs_that_have_changed_are_named(images: Path, tmp_path: Path, change: Any, named: str) -> None:
    partial = begun(images, tmp_path / "a")
    content = partial.read_bytes()
    change(images)
    with pytest.raises(JournalError, match=f"the inputs have changed: .*{named}.*--skip-existing"):
        run(job(images, tmp_path / "a", resume=True))
    assert partial.read_bytes() == content
    run(job(images, tmp_path / "a", skip_existing=True))  # the remedy
    names = [json.loads(line)["file_name"] for line in (tmp_path / "a").read_text().splitlines()]
    assert names[:9] == [str(images / f"{number:04}.jpg") for number in (0, 1, 2, 4, 5, 6, 7, 8, 9)]
    there = {str(path) for path in images.iterdir() if int(path.stem) % 7 != 3}
    assert set(names) >= there and len(names) == len(set(names))


def test_damage_is_told_with_its_line(images: Path, tmp_path: Path) -> None:
    partial = begun(images, tmp_path / "a", 3)
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join([*lines[:4], b"\0" * 40 + b"\n", *lines[5:]]))
    with pytest.raises(JournalError, match=r"line 5 is no row of a journal.*`head -n 4`"):
        run(job(images, tmp_path / "a", resume=True))
    footer = b'{"complete": true, "rows": 14, "failed": 2}\n'
    partial.write_bytes(b"".join(lines) + footer)
    with pytest.raises(JournalError, match="holds 15 rows, 2 of them failures, and its last line says 14 and 2"):
        run(job(images, tmp_path / "a", resume=True))


def test_only_one_process_writes_a_journal(images: Path, tmp_path: Path) -> None:
    partial = tmp_path / "a.partial"
    with Journal(partial, {}), pytest.raises(JournalError, match=r"a.partial: another process is writing it"):
        run(job(images, tmp_path / "a"))
    assert not partial.exists()


def test_a_full_disk_leaves_whole_lines(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job(images, tmp_path / "whole"))
    plain, room = os.write, [3000]

    def write(file: int, data: bytes) -> int:
        written = plain(file, data[: room[0]]) if room[0] else 0
        room[0] -= written
        if not written:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    with monkeypatch.context() as patch:
        patch.setattr("pycap.bulk.journal.os.write", write)
        with pytest.raises(JournalError, match=r"a.partial: the disk is full.*free space, and go on with --resume"):
            run(job(images, tmp_path / "a"))
    partial = (tmp_path / "a.partial").read_bytes()
    assert 2500 < len(partial) < 3000 and partial.endswith(b"}\n")
    run(job(images, tmp_path / "a", resume=True))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_row_that_cannot_be_written_ends_the_job_though_it_is_among_the_last(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Journal.add

    def add(self: Journal, rows: Sequence[Any]) -> None:
        if len(rows) < BATCH:  # the last batch
            raise OSError(errno.EIO, "Input/output error")
        plain(self, rows)

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(OSError, match="Input/output error"):
        run(job(images, tmp_path / "a"))
    assert left(tmp_path) == ["a.partial"] and b"complete" not in (tmp_path / "a.partial").read_bytes()


def test_a_full_disk_at_the_end_loses_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pycap.data.forms.os.replace", full)
        with pytest.raises(
            JournalError, match=r"a: the disk is full; what was captioned is in \S*a.partial: free space"
        ):
            run(job(images, tmp_path / "a"))
    assert left(tmp_path) == ["a.partial"]
    run(job(images, tmp_path / "a", resume=True, batches=stopped_after(0)))
    assert left(tmp_path) == ["a", "a.failed.jsonl"] and len(read_results(tmp_path / "a")) == len(READABLE)


def test_an_error_of_a_captioner_or_before_the_first_row_leaves_no_journal(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(job(images, tmp_path / "a", batches=stopped_after(0)))
    assert left(tmp_path) == []


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
