"""What `pycap select`'s server refuses, with a reason, and what does it no harm: other sites, nonsense, full disks, haste."""

from __future__ import annotations

import io
import json
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("uvicorn")

from pycap.picking.images import ImageFolder
from pycap.picking.journal import Journal
from pycap.picking.order import base
from pycap.picking.results import Results
from pycap.picking.selection import Selection
from tests.picking import pairs
from tests.web.test_select import Client, Served, serving

JSON = {"content_type": "application/json"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(pairs.results(tmp_path), tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all that it refuses; the pair at position 1 is decided."""
    place = tmp_path_factory.mktemp("refusing")
    with serving(pairs.results(place), place) as served:
        served.selection.decide(1, "accept")
        yield served


@pytest.mark.parametrize("path", ["/api/decide", "/api/undo"])
@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({}, 415, "content-type none: must be application/json"),
        ({"content_type": "text/plain"}, 415, "content-type text/plain"),
        ({"content_type": "application/x-www-form-urlencoded"}, 415, "must be application/json"),
        ({**JSON, "origin": "http://example.org"}, 403, "origin http://example.org"),
        ({**JSON, "origin": "null"}, 403, "origin null"),
        ({**JSON, "origin": "http://127.0.0.1:1"}, 403, "this server's own page only"),
        ({**JSON, "sec_fetch_site": "cross-site"}, 403, "this server's own page only"),
        ({**JSON, "sec_fetch_site": "same-site"}, 403, "this server's own page only"),
        ({**JSON, "host": "example.org"}, 400, ""),
    ],
)
def test_other_sites_decide_nothing(
    refusing: Served, path: str, headers: dict[str, str], status: int, said: str
) -> None:
    before = refusing.picks.read_bytes()
    body = json.dumps({"position": 0 if path == "/api/decide" else 1, "decision": "accept"}).encode()
    answer = refusing.client.ask("POST", path, body, **headers)
    assert answer.status == status and said in answer.content.decode()
    assert refusing.picks.read_bytes() == before


def test_what_comes_through_a_tunnel_or_without_a_page_is_taken(served: Served) -> None:
    body = b'{"position": 0, "decision": "accept"}'
    tunnel = {"host": "localhost:9999", "origin": "http://localhost:9999", "sec_fetch_site": "same-origin"}
    assert served.client.ask("POST", "/api/decide", body, **JSON, **tunnel).status == 200
    assert served.client.ask("POST", "/api/decide", body, content_type="application/json; charset=utf-8").status == 200
    assert served.client.ask("GET", "/api/decide").status == 405


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 60_000, 400, "not JSON"),
        (b"[]", 400, "a list, not an object"),
        (b" " * 70_000, 413, "more than 65,536 bytes"),
        (b'{"decision": "accept"}', 400, '"position" is null: must be int'),
        (b'{"position": true, "decision": "accept"}', 400, '"position" is true: must be int'),
        (b'{"position": 0.0, "decision": "accept"}', 400, '"position" is 0.0'),
        (b'{"position": 99, "decision": "accept"}', 400, "pair 99: there are 12"),
        (b'{"position": -1, "decision": "accept"}', 400, "pair -1"),
        (b'{"position": 1e400, "decision": "accept"}', 400, '"position" is Infinity'),
        (b'{"position": 0}', 400, '"decision" is null: must be str'),
        (b'{"position": 0, "decision": "perhaps"}', 400, "decision 'perhaps': must be one of accept, reject, skip"),
        (b'{"position": 0, "decision": "accept", "rank": 3}', 400, "rank 3: target/0/00.png has 2 captions"),
        (b'{"position": 0, "decision": "accept", "rank": 0}', 400, "rank 0: target/0/00.png has 2 captions"),
        (b'{"position": 0, "decision": "accept", "rank": -1}', 400, "rank -1"),
        (b'{"position": 0, "decision": "accept", "caption": "  "}', 400, "must have a word"),
        (b'{"position": 0, "decision": "accept", "caption": ["a"]}', 400, '"caption" is ["a"]: must be str or null'),
        (b'{"position": 0, "decision": "accept", "again": 1}', 400, '"again" is 1: must be bool or null'),
        (b'{"position": 0, "decision": "accept", "file_name": "other.png"}', 409, "reload the page"),
    ],
)
def test_nonsense_is_refused_with_its_reason(refusing: Served, body: bytes, status: int, said: str) -> None:
    before = refusing.picks.read_bytes()
    answer = refusing.client.ask("POST", "/api/decide", body, **JSON)
    assert answer.status == status and said in answer.json["message"]
    assert refusing.picks.read_bytes() == before and refusing.client.get("/api/state").json["accepted"] == 1


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/next?after=x", 400, "after=x: must be a whole number of -1 or more"),
        ("/api/next?after=-2", 400, "after=-2"),
        ("/api/next?count=501", 400, "count=501: must be a whole number of 1 or more, 500 at most"),
        ("/api/pairs?show=none", 400, "show=none: must be one of all, accept, reject, skip, open"),
        ("/api/pairs?start=-1", 400, "start=-1"),
        ("/image/12", 404, "pair 12: there are 12, from 0 on"),
        ("/image/" + "9" * 5000, 404, "there is nothing here"),
        ("/image/0?side=5", 400, "side=5: must be a whole number of 16 or more, 4096 at most"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_so(refusing: Served, path: str, status: int, said: str) -> None:
    answer = refusing.client.get(path)
    assert answer.status == status and said in answer.json["message"]


def test_what_lies_beyond_the_end_is_nothing(served: Served) -> None:
    assert served.client.get(f"/api/pairs?start={2**62}").json == {"pairs": [], "count": 12}
    assert len(served.client.get(f"/api/next?after={2**62}").json["pairs"]) == 11


@pytest.mark.faults
def test_on_a_full_disk_a_decision_is_an_error_and_does_not_count(served: Served) -> None:
    served.selection.decide(0, "accept")
    before = served.picks.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
    try:
        decided, undone = (
            served.client.post("/api/decide", position=1, decision="accept"),
            served.client.post("/api/undo"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for answer in (decided, undone):
        assert answer.status == 507 and "the disk is full; this decision is not kept" in answer.json["message"]
    assert served.picks.read_bytes() == before and served.client.get("/api/state").json["accepted"] == 1
    assert [pair["position"] for pair in served.client.get("/api/next?count=1").json["pairs"]] == [1]
    assert served.client.post("/api/decide", position=1, decision="accept").status == 200


def test_two_tabs_in_haste_decide_each_pair_once(served: Served) -> None:
    """Eight at once, each about every pair: one is taken, the others are told, and the file has a whole line for each."""

    def decide(case: int) -> tuple[int, int, str]:
        tab, position = case % 8, case // 8
        decision = ("accept", "reject")[tab % 2]
        answer = served.client.post("/api/decide", position=position, decision=decision, file_name=None)
        return position, answer.status, answer.json["pair"]["decision"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(decide, range(8 * pairs.COUNT)))
    rows = pairs.lines(served.picks)
    by_name = {row["file_name"]: row["decision"] for row in rows}
    assert len(rows) == len(by_name) == pairs.COUNT
    grid = served.client.get("/api/pairs").json["pairs"]
    assert {pair["file_name"]: pair["decision"] for pair in grid} == by_name
    for position, status, decision in answers:
        assert status in (200, 409) and decision == grid[position]["decision"]
    assert sum(status == 200 for _, status, _ in answers) == 4 * pairs.COUNT


def test_images_that_browsers_cannot_show_are_encoded_anew_and_others_are_errors(tmp_path: Path) -> None:
    names = ["a.tif", "b.ppm", "c.jpg", "d.png", "e.jpg", "f.png", "g.jpg"]
    (tmp_path / "target").mkdir()
    picture = Image.new("RGB", (40, 20), (200, 30, 30))
    for name in names[:2]:
        picture.save(tmp_path / "target" / name)
    picture.save(tmp_path / "target" / "c.jpg", "TIFF")  # by its name a JPEG
    (tmp_path / "target" / "d.png").write_text("<script>alert(1)</script>")
    Image.new("1", (10_000, 8_500)).save(tmp_path / "target" / "f.png")
    for name in ("e.jpg", "g.jpg"):
        picture.save(tmp_path / "target" / name)
    rows = [pairs.row(0, file_name=name, beams=[{"caption": "a", "logprob": -n}]) for n, name in enumerate(names)]
    results = Results(pairs.write(tmp_path / "captions.jsonl", rows), ImageFolder(tmp_path / "target"))
    (tmp_path / "target" / "e.jpg").unlink()
    (tmp_path / "target" / "g.jpg").unlink()
    os.symlink("/etc/hostname", tmp_path / "target" / "g.jpg")  # leads out since
    with serving(results, tmp_path) as served:
        for position in (0, 1, 2):
            answer = served.client.get(f"/image/{position}")
            assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
            shown = Image.open(io.BytesIO(answer.content))
            assert shown.size == (40, 20) and abs(shown.getpixel((9, 9))[0] - 200) < 4
        for position, status, said in (
            (3, 415, "not an image of a known format"), (4, 404, "e.jpg: is no longer in"),
            (5, 415, "are more than 80,000,000"), (6, 404, "g.jpg: is no longer in"),
        ):  # fmt: skip
            for query in ("", "?side=64"):
                answer = served.client.get(f"/image/{position}{query}")
                assert answer.status == status and said in answer.json["message"], position


def test_a_file_name_that_is_no_text_and_words_of_any_language_pass_through(tmp_path: Path) -> None:
    pairs.images(tmp_path, [0])
    raw = os.fsdecode(b"target/0/\xff.png")
    os.rename(tmp_path / pairs.name(0), tmp_path / raw)
    with serving(pairs.results(tmp_path, [pairs.row(0, file_name=raw)]), tmp_path) as served:
        (pair,) = served.client.get("/api/next").json["pairs"]
        assert pair["file_name"] == raw and served.client.get("/image/0").status == 200
        said = "\u72ac\u304c\u8d70\u308b \U0001f415 caf\u00e9"
        assert (
            served.client.post("/api/decide", position=0, decision="accept", caption=said, file_name=raw).status == 200
        )
    (row,) = pairs.lines(served.picks)
    assert (row["file_name"], row["caption"], row["edited"]) == (raw, said, True)
    with Journal(served.picks) as journal:
        results = Results(tmp_path / "captions.jsonl", ImageFolder(tmp_path / "target"))
        assert Selection(results, base(results, "logprob"), journal, 1).state()["accepted"] == 1
        results.close()


def test_nothing_else_is_served(served: Served) -> None:
    for path in (
        "/image/../captions.jsonl",
        "/image/..%2fcaptions.jsonl",
        "/static/../select.py",
        "/picks.jsonl",
        "/image/-1",
    ):
        assert Client(served.client.port).get(path).status == 404, path
