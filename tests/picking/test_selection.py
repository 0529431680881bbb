"""A selection goes on: decisions are found again by their images, whatever the order, the folders or the file's place."""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pycap.data import DataError
from pycap.data.datasets import parse
from pycap.data.picks import listed
from pycap.picking.images import ImageFolder
from pycap.picking.journal import Journal, PicksError
from pycap.picking.order import base
from pycap.picking.results import Results
from pycap.picking.selection import Conflict, NoPair, Selection
from tests.picking import pairs


@contextmanager
def selecting(
    place: Path, order: str = "logprob", images: str = "target", picks: str = "picks.jsonl", **options: str
) -> Iterator[Selection]:
    """A selection of `captions.jsonl` in a place."""
    results = Results(place / "captions.jsonl", ImageFolder(place / images))
    with Journal(place / picks) as journal:
        yield Selection(results, base(results, order), journal, 5, **options)
    results.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    pairs.write(tmp_path / "captions.jsonl", [pairs.row(number) for number in range(pairs.COUNT)])
    pairs.images(tmp_path)
    return tmp_path


def decided(selection: Selection) -> dict[str, str]:
    """{file name: decision} as the grid shows it."""
    return {pair["file_name"]: pair["decision"] for pair in selection.shown(0, 99, "all")[0] if pair["decision"]}


def trained(file: Path) -> dict[str, list[str]]:
    """{path: captions} of what training reads."""
    return {os.path.realpath(entry.path): list(entry.captions) for entry in listed(file, Path("nowhere")).entries}


