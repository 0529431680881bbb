"""A job that goes on where it was stopped, and what is refused in its place."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pycap.bulk.job import run
from pycap.bulk.journal import VERSION, Journal, JournalError
from pycap.bulk.share import Shard
from pycap.bulk.target import Target
from pycap.captioner import Caption
from pycap.data import DataError
from pycap.data.inputs import Inputs, find
from pycap.data.items import Item
from pycap.data.results import read_results
from tests.bulk.jobs import (
    BATCH,
    COUNT,
    READABLE,
    Interrupted,
    begun,
    complete,
    job,
    left,
    said,
    stopped_after,
)


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
        ({"inputs": Inputs(["tests"])}, r'inputs was \[".*(images"\]|\.\.\.) and is \["tests"\] now'),
        ({"skip_existing": True}, "skip existing was none and is .*size.* now"),
        (
            {"shard": Shard(1, 2)},
            r"a.partial: is of a job that was divided otherwise \(one process\) than this one \(2 shards\)",
        ),
    ],
)
def test_what_contradicts_the_journal_is_named(images: Path, tmp_path: Path, changes: Any, named: str) -> None:
    (tmp_path / "a").write_text('{"file_name": "x"}\n')
    partial = begun(images, tmp_path / "a")
    content = partial.read_bytes()
    with pytest.raises(JournalError, match=named):
        run(job(images, tmp_path / "a", resume=True, **changes))
    assert partial.read_bytes() == content


def test_other_batches_are_possible_in_a_new_job_that_keeps_the_captions(images: Path, tmp_path: Path) -> None:
    begun(images, tmp_path / "a", 3)
    with pytest.raises(JournalError, match="without --resume, --skip-existing keeps these captions"):
        run(job(images, tmp_path / "a", batch_size=2, resume=True))
    run(job(images, tmp_path / "a", batch_size=2, batches=lambda items: said(items, 2), skip_existing=True))
    assert list(read_results(tmp_path / "a")) == [f"{number:04}" for number in READABLE]


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


def test_a_journal_that_ends_while_it_is_opened_takes_no_rows(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begun(images, tmp_path / "a")
    monkeypatch.setattr("pycap.data.disk.fcntl.flock", lambda *_: journal.unlink())
    with pytest.raises(JournalError, match=r"a.partial: another process has just ended with it"):
        run(job(images, tmp_path / "a", resume=True))
    assert left(tmp_path) == []


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


def test_a_journal_that_cannot_be_made_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.partial").symlink_to(tmp_path / "missing" / "file")
    with pytest.raises(
        JournalError, match=r"a.partial: cannot be written \(No such file or directory\).*name another --output"
    ):
        run(job(images, tmp_path / "a", resume=True))


@pytest.mark.parametrize("skip_existing", [False, True])
def test_nothing_to_caption_is_an_error_and_leaves_what_is_there(
    images: Path, tmp_path: Path, skip_existing: bool
) -> None:
    (tmp_path / "none.txt").touch()
    (tmp_path / "a").write_text("before")
    target = Target(tmp_path / ("new" if skip_existing else "a"))
    with pytest.raises(DataError, match="none.txt: no images in it; check what is named"):
        run(job(images, None, target=target, inputs=find([tmp_path / "none.txt"]), skip_existing=skip_existing))
    assert left(tmp_path) == ["a", "none.txt"] and (tmp_path / "a").read_text() == "before"


def test_an_error_of_a_captioner_or_before_the_first_row_leaves_no_journal(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(job(images, tmp_path / "a", batches=stopped_after(0)))
    assert left(tmp_path) == []
