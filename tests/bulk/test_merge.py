"""Shards: which images each has, and what their captions come to when all are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pycap.bulk.job import run, shard_files
from pycap.bulk.journal import JournalError, Standing, read_rows
from pycap.bulk.merge import merge
from pycap.bulk.share import Shard, Share
from pycap.data.forms import FILE_FORMATS
from pycap.data.inputs import find
from tests.bulk.jobs import COUNT, folder, job


def captioned(images: Path, output: Path, *shards: int, count: int = 3, **changes: Any) -> None:
    for number in shards:
        run(job(images, output, shard=Shard(number, count), **changes))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_shards_share_out_whole_batches(images: Path, count: int, size: int) -> None:
    shares = [Share(find([images]), size, Shard(number, count)) for number in range(1, count + 1)]
    names = [[reference.name for reference in share.references()] for share in shares]
    assert [len(each) for each in names] == [share.count() for share in shares]
    whole = [str(images / f"{number:04}.jpg") for number in range(COUNT)]
    dealt: list[list[str]] = [[] for _ in range(count)]
    for batch in range(0, COUNT, size):
        dealt[batch // size % count] += whole[batch : batch + size]
    assert names == dealt


@pytest.mark.parametrize("form", [*FILE_FORMATS, "txt-sidecar"])
def test_merged_shards_are_what_one_process_writes(images: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "texts").mkdir()
    place = tmp_path / "texts" if form == "txt-sidecar" else tmp_path / "a"
    run(job(images, place, form))
    files = [path for path in (place, tmp_path / "a.failed.jsonl") if path.is_file()]
    files += [path for path in (tmp_path / "texts").rglob("*") if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    assert whole
    for path in files:
        path.unlink()
    captioned(images, place, 3, 1, 2, form=form)
    assert merge(place) == 1
    assert {path: path.read_bytes() for path in files} == whole
    assert not [path for rest in ("*.shard-*", "*.partial", "*.tmp") for path in tmp_path.rglob(rest)]


def test_another_form_may_be_asked_for(images: Path, tmp_path: Path) -> None:
    run(job(images, tmp_path / "whole", "csv"))
    captioned(images, tmp_path / "a", 1, 2, 3)
    merge(tmp_path / "a", "csv")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()


def test_more_shards_than_batches(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 3)
    captioned(images, tmp_path / "a", 1, 2, count=2)
    assert merge(tmp_path / "a") == 0
    run(job(images, tmp_path / "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""


def test_shards_add_to_a_file_what_it_lacks(images: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "a", tmp_path / "b"):
        run(job(images, output))
    for number in range(100, 120):
        (images / f"{number:04}.jpg").touch()
    run(job(images, tmp_path / "b", skip_existing=True))
    captioned(images, tmp_path / "a", 1, 2, 3, skip_existing=True)
    merge(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def drop(place: Path) -> None:
    (place / "a.shard-2-of-3").unlink()


def cut(place: Path) -> None:
    file = place / "a.shard-3-of-3"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]))


def other_options(place: Path) -> None:
    file = place / "a.shard-2-of-3"
    file.write_text(file.read_text().replace('"beam_size": 2', '"beam_size": 4'))


def other_inputs(place: Path) -> None:
    drop(place)
    for path in sorted((place / "images").iterdir())[:6]:
        path.unlink()
    captioned(place / "images", place / "a", 2)


def other_names(place: Path) -> None:
    drop(place)
    (place / "images" / "0000.jpg").rename(place / "images" / "00009.jpg")
    captioned(place / "images", place / "a", 2)


def fewer_rows(place: Path) -> None:
    file = place / "a.shard-2-of-3"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:-2], lines[-1].replace('"rows": 8', '"rows": 7')]))


def other_division(place: Path) -> None:
    (place / "a.shard-1-of-4").write_bytes((place / "a.shard-1-of-3").read_bytes())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, "a.shard-2-of-3 is missing: caption it with --shard 2/3$"),
        (cut, r"a.shard-3-of-3 is not done \(2 images\): go on with --shard 3/3 --resume"),
        (other_options, "a.shard-2-of-3 is of another job: decoding: beam size is 4, and in a.shard-1-of-3 2$"),
        (other_inputs, "a.shard-2-of-3 is of 17 images, and a shard before it of 23, or of others by name: remove"),
        (other_names, "a.shard-2-of-3 is of 23 images, and a shard before it of 23, or of others by name: remove"),
        (fewer_rows, "a.shard-2-of-3 has 7 images, which is not its share of 23: remove it"),
        (other_division, "a.shard-1-of-4 is of another division than a.shard-1-of-3"),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_nothing_written(
    images: Path, tmp_path: Path, change: Any, named: str
) -> None:
    captioned(images, tmp_path / "a", 1, 2, 3)
    change(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(JournalError, match=f"a: cannot be merged: .*{named}"):
        merge(tmp_path / "a")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_merge_killed_as_it_removed_the_shards_is_told(images: Path, tmp_path: Path) -> None:
    captioned(images, tmp_path / "a", 1, 2, 3)
    drop(tmp_path)
    with pytest.raises(JournalError) as before:
        merge(tmp_path / "a")
    assert "remove those" not in str(before.value)
    (tmp_path / "a").write_text("all captions\n")
    with pytest.raises(
        JournalError, match="if a merge into .*a was killed as it removed the shards, remove those that are left"
    ):
        merge(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "all captions\n"


def test_no_shards_at_all(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="a: there are no shards a.shard-I-of-N beside it"):
        merge(tmp_path / "a")


def test_a_shard_is_not_made_twice_and_a_job_not_divided_in_two_ways(images: Path, tmp_path: Path) -> None:
    captioned(images, tmp_path / "a", 1)
    with pytest.raises(JournalError, match=r"a.shard-1-of-3: is there already"):
        captioned(images, tmp_path / "a", 1)
    assert run(job(images, tmp_path / "a", shard=Shard(1, 3), resume=True)) == Standing(10, 2, True)
    for shard in (Shard(1, 2), Shard()):
        with pytest.raises(
            JournalError, match=r"a.shard-1-of-3: is of a job that was divided otherwise \(3 shards\) than this"
        ):
            run(job(images, tmp_path / "a", shard=shard, resume=True))


def test_a_shard_begun_otherwise_than_the_others_is_refused_before_its_work(images: Path, tmp_path: Path) -> None:
    captioned(images, tmp_path / "a", 1)
    with pytest.raises(
        JournalError, match="a.shard-1-of-3: is of the same job, and its decoding: beam size is 2, but here 4"
    ):
        captioned(images, tmp_path / "a", 2, options={"decoding": {"beam_size": 4}})
    assert [path.name for path in shard_files(job(images, tmp_path / "a").target)] == ["a.shard-1-of-3"]


def test_how_a_shard_is_named() -> None:
    assert Shard.parsed("2/3") == Shard(2, 3) and str(Shard(2, 3)) == "2/3"
    for text in ("0/3", "4/3", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(ValueError, match="is not i/n"):
            Shard.parsed(text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"skip_existing": null', b'"skip_existing": true', "its header is damaged: no job has such numbers"),
        (b'"journal": 1', b'"journal": "\\ud800"', r'a journal of version "\ud800", and this pycap writes version 1'),
    ],
)
def test_a_header_that_no_job_has_is_refused(images: Path, tmp_path: Path, old: bytes, new: bytes, says: str) -> None:
    captioned(images, tmp_path / "a", 1, count=2)
    captioned(images, tmp_path / "a", 2, count=2)
    for path in shard_files(job(images, tmp_path / "a").target):
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(JournalError, match=re.escape(says)) as caught:
        merge(tmp_path / "a")
    str(caught.value).encode()


def test_a_last_line_with_a_mark_of_the_encoding_is_none(images: Path, tmp_path: Path) -> None:
    """JSON of bytes is read behind such a mark: the job was not complete by one reading of its journal, and was by another."""
    captioned(images, tmp_path / "a", 1)
    (path,) = shard_files(job(images, tmp_path / "a").target)
    rows = len(list(read_rows(path)))
    path.write_bytes(path.read_bytes().replace(b'{"complete"', b'\xef\xbb\xbf{"complete"'))
    with pytest.raises(JournalError, match=f"line {rows + 2} is no row of a journal"):
        list(read_rows(path))
