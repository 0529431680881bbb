"""A few kills of each source, and each resumed run against one left alone. `python -m tests.faults.kills` makes a hundred."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.faults import runs
from tests.faults.kills import Killer
from tests.faults.shim import Fault
from tests.train.runs import lines

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("name", "sources"), [("stopped", ("call", "moment", "call")), ("features", ("process", "call", "call"))]
)
def test_killed_and_resumed_a_run_is_the_same_bit_for_bit(killer: Killer, name: str, sources: tuple[str, ...]) -> None:
    before = killer.tally.total
    killer.kill_and_compare(name, itertools.cycle(sources), lambda: killer.tally.total >= before + len(sources))
    assert not killer.tally.problems
    assert killer.tally.total >= before + 1


# Each of these has been wrong once.
CASES = {
    "no step yet": Fault(1, "before", "write", "/log.jsonl"),
    "logged, not saved": Fault(1, "before", "open", "/samples.html"),  # a validation, whose row stands in the log
    "best, not last": Fault(1, "after", "rename", "/best"),
    "last moved aside": Fault(1, "after", "rename", "/.last.pycap-old"),
    "validated at the last step": Fault(1, "before", "open", "/captions.jsonl"),
    "no folder yet": Fault(1, "after", "open", "/log.jsonl"),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_where_it_once_mattered(killer: Killer, tmp_path: Path, case: str) -> None:
    reference = killer.reference("stopped")
    arguments, fault = killer.options("stopped"), CASES[case]
    done = killer.server.run(arguments, tmp_path, tmp_path / "run", fault)
    assert done.was_killed, done.said
    if case != "no folder yet":
        assert runs.is_resumable(tmp_path / "run")
        arguments = ["--resume", "run"]
    done = killer.server.run(arguments, tmp_path, tmp_path / "run")
    assert done.code == 0, done.said
    assert runs.differences(tmp_path / "run", reference.folder) == []


def test_what_a_kill_left_beside_the_last_checkpoint_is_tidied_by_a_resume_that_saves_none(
    killer: Killer, tmp_path: Path
) -> None:
    reference, run = killer.reference("features"), tmp_path / "run"
    moves = [call for call in reference.calls if (call.name, call.path) == ("rename", "/last")]
    done = killer.server.run(killer.options("features"), tmp_path, run, Fault(len(moves), "after", "rename", "/last"))
    assert done.was_killed and (run / ".last.pycap-old").is_dir() and (run / "last").is_dir()
    done = killer.server.run(["--resume", "run"], tmp_path, run)
    assert done.code == 0, done.said
    assert not [call for call in done.calls if call.name == "rename" and call.path == "/last"]  # it saved none
    assert runs.differences(run, reference.folder) == []  # of names too


def test_an_alarm_before_the_kill_is_not_told_again(killer: Killer, tmp_path: Path) -> None:
    reference, run = killer.reference("wild"), tmp_path / "run"
    assert [row["alarm"] for row in lines(reference.folder / "log.jsonl") if row["kind"] == "alarm"] == ["jumping loss"]
    done = killer.server.run(killer.options("wild"), tmp_path, run, Fault(3, "after", "rename", "/last"))
    assert done.was_killed and any(row["kind"] == "alarm" for row in lines(run / "log.jsonl"))
    done = killer.server.run(["--resume", "run"], tmp_path, run)
    assert done.code == 0, done.said
    assert runs.differences(run, reference.folder) == []


def test_a_killed_start_leaves_nothing_that_the_next_one_stumbles_over(killer: Killer, tmp_path: Path) -> None:
    arguments, run = killer.options("stopped"), tmp_path / "run"
    assert killer.server.run(arguments, tmp_path, run, Fault(1, "after", "rename", "/config.yaml")).was_killed
    assert not runs.is_resumable(run)
    done = killer.server.run(["--resume", "run"], tmp_path, run)
    assert done.code == 1 and "run was stopped before its first checkpoint" in done.said.splitlines()[-1]
    done = killer.server.run(arguments, tmp_path, run)
    assert done.code == 0 and "held an earlier run; it is now" in done.said
    assert runs.differences(run, killer.reference("stopped").folder) == []


def test_the_comparison_sees_a_bit(killer: Killer, tmp_path: Path) -> None:
    """The proof would prove nothing if it could not fail."""
    whole = killer.reference("stopped").folder
    cwd = tmp_path / "again"
    cwd.mkdir()
    assert killer.server.run(killer.options("stopped"), cwd, cwd / "run").code == 0
    run = cwd / "run"
    assert runs.differences(run, whole) == []
    (run / ".last.pycap-old").mkdir()
    log = (run / "log.jsonl").read_text("utf-8")
    (run / "log.jsonl").write_text(log + log.splitlines()[-1] + "\n", "utf-8")
    (run / "samples.html").write_text((run / "samples.html").read_text("utf-8").replace("<li>", "<li> ", 1), "utf-8")
    found = runs.differences(run, whole)
    assert [text.split(":")[0] for text in found] == [".last.pycap-old", "log.jsonl", "samples.html"]
    assert f"{len(lines(whole / 'log.jsonl')) + 1} rows, not" in found[1]
    arrays = load_file(whole / "last" / "model.safetensors")
    name = max(arrays, key=lambda key: arrays[key].size)
    arrays[name].view(np.uint8).reshape(-1)[5] ^= 1
    save_file(arrays, tmp_path / "model.safetensors")
    mine, theirs = (
        runs._arrays(path) for path in (tmp_path / "model.safetensors", whole / "last" / "model.safetensors")
    )
    assert [key for key in mine if mine[key] != theirs[key]] == [name]
