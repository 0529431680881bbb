"""A side's process: the fastest way is taken, warm-ups are not counted, and its end is told however it comes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from benchmarks.sides import SAMPLE, Unavailable, Work, distance, load, sample
from benchmarks.worker import Remote, SideError, Worker
from tests.benchmarks.stubs import CASE


class TwoWays:
    """A side with a slow and a fast way; log: what ran and what was closed."""

    def __init__(self, seconds: dict[str, float], fresh: bool = False) -> None:
        self.seconds, self.fresh = seconds, fresh
        self.log: list[str] = []

    def describe(self) -> str:
        return "two ways"

    def prepare(self, case: Any) -> dict[str, Callable[[], Work]]:
        return {way: lambda way=way: self._make(way) for way in self.seconds}

    def _make(self, way: str) -> Work:
        def run() -> str:
            self.log.append(way)
            time.sleep(self.seconds[way])
            return way

        timed = (lambda result: 42.0) if self.fresh else None
        probe = lambda: self.log.append(f"probe {way}")  # noqa: E731
        outputs = lambda result: {"way": np.float32([len(result)])}  # noqa: E731
        return Work(run, outputs, lambda: self.log.append(f"close {way}"), timed, probe)

    def ceilings(self) -> dict[str, Callable[[], Any]]:
        return {"copy": lambda: time.sleep(0.002)}


@pytest.mark.parametrize("order", [("fast", "slow"), ("slow", "fast")])
def test_the_fastest_way_counts(order: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    side = TwoWays(dict.fromkeys(order, 0.0))
    made = side._make

    def make(way: str) -> Work:
        work = made(way)
        work.probe = lambda: time.sleep(0.03 if way == "slow" else 0.001)
        return work

    monkeypatch.setattr(side, "_make", make)
    worker = Worker(side)
    way, seconds = worker.prepare(CASE)
    assert way == "fast" and seconds < 0.03
    assert worker.outputs()["way"] == [4.0]
    assert side.log[-1] == "fast", "and is the one that is ready"
    worker.release()
    assert side.log.count("close slow") == 1 and side.log[-1] == "close fast"


def test_a_turn_warms_up_without_counting_it() -> None:
    side = TwoWays({"only": 0.0})
    worker = Worker(side)
    worker.prepare(CASE)
    side.log.clear()
    assert len(worker.turn(3)) == 3
    assert side.log == ["probe only", "only", "only", "only"]


def test_a_fresh_process_brings_its_own_time() -> None:
    side = TwoWays({"only": 0.0}, fresh=True)
    worker = Worker(side)
    assert worker.prepare(CASE) == ("only", 42.0)
    side.log.clear()
    assert worker.turn(2) == [42.0, 42.0]
    assert side.log == ["only", "only"]


def test_ceilings() -> None:
    assert 0.002 <= Worker(TwoWays({})).ceilings()["copy"] < 0.1


def answer(connection: Connection, replies: list[Any]) -> None:
    """A child that answers with `replies`, one a message, and exits with status 3 when told to."""
    for reply in replies:
        if reply == "exit":
            os._exit(3)
        connection.send(reply)
        if connection.recv() is None:
            return


def test_answers_and_reasons_come_through_the_pipe() -> None:
    replies = [("ok", "ready"), ("unavailable", "no kernel"), ("error", "Traceback"), "exit"]
    remote = Remote("stub", answer, replies)
    try:
        assert remote.receive() == "ready"
        with pytest.raises(Unavailable, match="no kernel"):
            remote.call("prepare")
        with pytest.raises(SideError, match="stub: Traceback"):
            remote.call("turn", 1)
        with pytest.raises(SideError, match="status 3"):
            remote.call("turn", 1)
    finally:
        remote.close()
    remote = Remote("stub", answer, [("ok", "ready")])
    assert remote.receive() == "ready"
    remote.close()


def test_a_missing_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="openvino is not installed"):
        load("openvino", 1)


def test_samples_are_few_and_the_same_on_every_side() -> None:
    array = np.arange(3 * SAMPLE + 5, dtype=np.float64)
    taken = sample(array)
    assert SAMPLE / 2 < taken.size <= SAMPLE and taken.dtype == np.float32
    assert taken[:3].tolist() == [0.0, 4.0, 8.0]
    assert sample(array[:10]).tolist() == list(range(10))


def test_distance_is_that_of_the_worst_output() -> None:
    ours = {"a": np.float32([1, 0]), "b": np.float32([3, 4])}
    theirs = {"a": np.float32([1, 0]), "b": np.float32([3, 4.5])}
    assert distance(ours, theirs) == pytest.approx(0.5 / np.hypot(3, 4.5))
    with pytest.raises(ValueError, match="outputs"):
        distance(ours, {"a": ours["a"]})
