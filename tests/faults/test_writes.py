"""A disk that fails at some calls of a save and of a run (`python -m tests.faults.writes`: at all); what is synced when."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults import runs, shim
from tests.faults.kills import Killer
from tests.faults.server import Server
from tests.faults.shim import Fault
from tests.faults.writes import Tally, faults_in_a_run, faults_in_a_save, faults_of_a_run, faults_of_a_save, sample
from tests.train.runs import lines

pytestmark = pytest.mark.faults


def test_the_layer_catches_what_python_rust_and_hdf5_write(server: Server, tmp_path: Path) -> None:
    target, folder = "tests.faults.saving:one_of_each", tmp_path / "files"
    folder.mkdir()
    done = server.run([str(folder)], tmp_path, folder, target=target)
    assert done.code == 0, done.said
    written = {call.place: call.nbytes for call in done.calls if call.name == "write"}
    assert set(written) == {"plain.txt", "arrays", "vectors.h5"} and all(written.values())
    for name, kind in (("plain.txt", OSError), ("/.tmp", OSError), ("vectors.h5", OSError)):
        done = server.run([str(folder)], tmp_path, folder, Fault(1, str(errno.ENOSPC), "write", name), target=target)
        assert done.code == 1 and os.strerror(errno.ENOSPC) in done.said, (name, kind)
        done = server.run([str(folder)], tmp_path, folder, Fault(1, "short", "write", name), target=target)
        assert done.code == 0 and [call.act for call in done.calls].count("short") == 1  # they write the other half
        assert server.run([str(folder)], tmp_path, folder, Fault(1, "middle", "write", name), target=target).was_killed
    assert server.run([str(folder)], tmp_path, tmp_path / "elsewhere", target=target).calls == []


def test_no_fault_in_a_save_costs_a_checkpoint(server: Server, tmp_path: Path) -> None:
    tally = Tally()
    chosen = sample(faults_of_a_save(server, tmp_path / "plain"), 13)
    for _ in faults_in_a_save(server, tmp_path, chosen, tally):
        pass
    assert tally.problems == [] and tally.lost == 0
    assert tally.faults.total() == 13 and len({act for act, _ in tally.faults}) > 5


def test_a_run_on_a_disk_that_fails_says_so_and_goes_on_later(killer: Killer) -> None:
    tally = Tally()
    chosen = sample(list(faults_of_a_run(killer.reference("features").calls)), 4)
    for _ in faults_in_a_run(killer, "features", chosen, tally):
        pass
    assert tally.problems == [] and tally.lost == 0
    assert tally.faults.total() == 4 and tally.resumed >= 1


def test_a_log_line_that_does_not_fit_is_not_there(killer: Killer, tmp_path: Path) -> None:
    """Its first half is written, and then the disk is full."""
    run, arguments = tmp_path / "run", killer.options("stopped")
    done = killer.server.run(arguments, tmp_path, run, Fault(5, f"short {errno.ENOSPC}", "write", "/log.jsonl"))
    assert done.code == 1
    assert "run/log.jsonl: cannot be written (No space left on device); run/last is whole: free space" in done.said
    assert "--resume run" in done.said
    assert len(lines(run / "log.jsonl")) == 4
    assert killer.server.run(["--resume", "run"], tmp_path, run).code == 0
    assert runs.differences(run, killer.reference("stopped").folder) == []


def test_a_log_line_that_is_taken_in_halves_is_whole(killer: Killer, tmp_path: Path) -> None:
    done = killer.server.run(
        killer.options("stopped"), tmp_path, tmp_path / "run", Fault(5, "short", "write", "/log.jsonl")
    )
    assert done.code == 0 and [call.act for call in done.calls].count("short") == 1, done.said
    assert runs.differences(tmp_path / "run", killer.reference("stopped").folder) == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            Fault(2, f"{errno.ENOSPC}+", "write", "/features.h5.tmp"),
            "cannot make the feature file (No space left on device)",
        ),
        (Fault(5, str(errno.EIO), "write", "/features.h5"), "cannot open the feature file (Input/output error)"),
        (Fault(8, f"{errno.ENOSPC}+", "write", "/features.h5"), "cannot write features (No space left on device)"),
    ],
)
def test_a_feature_file_survives_a_disk_that_fails(killer: Killer, tmp_path: Path, fault: Fault, told: str) -> None:
    """One line is said, nothing is taken for corrupt, and the file serves the run that goes on."""
    run, arguments = tmp_path / "run", killer.options("features")
    done = killer.server.run(arguments, tmp_path, run, fault)
    assert done.code == 1, done.said
    assert told in done.said.splitlines()[-1] and "Traceback" not in done.said
    again = killer.server.run(["--resume", "run"] if runs.is_resumable(run) else arguments, tmp_path, run)
    assert again.code == 0, again.said
    assert not (run / "features.h5.tmp").exists() and "corrupt" not in done.said


def test_what_a_checkpoint_presupposes_is_on_the_disk_before_it_is_moved_in(killer: Killer) -> None:
    """By the order of calls: files' bytes, the folder's names and the log before the rename, the rename before the rest."""
    made = killer.reference("stopped").calls
    moves = [i for i, call in enumerate(made) if call.name == "rename" and call.path in ("/last", "/best")]
    assert len(moves) >= 4
    begin = 0
    for move in moves:
        new = f"/.{made[move].path[1:]}.pycap-new"
        calls = made[begin:move]
        start = max(i for i, call in enumerate(calls) if call.name == "mkdir" and call.path == new)
        rows = [call.name for call in calls[:start] if call.path == "/log.jsonl" and call.name in ("write", "fsync")]
        assert rows[-1:] == ["fsync"], "the log is synced after its last row"
        unsynced: list[str] = []
        for call in calls[start:]:
            if call.name in ("write", "open"):
                unsynced += [call.place]
            elif call.name == "fsync":
                unsynced = [place for place in unsynced if place != call.place]
        assert unsynced == [], f"before {made[move].path} is moved in"
        named = max(i for i, c in enumerate(calls) if c.name in ("open", "rename") and c.path.startswith(f"{new}/"))
        assert ("fsync", new) in [(c.name, c.path) for c in calls[named:]], (
            "the new folder's names after the last of them"
        )
        assert (made[move + 1].name, made[move + 1].path) == ("fsync", ""), "the folder's names after it"
        begin = move + 1


def test_every_other_file_is_synced_before_it_takes_its_name(killer: Killer) -> None:
    made = killer.reference("features").calls
    names = set()
    for i, call in enumerate(made):
        if call.name == "rename" and call.path.count("/") == 1 and not call.path.startswith(("/.", "/last", "/best")):
            names.add(call.path)
            before = [c for c in made[:i] if c.path == f"{call.path}.tmp"]
            assert before[-1].name == "fsync", call
            assert (made[i + 1].name, made[i + 1].path) == ("fsync", ""), call
    assert names >= {
        "/log.jsonl",
        "/vocab.json",
        "/config.yaml",
        "/samples.html",
        "/captions.jsonl",
        "/features.h5",
        "/skipped.jsonl",
    }


def test_the_compiler_is_the_one_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shim.compiler() is None
    monkeypatch.setenv("CC", "/usr/bin/cc -O1")
    assert shim.compiler() == ["/usr/bin/cc", "-O1"]
