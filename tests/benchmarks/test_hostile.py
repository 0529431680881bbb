"""The attacks on `pycap serve` find each fault that is planted in a service's answers, and keep what was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import hostile
from benchmarks.hostile import Attack
from benchmarks.mutations import mutate, seeds
from tests.benchmarks.services import StubService, http

REASON = {"status": "error", "message": "corrupt"}


def attack(stub: StubService, keep: Path, count: int = 48) -> Attack:
    async def run() -> Attack:
        async with stub.running():
            return await hostile.change_images(stub, range(count), 3, keep)  # type: ignore[arg-type]

    return asyncio.run(run())


@pytest.mark.parametrize("answer", [http(200), http(400, REASON), http(413, REASON)])
def test_captions_and_refusals_with_a_reason_are_right(answer: bytes, tmp_path: Path) -> None:
    found = attack(StubService(lambda number: answer), tmp_path)
    assert not found.faults and found.answers.total() == 48 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (http(500, REASON), "answered 500"),
        (http(503, REASON), "answered 503"),
        (http(302, REASON), "answered 302"),
        (http(400, "no"), "answered 400 without a reason"),
        (http(400, {"status": "error", "message": ""}), "answered 400 without a reason"),
        (b"", "Dropped"),
    ],
)
def test_one_wrong_answer_among_many_is_told_with_its_number_and_kept(answer: bytes, told: str, tmp_path: Path) -> None:
    found = attack(StubService(lambda number: answer if number == 30 else http(200)), tmp_path)
    (fault,), (kept,) = found.faults, tmp_path.iterdir()
    assert told in fault and str(kept) in fault
    name, seed, number = kept.stem.split("-")
    assert (name, seed) == ("image", "3") and kept.read_bytes() == mutate(seeds(), 3, int(number)).data


def attack_all(stub: StubService) -> dict[str, Attack]:
    async def run() -> dict[str, Attack]:
        async with stub.running():
            return await hostile.attack_all(stub, 192, 0, None, share=0.01)  # type: ignore[arg-type]

    return asyncio.run(run())


def test_all_attacks_are_made_and_what_stays_open_and_memory_that_grows_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hostile, "CREEP_S", 0.0)
    monkeypatch.setattr(hostile, "_PATIENCE_S", 0.3)
    growing: Callable[[int], float] = lambda asked: 50.0 + 2 * asked  # noqa: E731
    done = attack_all(StubService(lambda number: http(200), files=lambda asked: 5 + (asked > 12), memory=growing))
    assert len(done) == 7 and all(each.answers.total() > 0 for each in done.values())
    faults = [fault for each in done.values() for fault in each.faults]
    assert any("memory grew from" in fault for fault in faults)
    assert any("6 files are open (5 before)" in fault for fault in faults)
    assert any("a slow connection is open after" in fault for fault in faults)
