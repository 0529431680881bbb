"""Two hundred files that nobody meant, and the hostile ones, for every reader; and the watch finds what is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import child, planted, watch
from tests.fuzz.binary_readers import BINARY
from tests.fuzz.target import Target
from tests.fuzz.text_readers import TEXT
from tests.fuzz.weight_readers import WEIGHTS

RUNS = 200


@pytest.mark.parametrize("targets", [TEXT, (*BINARY, *WEIGHTS)], ids=["text", "binary"])
def test_readers_give_a_clear_error_or_what_is_right(targets: tuple[Target, ...], tmp_path: Path) -> None:
    named = {target.name: target for target in targets}
    for engine in ("hostile", "hypothesis"):
        for name, found in watch.fuzz(named, engine, RUNS, 0, tmp_path / engine, tmp_path / "kept").items():
            assert not found.faults, f"{name}: " + "\n\n".join(f"{why}\n{kept}" for why, kept in found.faults[:5])
            wanted = len(named[name].hostile()) if engine == "hostile" else RUNS
            assert found.inputs == wanted == found.accepted + found.refused
            assert engine == "hostile" or min(found.accepted, wanted) > 0, f"{name}: nothing that was changed was read"


def test_the_watch_finds_what_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault once, with the file that shows it, and the files before and behind it are counted as what they are."""
    monkeypatch.setattr(watch, "PATIENCE_S", 0.5)
    wall = {name: 3.0 if name == "sleeps" else 60.0 for name in planted.TARGETS}
    for names in (["sleeps"], [name for name in planted.TARGETS if name != "sleeps"]):
        monkeypatch.setattr(watch, "WALL_S", wall[names[0]])
        found = watch.fuzz(
            {name: planted.TARGETS[name] for name in names}, "hostile", 0, 0, tmp_path / names[0], tmp_path / "kept",
            "tests.fuzz.planted",
        )  # fmt: skip
        for name, (_, wanted) in planted.FAULTS.items():
            if name not in names:
                continue
            ((why, kept),) = found[name].faults
            assert wanted in why and kept.read_bytes() == planted.BAD, name
            ended = name in ("null", "leaves", "writes")
            assert (found[name].crashes, found[name].hangs) == (ended, name in ("spins", "sleeps")), name
            accepted = 3 if name == "grows" else 2  # it was read, though at too high a price
            assert (found[name].inputs, found[name].accepted, found[name].refused) == (4, accepted, 1), name
    assert [(why[:33], kept.read_bytes()) for why, kept in found["unsound"].faults] == [
        ("the sound file refused was refuse", planted.CLEAR), ("the sound file other is read as a", planted.GOOD),
    ]  # fmt: skip


def test_a_reader_answers_for_no_memory_but_its_own(tmp_path: Path) -> None:
    """What made the input took 96 MiB and gave them back, or keeps them; the reader that takes as many is found after it."""
    watched = child.Watched(tmp_path, planted.TARGETS["grows"])
    watched(planted.GOOD)
    kept = [bytes(1 << 10) for _ in range(96 << 10)]
    watched(planted.GOOD)
    del kept
    watched(planted.GOOD)
    assert not child.failures(tmp_path) and child.counts(tmp_path).peak_mib < 8
    watched(planted.BAD)
    assert ["MiB, and may take 64" in found["why"] for found in child.failures(tmp_path)] == [True]


def test_atheris_finds_what_is_planted(tmp_path: Path) -> None:
    """It is given the hostile files, too, and comes to its end with as many inputs as it was asked for."""
    pytest.importorskip("atheris", reason="make fuzz installs it")
    targets = {"raises": planted.TARGETS["raises"]}
    found = watch.fuzz(targets, "atheris", 60, 0, tmp_path / "scratch", tmp_path / "kept", "tests.fuzz.planted")[
        "raises"
    ]
    assert found.inputs == 60 and found.accepted + found.refused + len(found.faults) == 60
    assert {kept.read_bytes() for why, kept in found.faults if "KeyError" in why} == {planted.BAD}