@pytest.mark.parametrize("seed", range(6))
def test_after_any_sequence_the_file_says_what_the_selection_does(
    place: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Decided, decided anew, taken back, closed, opened in another order: held against a pile of decisions an image."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    rng = random.Random(seed)
    piles: dict[str, list[tuple[int, str, str]]] = {}
    for turn in range(6):
        with selecting(place, rng.choice(("logprob", "random"))) as selection:
            every = {pair["position"]: pair for pair in selection.shown(0, 99, "all")[0]}
            for step in range(12):
                position = rng.choice(sorted(every)[:5])
                pile = piles.setdefault(every[position]["file_name"], [])
                if rng.random() < 0.6:
                    decision, caption = rng.choice(("accept", "reject", "skip")), rng.choice((None, "my own words"))
                    pair = selection.decide(position, decision, 2, caption, again=True)
                    said = caption or pair["captions"][1]["caption"]
                    if not pile or (decision, said if decision == "accept" else pile[-1][2]) != pile[-1][1:]:
                        pile.append((12 * turn + step, decision, said))
                elif rng.random() < 0.5 and any(piles.values()):  # the latest of all
                    selection.undo(None)
                    max((each for each in piles.values() if each), key=lambda each: each[-1]).pop()
                elif pile:
                    selection.undo(position)
                    pile.pop()
                standing = {name: each[-1] for name, each in piles.items() if each}
                assert decided(selection) == {name: decision for name, (_, decision, _) in standing.items()}
            state, picks = selection.state(), selection.journal.path
            counts = collections.Counter(decision for _, decision, _ in standing.values())
            assert [state[f"{name}ed"] for name in ("accept", "reject")] == [counts["accept"], counts["reject"]]
            accepted = {str(place / n): [said] for n, (_, decision, said) in standing.items() if decision == "accept"}
            if accepted:
                assert trained(picks) == accepted
            elif picks.stat().st_size:
                with pytest.raises(DataError, match="none accepted"):
                    trained(picks)


def test_decisions_are_found_again_in_another_order(place: Path) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept", 2)
        selection.decide(3, "reject")
        selection.decide(5, "skip")
        before = decided(selection)
    with selecting(place, "random") as selection:
        assert decided(selection) == before and len(before) == 3
        state = selection.state()
        assert (state["accepted"], state["rejected"], state["skipped"]) == (1, 1, 1)
        first = next(pair for pair in selection.shown(0, 99, "accept")[0])
        assert first["chosen"] == {"rank": 2, "caption": "number 0", "edited": False} and first["position"] != 0
        assert len(selection.following(-1, 99)) == 10
        selection.undo(None)
        assert decided(selection) == {name: made for name, made in before.items() if made != "skip"}
    assert selection.warnings == []


def test_picks_below_whose_folder_the_images_are_can_be_moved_with_them(place: Path) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept")
    assert pairs.lines(place / "picks.jsonl")[0]["file_name"] == "target/0/00.png"
    moved = place / "moved"
    moved.mkdir()
    for name in ("captions.jsonl", "picks.jsonl", "target"):
        shutil.move(place / name, moved / name)
    with selecting(moved) as selection:
        assert decided(selection) == {"target/0/00.png": "accept"}
    assert trained(moved / "picks.jsonl") == {str(moved / "target/0/00.png"): ["a dog runs"]}


def test_picks_elsewhere_name_images_by_their_whole_paths(place: Path) -> None:
    (place / "else").mkdir()
    with selecting(place, picks="else/picks.jsonl") as selection:
        selection.decide(0, "accept")
    assert pairs.lines(place / "else/picks.jsonl")[0]["file_name"] == str(place / "target/0/00.png")
    assert trained(place / "else/picks.jsonl") == {str(place / "target/0/00.png"): ["a dog runs"]}
    with selecting(place, picks="else/picks.jsonl") as selection:
        assert decided(selection) == {"target/0/00.png": "accept"}


def test_the_same_folder_by_another_way_is_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept")
    os.symlink(place / "target", place / "link")
    with selecting(place, images="link") as selection:
        assert len(decided(selection)) == 1
    with selecting(place, images=".") as selection:
        assert len(decided(selection)) == 1
    monkeypatch.chdir(place)
    with selecting(Path()) as selection:
        assert len(decided(selection)) == 1
        selection.decide(1, "accept")
    assert {name: len(said) for name, said in trained(Path("picks.jsonl")).items()} == {
        str(place / "target/0/00.png"): 1,
        str(place / "target/1/07.png"): 1,
    }


def test_training_reads_what_was_accepted_and_nothing_else(place: Path) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept", 1, "a dog  runs fast ")
        selection.decide(1, "accept", 2)
        selection.decide(2, "accept")
        selection.decide(2, "reject", again=True)
        selection.decide(3, "reject")
        selection.decide(4, "skip")
        selection.decide(5, "accept")
        selection.undo(5)
        selection.decide(6, "reject")
        selection.decide(6, "accept", 2, "my own words", again=True)
        selection.decide(7, "accept", 1)
        selection.decide(7, "accept", 2, again=True)
        selection.undo(7)
        names = [pair["file_name"] for pair in selection.shown(0, 99, "accept")[0]]
    rows = pairs.lines(place / "picks.jsonl")
    assert [(row["edited"], row["logprob"], row["rank"]) for row in rows[:2]] == [(True, None, 1), (False, -9.5, 2)]
    with open(place / "picks.jsonl", "a") as file:
        file.write(json.dumps({**rows[0], "decision": "undo"})[:-4])  # torn: it does not count
    said = ["a dog runs fast", rows[1]["caption"], "my own words", rows[-3]["caption"]]
    assert trained(place / "picks.jsonl") == {str(place / name): [text] for name, text in zip(names, said, strict=True)}
    (problem,) = listed(place / "picks.jsonl", place).problems
    assert "cut short: this decision was never confirmed" in problem["reason"]


def test_results_of_another_run_are_refused_by_name(place: Path) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept", 1, "my own words")
        selection.decide(1, "reject")
    said = [pairs.row(number, beams=[{"caption": "a new one", "logprob": -1}]) for number in range(pairs.COUNT)]
    pairs.write(place / "captions.jsonl", said)
    before = (place / "picks.jsonl").read_bytes()
    with pytest.raises(PicksError) as refused, selecting(place):
        pass
    for part in (
        "picks.jsonl: was begun with the captions of another run than",
        "1 of 2",
        "'two dogs'",
        "a new one",
        "--output",
    ):
        assert part in str(refused.value), part
    assert (place / "picks.jsonl").read_bytes() == before


def test_picks_of_other_images_are_refused_and_of_some_told(place: Path) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept")
        selection.decide(1, "reject")
    pairs.write(place / "captions.jsonl", [pairs.row(number) for number in range(1, pairs.COUNT)])
    with selecting(place) as selection:
        (warning,) = selection.warnings
        assert "1 of its decided images are not in" in warning and "target/0/00.png" in warning
        assert selection.state()["accepted"] == 1 and decided(selection) == {"target/1/07.png": "reject"}
        assert selection.undo(None)["file_name"] == "target/1/07.png"
        with pytest.raises(Conflict, match="nothing is decided yet"):
            selection.undo(None)
    pairs.write(place / "captions.jsonl", [pairs.row(5)])
    with pytest.raises(PicksError, match="none of its 1 decided images is in"), selecting(place):
        pass


def test_another_checkpoint_with_the_same_captions_is_told(place: Path) -> None:
    with selecting(place, checkpoint="runs/a/best") as selection:
        selection.decide(0, "accept")
    with selecting(place) as selection:
        assert selection.warnings == []
    with selecting(place, checkpoint="runs/b/best") as selection:
        (warning,) = selection.warnings
    assert "was begun with captions of runs/a/best, and these are of runs/b/best" in warning
    pairs.write(place / "captions.jsonl", [pairs.row(number, checkpoint="runs/c") for number in range(pairs.COUNT)])
    with selecting(place, checkpoint="runs/b/best") as selection:
        selection.decide(1, "accept")
    assert [row["checkpoint"] for row in pairs.lines(place / "picks.jsonl")] == ["runs/a/best", "runs/c"]


def test_pairs_whose_image_is_missing_are_passed_over(place: Path) -> None:
    os.remove(place / pairs.name(0))
    with selecting(place) as selection:
        assert len(selection) == selection.state()["total"] == pairs.COUNT - 1
        assert [pair["position"] for pair in selection.following(-1, 99)] == list(range(1, 12))
        assert selection.shown(0, 99, "all")[1] == selection.shown(0, 99, "open")[1] == 11
        for call in (lambda: selection.decide(0, "accept"), lambda: selection.image(0)):
            with pytest.raises(NoPair, match="target/0/00.png: is not in"):
                call()
        os.remove(place / pairs.name(7))
        with pytest.raises(NoPair, match="target/1/07.png: is no longer in"):
            selection.image(1)
    assert not (place / "picks.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position": 12}, "pair 12: there are 12"),
        ({"position": -1}, "pair -1"),
        ({"decision": "undo"}, "decision 'undo': must be one of accept, reject, skip"),
        ({"rank": 0}, "rank 0: target/0/00.png has 2 captions"),
        ({"rank": 3}, "rank 3"),
        ({"caption": " . "}, "must have a word"),
        ({"caption": "a" * 1001}, "1000 letters at most"),
    ],
)
def test_what_cannot_be_decided_is_refused_with_its_reason(place: Path, change: dict[str, object], said: str) -> None:
    with selecting(place) as selection, pytest.raises(NoPair, match=said):
        selection.decide(**{"position": 0, "decision": "accept", **change})
    assert not (place / "picks.jsonl").exists()


