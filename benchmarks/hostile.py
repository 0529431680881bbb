"""Requests that mean no good, against a real `pycap serve`: each is answered with a reason, and the service lives on.

    python -m benchmarks.hostile [--mutations 10000] [--seed 0] [--checkpoint CHECKPOINT] [--out FILE]

Images made wrong at random (`benchmarks.mutations`), forms and heads of HTTP made wrong, 300 connections that send a byte at a
time, 500 clients that connect and leave, 500 that leave in the middle of an upload and 500 that do not wait for the answer. A
changed image is answered 200 (it may still be an image) or 4xx with a reason; no answer is 5xx, no connection ends without
one, nothing is left open, and memory does not grow. Status 1 where one of this does not hold: what was sent is kept in
`--keep`, and its number beside the seed makes it again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import bulk, machine
from benchmarks.http_client import BOUNDARY, Answer, Client, Connection, Dropped, get, multipart, post, predict_request
from benchmarks.mutations import mutate, seeds
from benchmarks.service import ROOT, Service, ServiceError
from pycap.data.disk import write_whole

MOST_GROWTH = 0.05  # of the memory, from the second third of the changed images to the last
AT_ONCE = 8
RESULTS = ROOT / "benchmarks/results/hostile.json"
_PATIENCE_S = 20.0  # for an answer, and until what was opened is closed again
CREEP_S = 12.0  # the service has patience for 10 seconds
_GARBAGE_S = 0.25  # an unfinished head has no answer: the client leaves


# Odd forms: boundaries, file names, bytes within parts' headers, content types, addresses.
BOUNDARIES = (BOUNDARY, BOUNDARY, "", "-", "x" * 70, "x" * 300, 'a"b', "--", "a b", "\u00fc")
NAMES = ("image.jpg", "../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "", "a" * 5000, "\0", 'a"; name="b', "%0d%0a")
WITHIN = (b"\r\n", b"\r\n\r\n", b"\x00", b"a" * 300, b"Content-Type: x\r\n", b'name="image"')
_FORM = "multipart/form-data; boundary={}"
KINDS = (
    _FORM, _FORM, _FORM, _FORM, "multipart/form-data", "multipart/mixed; boundary={}", "text/plain", "image/jpeg", "", ";;;=",
    'multipart/form-data; boundary="{}', "multipart/form-data; boundary*=utf-8''{}",
)  # fmt: skip
_QUERIES = ("", "", "?beam_size=0", "?beam_size=x", "?beam_size=1&beam_size=2", "?image=%00")
PATHS = tuple(f"/model/predict{query}" for query in _QUERIES)
# Odd heads of requests.
METHODS = ("GET", "POST", "TRACE", "CONNECT", "\0", "G" * 9000)
TARGETS = (
    "/", "*", "//", "/../../etc/passwd", "/%2e%2e/%00", "http://x/", "/static/..%2f..%2fpyproject.toml", "/" + "a" * 70_000,
    "/examples/-1", "/examples/" + "9" * 99,
)  # fmt: skip
HEADERS = (
    b"Content-Length: -1", b"Content-Length: 1e9", b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip", b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Expect: 100-continue",
    b"Upgrade: websocket\r\nConnection: Upgrade", b"Host: evil.example", b"a: " + b"b" * 100_000, b"a\x00b: c",
    b" folded: x", b"\r\n".join(b"h%d: x" % number for number in range(2000)),
)  # fmt: skip


@dataclass
class Attack:
    """What came of one kind of request. answers: how many of each, by status, or by what happened instead."""

    keep: Path | None
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def fault(self, name: str, what: str, sent: bytes) -> None:
        """Note it, and keep what was sent."""
        kept = ""
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            file = self.keep / f"{name}.bin"
            file.write_bytes(sent)
            kept = f"; kept in {file}"
        self.faults.append(f"{name}: {what}{kept}")

    def record(self) -> dict[str, Any]:
        return {"requests": self.answers.total(), "answers": dict(sorted(self.answers.items()))}


def wrong(answer: Answer) -> str:
    """What is wrong with an answer to a changed image; empty where nothing is."""
    if answer.status == 200:
        return ""
    if not 400 <= answer.status < 500:
        return f"answered {answer.status} {answer.body[:200]!r}"
    try:
        told = json.loads(answer.body)
        reasoned = told["status"] == "error" and bool(told["message"])
    except (ValueError, KeyError, TypeError):
        reasoned = False
    return "" if reasoned else f"answered {answer.status} without a reason: {answer.body[:200]!r}"


async def change_images(service: Service, numbers: range, seed: int, keep: Path | None = None) -> Attack:
    """Each of the changed images once, some at a time."""
    attack, images, left = Attack(keep), seeds(), iter(numbers)

    async def work() -> None:
        async with Client(service.address, _PATIENCE_S) as client:
            for number in left:
                mutant = mutate(images, seed, number)
                request = predict_request(mutant.data, host=service.host)
                try:
                    answer = await client.ask(request)
                except (OSError, TimeoutError) as error:
                    attack.answers[type(error).__name__] += 1
                    attack.fault(f"image-{seed}-{number}", f"{mutant.how}: {error!r}", mutant.data)
                    continue
                attack.answers[str(answer.status)] += 1
                if found := wrong(answer):
                    attack.fault(f"image-{seed}-{number}", f"{mutant.how}: {found}", mutant.data)
                if number % 16 == 0:
                    attack.memory_mib.append(service.usage().rss_mib)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return attack


async def change_forms(service: Service, numbers: range, seed: int, keep: Path | None = None) -> Attack:
    """A sound image in forms whose bytes, boundary or headers are wrong; the length that the head announces is right."""
    attack, image = Attack(keep), seeds()["plain.jpeg"]
    async with Client(service.address, _PATIENCE_S) as client:
        for number in numbers:
            request = _form(image, random.Random(f"form {seed} {number}"), service.host)
            try:
                answer = await client.ask(request)
            except (OSError, TimeoutError) as error:
                attack.answers[type(error).__name__] += 1
                attack.fault(f"form-{seed}-{number}", repr(error), request)
                continue
            attack.answers[str(answer.status)] += 1
            if found := wrong(answer):
                attack.fault(f"form-{seed}-{number}", found, request)
    return attack


def _form(image: bytes, rng: random.Random, host: str) -> bytes:
    """A request with a form in which something is wrong, or at least odd."""
    boundary = rng.choice(BOUNDARIES)
    body = bytearray(multipart(image, rng.choice(NAMES), rng.choice(("image/jpeg", "text/html", "")), boundary))
    head_end = body.index(b"\r\n\r\n")
    for _ in range(rng.randrange(3)):
        at = rng.randrange(head_end)
        match rng.randrange(4):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                del body[at : at + rng.randrange(1, 12)]
            case 2:
                body[at:at] = rng.choice(WITHIN)
            case _:
                body += bytes(body[: rng.randrange(len(body))]) * rng.choice((1, 12))
    if rng.randrange(4) == 0:
        del body[rng.randrange(len(body)) :]
    return post(bytes(body), rng.choice(KINDS).format(boundary), rng.choice(PATHS), host=host)


async def send_garbage(service: Service, numbers: range, seed: int, keep: Path | None = None) -> Attack:
    """Bytes that are no HTTP, or nearly some. Any answer below 500 will do, an ended connection, and none at all."""
    attack, sound, left = Attack(keep), get("/health", host=service.host), iter(numbers)

    async def work() -> None:
        for number in left:
            sent = _garbage(sound, random.Random(f"garbage {seed} {number}"))
            connection = await Connection.open(service.address, _GARBAGE_S)
            try:
                answer = await connection.ask(sent)
            except (Dropped, ConnectionError):
                attack.answers["ended"] += 1
            except TimeoutError:
                attack.answers["waiting"] += 1
            except (ValueError, IndexError) as error:  # no HTTP came back
                attack.fault(f"garbage-{seed}-{number}", f"the answer is no HTTP: {error!r}", sent)
            else:
                attack.answers[str(answer.status)] += 1
                if answer.status >= 500:
                    attack.fault(f"garbage-{seed}-{number}", f"answered {answer.status} {answer.body[:200]!r}", sent)
            finally:
                connection.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return attack


def _garbage(sound: bytes, rng: random.Random) -> bytes:
    """Random bytes, or a sound request after some changes."""
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.choice((1, 10, 1000, 100_000)))
        case 1:
            return sound.replace(b"GET /health", f"{rng.choice(METHODS)} {rng.choice(TARGETS)}".encode("latin-1"))
        case 2:
            made = sound[:-2] + rng.choice(HEADERS) + b"\r\n\r\n"
            return made.replace(b"GET /health", b"POST /model/predict") if rng.randrange(2) else made
        case 3:
            changed = bytearray(sound)
            for _ in range(rng.choice((1, 3, 10))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case _:
            cut = sound[: rng.randrange(len(sound))]
            return cut + rng.choice((b"", b"\n\n", b"\r\r", b"\x00")) + sound * rng.choice((1, 20))


async def creep(service: Service, connections: int, seconds: float) -> Attack:
    """Connections that send a request's head, or a body, a byte at a time; beside them somebody asks, and is answered.

    seconds: more than the service has patience, so that it has answered all of them, or ended their connections."""
    attack = Attack(None)
    whole = predict_request(seeds()["plain.jpeg"], host=service.host)
    opened = await asyncio.gather(*(Connection.open(service.address, _PATIENCE_S) for _ in range(connections)))
    begun = [10 if number % 2 else whole.index(b"\r\n\r\n") + 4 for number in range(connections)]
    for connection, length in zip(opened, begun, strict=True):
        connection.send(whole[:length])
    async with Client(service.address, _PATIENCE_S) as client:
        end = time.perf_counter() + seconds
        for sent in itertools.count():
            for connection, length in zip(opened, begun, strict=True):
                if not connection.ended:
                    connection.send(whole[length + sent : length + sent + 1])
            answer = await client.ask(whole)
            attack.answers[f"beside them {answer.status}"] += 1
            if answer.status not in (200, 503):
                attack.fault(
                    "creep", f"beside {connections} slow connections: {answer.status} {answer.body[:200]!r}", whole
                )
            if time.perf_counter() > end:
                break
            await asyncio.sleep(0.2)
    for connection in opened:
        try:
            attack.answers[str((await connection.answer()).status)] += 1
        except Dropped:
            attack.answers["ended by the service"] += 1
        except TimeoutError:
            attack.fault("creep", f"a slow connection is open after {seconds:g} s", b"")
        connection.abort()
    return attack


async def leave(service: Service, times: int, sent: Callable[[bytes], bytes]) -> Attack:
    """Connect, send what `sent` makes of a whole request, and be gone."""
    attack, whole = Attack(None), predict_request(seeds()["plain.jpeg"], host=service.host)
    for number in range(times):
        connection = await Connection.open(service.address)
        if data := sent(whole):
            connection.send(data)
            await asyncio.sleep(0)
        (connection.abort if number % 2 else connection.close)()
        attack.answers["left"] += 1
        if number % 50 == 49:
            await asyncio.sleep(0.05)  # the service shall see some of them, not only a full backlog
    return attack


async def attack_all(
    service: Service, mutations: int, seed: int, keep: Path | None, share: float = 1.0
) -> dict[str, Attack]:
    """Every kind of attack, one after the other; after each the service answers and holds no more than before.

    share: of the connections and requests other than changed images.
    """
    many = max(1, round(500 * share))
    attacks: dict[str, Callable[[], Awaitable[Attack]]] = {
        "changed images": lambda: change_images(service, range(mutations), seed, keep),
        "changed forms": lambda: change_forms(service, range(4 * many), seed, keep),
        "garbage": lambda: send_garbage(service, range(2 * many), seed, keep),
        "slow connections": lambda: creep(service, round(300 * share), CREEP_S),
        "connect and leave": lambda: leave(service, many, lambda whole: b""),
        "leave while uploading": lambda: leave(service, many, lambda whole: whole[: len(whole) // 2]),
        "leave before the answer": lambda: leave(service, many, lambda whole: whole),
    }
    await alive(service)
    before = service.usage()
    done: dict[str, Attack] = {}
    for name, attack in attacks.items():
        done[name] = await attack()
        try:
            await settled(service, before.files)
            await alive(service)
        except (OSError, TimeoutError, AssertionError) as error:
            done[name].faults.append(f"after: {type(error).__name__}: {error}")
        done[name].memory_mib.append(service.usage().rss_mib)
    memory = done["changed images"].memory_mib
    third = max(1, len(memory) // 3)
    middle, last = (statistics.median(part) for part in (memory[third : 2 * third], memory[-third:]))
    if last > middle * (1 + MOST_GROWTH):
        done["changed images"].faults.append(f"memory grew from {middle:.1f} to {last:.1f} MiB")
    for line in service.tracebacks:
        done["changed images"].faults.append(f"the service printed a traceback: {line}")
    return done


async def alive(service: Service) -> None:
    """AssertionError where the service does not caption a sound image, or does not say that it is well."""
    async with Client(service.address, _PATIENCE_S) as client:
        answer = await client.ask(predict_request(seeds()["plain.jpeg"], host=service.host))
        assert answer.status == 200, f"a sound image is answered {answer.status} {answer.body[:200]!r}"
        answer = await client.ask(get("/health", host=service.host))
        assert answer.status == 200, f"/health answers {answer.status} {answer.body[:200]!r}"


async def settled(service: Service, files: int) -> None:
    """Wait until the service has no more files open than it had, and no request in hand; AssertionError where it keeps some."""
    end = time.perf_counter() + _PATIENCE_S
    while True:
        opened, inside = service.usage().files, (await service.metrics())["pycap_requests_in_hand"]
        if opened <= files and inside == 0:
            return
        assert time.perf_counter() < end, f"{opened} files are open ({files} before), {inside:g} requests in hand"
        await asyncio.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a run or its checkpoint (default: a tiny one, trained first)")
    parser.add_argument("--mutations", type=int, default=10_000, help="changed images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, default=Path("build/serving"), metavar="DIR", help="the tiny checkpoint")
    parser.add_argument("--keep", type=Path, default=Path("build/hostile"), metavar="DIR", help="what a fault was sent")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the record, JSON")
    own, options = parser.parse_known_args(argv)
    checkpoint = own.checkpoint.absolute() if own.checkpoint else bulk.tiny_checkpoint(own.place.absolute() / "run")
    began = time.perf_counter()
    try:
        with Service(checkpoint, options) as service:
            done = asyncio.run(attack_all(service, own.mutations, own.seed, own.keep))
            usage = service.usage()
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    faults = [f"{name}: {fault}" for name, attack in done.items() for fault in attack.faults]
    for name, attack in done.items():
        print(
            f"{name:<24} {attack.answers.total():6,}: "
            + ", ".join(f"{n:,} x {what}" for what, n in sorted(attack.answers.items()))
        )
    for fault in faults[:50]:
        print(fault, file=sys.stderr)
    memory = done["changed images"].memory_mib
    print(f"memory {memory[0]:.1f} -> {memory[-1]:.1f} MiB, at most {usage.peak_mib:.1f}; {len(faults)} faults")
    if own.out:
        record = {
            "command": f"python -m benchmarks.hostile --mutations {own.mutations} --seed {own.seed}",
            "commit": machine.commit(),
            "seconds": round(time.perf_counter() - began, 1),
            "versions": machine.versions(("pillow", "starlette", "uvicorn", "h11", "python-multipart")),
            "attacks": {name: attack.record() for name, attack in done.items()},
            "memory_mib": {"begin": round(memory[0], 1), "end": round(memory[-1], 1), "peak": round(usage.peak_mib, 1)},
            "faults": faults,
        }
        write_whole(own.out, json.dumps(record, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
