"""`pycap select` over HTTP: the contract between its page and the server, and what the server refuses."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn")

from pycap.picking.journal import Journal
from pycap.picking.order import base
from pycap.picking.results import Results
from pycap.picking.selection import Selection
from pycap.web import server
from pycap.web.select import routes
from tests.picking import pairs
from tests.web.service import listening


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """A page's requests, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, _body: object = None, /, **fields: object) -> Answer:
        body = json.dumps(fields if _body is None else _body).encode()
        return self.ask("POST", path, body, content_type="application/json", origin=f"http://127.0.0.1:{self.port}")


class Served(NamedTuple):
    client: Client
    selection: Selection
    picks: Path


@contextmanager
def serving(results: Results, place: Path) -> Iterator[Served]:
    """A selection of results, most probable first, served on a port of its own."""
    order = base(results, "logprob")
    with Journal(place / "picks.jsonl") as journal:
        selection = Selection(results, order, journal, 5, "runs/x/best")
        app = server.application(routes(selection, order="logprob", command="pycap train"))
        with listening(app) as (_, port):
            yield Served(Client(port), selection, place / "picks.jsonl")
    results.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A selection of the images of `pairs`."""
    with serving(pairs.results(tmp_path), tmp_path) as served:
        yield served


def test_the_next_pairs_are_the_most_probable_ones(served: Served) -> None:
    answer = served.client.get("/api/next?after=-1&count=3")
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"
    first, *others = answer.json["pairs"]
    numbers = sorted(range(pairs.COUNT), key=lambda number: number * 5 % 7)
    assert first == {
        "position": 0,
        "image_id": "00",
        "file_name": "target/0/00.png",
        "image": "/image/0",
        "captions": [
            {"rank": 1, "caption": "a dog runs", "logprob": -1.0},
            {"rank": 2, "caption": "number 0", "logprob": -9.5},
        ],
        "decision": None,
        "chosen": None,
        "decided_at": None,
    }
    assert [pair["file_name"] for pair in others] == [pairs.name(number) for number in numbers[1:3]]


def test_a_decision_is_on_the_disk_when_it_is_answered(served: Served) -> None:
    decided = served.client.post("/api/decide", position=1, decision="accept", rank=2, caption=None, again=False)
    assert decided.status == 200
    (written,) = pairs.lines(served.picks)
    time = written.pop("time")
    assert written == {
        "image_id": "07",
        "file_name": "target/1/07.png",
        "caption": "number 7",
        "rank": 2,
        "logprob": -9.5,
        "decision": "accept",
        "edited": False,
        "checkpoint": "runs/x/best",
    }
    pair = decided.json["pair"]
    assert (pair["position"], pair["decision"], pair["decided_at"]) == (1, "accept", time)
    assert pair["chosen"] == {"rank": 2, "caption": "number 7", "edited": False}
    state = served.client.get("/api/state").json
    assert state == decided.json["state"]
    assert {key: state[key] for key in ("target", "accepted", "rejected", "skipped", "total", "order", "command")} == {
        "target": 5, "accepted": 1, "rejected": 0, "skipped": 0, "total": 12, "order": "logprob", "command": "pycap train"
    }  # fmt: skip


def test_a_retry_writes_nothing_and_another_tabs_decision_is_a_conflict(served: Served) -> None:
    client = served.client
    for _ in range(2):
        assert client.post("/api/decide", position=0, decision="accept", rank=1, caption=" a dog  runs").status == 200
    conflict = client.post("/api/decide", position=0, decision="reject", rank=1)
    assert conflict.status == 409 and "another tab" in conflict.json["message"]
    assert conflict.json["pair"]["decision"] == "accept" and conflict.json["state"]["accepted"] == 1
    assert len(pairs.lines(served.picks)) == 1
    assert client.post("/api/decide", position=0, decision="reject", rank=1, again=True).json["state"]["rejected"] == 1
    assert [row["decision"] for row in pairs.lines(served.picks)] == ["accept", "reject"]


def test_undo_takes_back_one_decision_at_a_time(served: Served) -> None:
    client = served.client
    client.post("/api/decide", position=0, decision="accept")
    client.post("/api/decide", position=3, decision="reject")
    client.post("/api/decide", position=0, decision="skip", again=True)
    undone = client.post("/api/undo", position=None).json
    assert (undone["pair"]["position"], undone["pair"]["decision"], undone["state"]["skipped"]) == (0, "accept", 0)
    assert client.post("/api/undo", position=0).json["pair"]["decision"] is None
    assert client.post("/api/undo", position=0).status == 409
    assert client.post("/api/undo").json["pair"]["position"] == 3
    nothing = client.post("/api/undo", position=None)
    assert nothing.status == 409 and nothing.json["pair"] is None and nothing.json["state"]["accepted"] == 0
    written = [(row["file_name"], row["decision"]) for row in pairs.lines(served.picks)]
    assert [decision for _, decision in written] == ["accept", "reject", "skip", "undo", "undo", "undo"]
    assert [written[i][0] for i in (3, 4, 5)] == [written[i][0] for i in (2, 0, 1)]


def test_an_undo_that_is_asked_for_twice_takes_back_one_decision(served: Served) -> None:
    client, picks = served.client, served.picks
    assert client.get("/api/state").json["latest"] is None
    client.post("/api/decide", position=0, decision="accept", rank=1)
    again = client.post("/api/decide", position=0, decision="reject", rank=1, again=True).json
    latest = again["state"]["latest"]
    assert latest == {"position": 0, "decided_at": again["pair"]["decided_at"]}
    assert client.post("/api/undo", **latest).json["pair"]["decision"] == "accept"
    twice = client.post("/api/undo", **latest)
    assert twice.status == 409 and "stands no more" in twice.json["message"]
    assert twice.json["pair"]["decision"] == "accept"
    assert [row["decision"] for row in pairs.lines(picks)] == ["accept", "reject", "undo"]


def test_what_comes_next_wraps_around_and_ends_with_what_was_skipped(served: Served) -> None:
    client = served.client
    for position, decision in ((0, "accept"), (2, "skip"), (5, "reject"), (9, "skip")):
        client.post("/api/decide", position=position, decision=decision)

    def following(after: int) -> list[int]:
        return [pair["position"] for pair in client.get(f"/api/next?after={after}&count=20").json["pairs"]]

    assert following(-1) == [1, 3, 4, 6, 7, 8, 10, 11, 2, 9]
    assert following(7) == [8, 10, 11, 1, 3, 4, 6, 9, 2]
    assert following(2) == [3, 4, 6, 7, 8, 10, 11, 1, 9]
    assert [pair["position"] for pair in client.get("/api/next?after=7&count=2").json["pairs"]] == [8, 10]


@pytest.mark.parametrize(
    ("show", "found"),
    [("all", list(range(12))), ("accept", [0, 4]), ("reject", [1]), ("skip", [2]), ("open", [3, *range(5, 12)])],
)
def test_the_grid_shows_what_was_decided_so(served: Served, show: str, found: list[int]) -> None:
    for position, decision in ((0, "accept"), (1, "reject"), (2, "skip"), (4, "accept")):
        served.client.post("/api/decide", position=position, decision=decision)
    answer = served.client.get(f"/api/pairs?start=1&count=3&show={show}").json
    assert [pair["position"] for pair in answer["pairs"]] == found[1:4]
    assert answer["count"] == len(found)


def test_an_image_is_itself_or_a_small_copy(served: Served) -> None:
    whole, small = served.client.get("/image/0"), served.client.get("/image/0?side=16")
    assert whole.content == (served.picks.parent / "target/0/00.png").read_bytes()
    assert (whole.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/jpeg")
    assert np.asarray(Image.open(io.BytesIO(small.content))).shape == (6, 8, 3)
    assert served.client.get("/image/0", if_none_match=whole.headers["etag"]).status == 304
    assert served.client.get("/image/0?side=16", if_none_match=whole.headers["etag"]).status == 200
    assert whole.headers["cache-control"] == "private, no-cache"
