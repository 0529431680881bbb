"""A real `pycap serve` process under requests that mean no good, and under load: it answers with a reason, and lives on.

`python -m benchmarks.hostile` is the same at full length: 10,000 changed images, 300 slow connections, 500 that leave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
if not Path("/proc/self/status").exists():
    pytest.skip("files that a process has open are counted in /proc", allow_module_level=True)

from benchmarks import hostile, serving
from benchmarks.hostile import Attack
from benchmarks.http_client import predict_request
from benchmarks.mutations import seeds
from benchmarks.service import Service
from tests.train.conftest import _selection, data, trained

__all__ = ["_selection", "data", "trained"]


@pytest.fixture(scope="module")
def service(trained: Path) -> Iterator[Service]:
    limits = ("--max-bytes", "200000", "--max-pixels", "1000000", "--threads", os.environ["OMP_NUM_THREADS"])
    with Service(trained, limits) as running:
        asyncio.run(hostile.alive(running))
        yield running
    assert not running.tracebacks


ATTACKS: dict[str, Callable[[Service], Awaitable[Attack]]] = {
    "images": lambda service: hostile.change_images(service, range(400), 0),
    "forms": lambda service: hostile.change_forms(service, range(200), 0),
    "garbage": lambda service: hostile.send_garbage(service, range(64), 0),
    "gone": lambda service: hostile.leave(service, 60, lambda whole: b""),
    "gone in the upload": lambda service: hostile.leave(service, 60, lambda whole: whole[: len(whole) // 2]),
    "gone before the answer": lambda service: hostile.leave(service, 60, lambda whole: whole),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_service_answers_and_holds_nothing_afterwards(service: Service, name: str) -> None:
    async def attack() -> Attack:
        files = service.usage().files
        found = await ATTACKS[name](service)
        await hostile.settled(service, files)
        await hostile.alive(service)
        return found

    found = asyncio.run(attack())
    assert not found.faults
    assert found.answers.total() == {"images": 400, "forms": 200, "garbage": 64}.get(name, 60)
    if name in ("images", "forms"):  # some are images and forms all the same, most are not
        assert {"200", "400", "415"} <= set(found.answers)


def test_others_are_answered_beside_connections_that_send_a_byte_at_a_time(service: Service) -> None:
    async def attack() -> tuple[int, int]:
        slow = [await hostile.Connection.open(service.address) for _ in range(100)]
        whole = predict_request(seeds()["plain.jpeg"], host=service.host)
        for at in range(20):
            for number, connection in enumerate(slow):
                connection.send(whole[at + 200 * (number % 2) :][:1] if at else whole[: 1 + 200 * (number % 2)])
        await hostile.alive(service)
        before = service.usage().files
        for connection in slow:
            connection.abort()
        return before, len(slow)

    held, slow = asyncio.run(attack())
    asyncio.run(hostile.settled(service, held - slow))


def test_a_load_is_batched_and_measured(service: Service) -> None:
    load = asyncio.run(serving.ask(service, list(seeds().values()), 12, 0.5, 0.1))
    record = load.record()
    assert not load.faults and set(record["statuses"]) == {"200"}
    assert 1 < record["batches"]["images_a_batch"] <= 12 and record["captions_per_s"] > 0
    assert 20 < record["memory_mib"]["first_third"] <= record["memory_mib"]["peak"]
