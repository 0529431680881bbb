"""The file of picks: whenever a process ends, what was confirmed is there, whole; what cannot be kept is not confirmed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycap.data.forms import json_line
from pycap.picking.journal import Journal, PicksError
from tests.picking import pairs


def decision(number: int, **changes: object) -> dict[str, object]:
    return {"file_name": f"{number}.jpg", "caption": f"a caf\u00e9, number {number}", "decision": "accept", **changes}


def test_rows_are_kept_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    for number in range(3):
        with Journal(path) as journal:
            assert journal.rows == [decision(before) for before in range(number)] and journal.problems == []
            journal.append(decision(number))
            assert pairs.lines(path)[-1] == decision(number)  # before it is closed


def test_a_file_that_nothing_was_decided_in_is_not_left_behind(tmp_path: Path) -> None:
    with Journal(tmp_path / "picks.jsonl"):
        assert (tmp_path / "picks.jsonl").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_what_was_put_in_the_place_of_an_empty_file_is_not_removed_with_it(tmp_path: Path, how: str) -> None:
    path, others = tmp_path / "picks.jsonl", pairs.write(tmp_path / "others", [decision(5)])
    with Journal(path):
        if how == "copied":
            shutil.copyfile(others, path)
        else:
            os.replace(others, path)
    assert pairs.lines(path) == [decision(5)]


@pytest.mark.faults
def test_a_kill_between_any_two_bytes_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    with Journal(path) as journal:
        for number in range(3):
            journal.append(decision(number))
    whole = path.read_bytes()
    ends = [at + 1 for at in range(len(whole)) if whole[at : at + 1] == b"\n"]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        # A row is there when its last bracket is: only the line's end is missing then, and is added.
        there = sum(end - 1 <= size for end in ends)
        with Journal(path) as journal:
            assert journal.rows == [decision(number) for number in range(there)] and journal.problems == []
            journal.append(decision(7))
        assert pairs.lines(path) == [*(decision(number) for number in range(there)), decision(7)]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process may have more bytes; a write beyond stops half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.faults
def test_on_a_full_disk_a_decision_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    with Journal(path) as journal:
        journal.append(decision(0))
        before = path.read_bytes()
        with (
            room_for(len(before) + 20),
            pytest.raises(PicksError, match="picks.jsonl: the disk is full; .* is not kept"),
        ):
            journal.append(decision(1))
        assert path.read_bytes() == before
        journal.append(decision(2))
    assert pairs.lines(path) == [decision(0), decision(2)]


@pytest.mark.faults
def test_what_cannot_be_synced_is_not_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "picks.jsonl"
    with Journal(path) as journal:
        journal.append(decision(0))
        with (
            monkeypatch.context() as patch,
            pytest.raises(PicksError, match="Input/output error.; this decision is not kept"),
        ):
            patch.setattr(os, "fsync", fails)
            journal.append(decision(1))
        journal.append(decision(2))
    assert pairs.lines(path) == [decision(0), decision(2)]


def test_that_there_is_a_file_is_on_the_disk_before_a_decision_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    with Journal(tmp_path / "picks.jsonl") as journal:
        journal.append(decision(0))
    assert synced == [tmp_path.stat().st_ino, (tmp_path / "picks.jsonl").stat().st_ino]


def test_a_write_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:5], offset))
    with Journal(tmp_path / "picks.jsonl") as journal:
        journal.append(decision(0))
        journal.append(decision(1))
    assert pairs.lines(tmp_path / "picks.jsonl") == [decision(0), decision(1)]


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    code = "import sys; from pathlib import Path; from pycap.picking.journal import Journal; Journal(Path(sys.argv[1]))"
    with Journal(path) as journal:
        journal.append(decision(0))
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert other.returncode == 1 and "another pycap select writes it" in other.stderr
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 0
    assert pairs.lines(path) == [decision(0)]


@pytest.mark.parametrize("change", ["moved", "removed", "replaced", "added to", "cut"])
def test_a_file_that_another_program_changes_is_not_written_to(tmp_path: Path, change: str) -> None:
    path = tmp_path / "picks.jsonl"
    with Journal(path) as journal:
        journal.append(decision(0))
        if change == "removed":
            path.unlink()
        elif change == "moved":
            os.rename(path, tmp_path / "elsewhere.jsonl")
        elif change == "replaced":
            os.replace(pairs.write(tmp_path / "new", [decision(5)]), path)
        elif change == "added to":
            path.write_text(path.read_text() + "\n")
        else:
            path.write_text("")
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(PicksError, match="since this began; nothing more is written"):
            journal.append(decision(1))
    assert (path.read_bytes() if path.exists() else None) == before


def test_lines_that_are_no_rows_stay_and_are_told(tmp_path: Path) -> None:
    lines = [
        decision(0),
        "by hand",
        "",
        {"file_name": "a.jpg", "decision": "perhaps"},
        {"file_name": "b.jpg", "caption": "x"},
    ]
    path = pairs.write(tmp_path / "picks.jsonl", lines)
    before = path.read_bytes()
    with Journal(path) as journal:
        assert journal.rows == [decision(0), {"file_name": "b.jpg", "caption": "x"}]
        assert [problem.partition(" (")[0] for problem in journal.problems] == [
            "line 2: not JSON",
            "line 4: the \"decision\" of a.jpg is 'perhaps', none of accept, reject, skip, undo",
        ]
        journal.append(decision(1))
    assert path.read_bytes() == before + json_line(decision(1))


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "\x00\x01", "by hand"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "picks.jsonl").write_text(text)
    with pytest.raises(PicksError, match="picks.jsonl: is no file of picks .line 1"):
        Journal(tmp_path / "picks.jsonl")
    assert (tmp_path / "picks.jsonl").read_text() == text


def test_a_place_that_no_file_can_be_in_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        Journal(tmp_path / "nowhere" / "picks.jsonl")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        Journal(tmp_path)