def test_a_skipped_pair_is_decided_without_more_ado(place: Path) -> None:
    with selecting(place) as selection:
        for decision in ("skip", "skip", "reject", "reject"):
            assert selection.decide(0, decision)["decision"] == decision
        with pytest.raises(Conflict, match="target/0/00.png: another tab has decided it: reject"):
            selection.decide(0, "skip")
    assert [row["decision"] for row in pairs.lines(place / "picks.jsonl")] == ["skip", "reject"]


def test_a_page_of_another_order_decides_nothing(place: Path) -> None:
    with selecting(place) as selection:
        with pytest.raises(Conflict, match="pair 0 is target/0/00.png now, not target/1/07.png: reload the page"):
            selection.decide(0, "accept", file_name="target/1/07.png")
        assert selection.decide(0, "accept", file_name="target/0/00.png")["decision"] == "accept"


def test_what_cannot_be_written_is_not_decided(place: Path) -> None:
    with selecting(place) as selection:
        selection.decide(0, "accept")
        (place / "picks.jsonl").unlink()
        with pytest.raises(PicksError, match="was moved, removed or replaced"):
            selection.decide(1, "accept")
        with pytest.raises(PicksError, match="was moved, removed or replaced"):
            selection.undo(0)
        assert selection.state()["accepted"] == 1 and decided(selection) == {"target/0/00.png": "accept"}
        assert [pair["position"] for pair in selection.following(-1, 2)] == [1, 2]


def test_pairs_that_stand_in_the_file_by_hand_stay_pairs(place: Path) -> None:
    by_hand = [
        {"file_name": "target/0/00.png", "caption": "by hand"},
        {"file_name": "target/0/02.png", "caption": "also"},
    ]
    pairs.write(place / "picks.jsonl", by_hand)
    with selecting(place) as selection:
        assert selection.state()["accepted"] == 0 and decided(selection) == {}
        selection.decide(0, "accept")
        selection.decide(1, "reject")
    assert trained(place / "picks.jsonl") == {
        str(place / "target/0/00.png"): ["by hand", "a dog runs"],
        str(place / "target/0/02.png"): ["also"],
    }
    assert parse("selected", place, place / "picks.jsonl")[2].path == place / "picks.jsonl"


def test_the_rate_is_that_of_the_last_two_minutes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("pycap.picking.selection.time.monotonic", lambda: now[0])
    with selecting(place) as selection:
        for position in range(5):
            selection.decide(position, "accept")
            now[0] += 3
        assert selection.state()["per_minute"] == 60 * 4 / 15
        now[0] += 121
        assert selection.state()["per_minute"] == 0
    assert np.array_equal(np.sort(selection._rows), np.arange(pairs.COUNT))
