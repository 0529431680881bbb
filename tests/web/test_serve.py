"""`pycap serve`: answers are the captioner's, batches form by themselves, what is taken is bounded, and ends in time."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from starlette.applications import Starlette

import pycap
from pycap import memory
from pycap.captioner import Captioner
from pycap.web import admission, decoding, server
from pycap.web.batches import Batcher, ModelError
from pycap.web.serve import build
from pycap.web.service import Limits, Service
from tests.train.conftest import _selection, data, trained
from tests.web.service import PREDICT, Held, form, later, picture, post, serving, together, until

__all__ = ["_selection", "data", "trained"]


@pytest.fixture(scope="module")
def captioner(trained: Path) -> Iterator[Captioner]:
    yield pycap.load(trained)


@pytest.mark.parametrize("beam_size", [None, 1, 5])
def test_answers_are_the_captioners(captioner: Captioner, tmp_path: Path, beam_size: int | None) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(picture(1))
    (expected,) = captioner.caption(file, beam_size=beam_size or 3)
    with serving(captioner) as (_, app):
        fields = {} if beam_size is None else {"beam_size": str(beam_size)}
        in_form = post(app, **form(picture(1), **fields))
        in_address = post(app, **form(picture(1)), params=fields)
    assert in_form.status_code == in_address.status_code == 200
    assert in_form.json()["predictions"] == in_address.json()["predictions"]
    assert in_form.json()["predictions"] == [
        {"index": str(number), "caption": text, "probability": math.exp(logprob)}
        for number, (text, logprob) in enumerate(expected.beams)
    ]


def test_batches_form_while_the_model_is_busy(captioner: Captioner, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.jpg" for n in range(8)]
    for number, file in enumerate(files):
        file.write_bytes(picture(number))
    expected = [caption.text for caption in captioner.caption(files)]
    with serving(captioner, max_batch=4) as (service, app):
        held = Held(service)

        async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
            first = asyncio.create_task(client.post(PREDICT, **form(picture(0))))
            await held.is_busy()
            others = [asyncio.create_task(client.post(PREDICT, **form(picture(n)))) for n in range(1, 8)]
            await until(lambda: len(service.batcher) == 7)
            held.let_go()
            return await asyncio.gather(first, *others)

        answers = together(app, work)
    assert held.sizes == [1, 4, 3]
    assert sorted(answer.json()["batch"] for answer in answers) == [1, 3, 3, 3, 4, 4, 4, 4]
    assert [answer.json()["predictions"][0]["caption"] for answer in answers] == expected


@pytest.mark.parametrize(("asked", "sizes"), [("12121", [1, 3, 2]), ("1244", [1, 1, 1, 2])])
def test_a_batch_is_of_one_beam_size_and_none_is_passed_over_for_good(
    captioner: Captioner, asked: str, sizes: list[int]
) -> None:
    with serving(captioner) as (service, app):
        held = Held(service)

        async def work(client: httpx.AsyncClient) -> list[int]:
            tasks = [asyncio.create_task(client.post(PREDICT, **form(picture(0))))]
            await held.is_busy()
            for number, beams in enumerate(asked, 1):
                tasks.append(asyncio.create_task(client.post(PREDICT, **form(picture(0), beam_size=beams))))
                await until(lambda n=number: len(service.batcher) == n)
            held.let_go()
            return [len(answer.json()["predictions"]) for answer in await asyncio.gather(*tasks)]

        found = together(app, work)
    assert held.sizes == sizes
    assert all(count <= most for count, most in zip(found, (3, *map(int, asked)), strict=True))


def one_too_many(service: Service, app: Starlette) -> tuple[httpx.Response, list[httpx.Response], httpx.Response]:
    """The answers to a third request while two are in hand, to these two, and to one after them."""
    held = Held(service)

    async def work(client: httpx.AsyncClient) -> tuple[httpx.Response, list[httpx.Response], httpx.Response]:
        taken = [asyncio.create_task(client.post(PREDICT, **form(picture(0)))) for _ in range(2)]
        await held.is_busy()
        await until(lambda: service.admission.inside == 2)
        third = await client.post(PREDICT, **form(picture(0)))
        held.let_go()
        return third, await asyncio.gather(*taken), await client.post(PREDICT, **form(picture(0)))

    return together(app, work)


def test_a_full_service_refuses(captioner: Captioner) -> None:
    with serving(captioner, queue=2) as (service, app):
        service.admission.each_s = 3.6  # in place of what the warm-up took

        full, taken, later = one_too_many(service, app)
    assert full.status_code == 503 and full.json()["message"] == "2 requests are in hand, the most that are taken"
    assert int(full.headers["retry-after"]) == 8  # twice 3.6 s, for the two in hand
    assert full.headers["connection"] == "close" and "connection" not in later.headers
    assert [answer.status_code for answer in (*taken, later)] == [200, 200, 200]
    assert service.admission.inside == 0


def test_more_than_the_model_can_answer_in_time_is_refused(captioner: Captioner) -> None:
    """At once, and not after a wait in vain. What an image takes is what it took in the latest batch."""
    with serving(captioner, timeout_s=30) as (service, app):
        service.admission.each_s = 16.0
        refused, taken, later = one_too_many(service, app)
        assert service.admission.each_s < 16.0
    assert refused.status_code == 503 and refused.headers["retry-after"] == "30"
    assert refused.json()["message"].startswith("2 requests are in hand, and the model takes 16 s an image: another")
    assert [answer.status_code for answer in (*taken, later)] == [200, 200, 200]


def test_when_to_come_again_follows_from_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock[0])
    door = admission.Admission(3, longest_s=60)
    assert door.retry_after() == 1  # nobody is in hand

    inside = [door.admitted() for _ in range(3)]
    for one in inside:
        one.__enter__()
    clock[0] += 8
    inside.pop().__exit__(None, None, None)
    assert door.retry_after() == 2 * 8  # two in hand, and one has taken 8 s
    for one in (door.admitted(), door.admitted(), door.admitted(), door.admitted()):
        clock[0] += 2
        with one:
            pass
    assert door.retry_after() == math.ceil(2 * 16 / 5)
    clock[0] += 1000
    assert door.retry_after() == 60
    for one in inside:
        one.__exit__(None, None, None)
    door.each_s = 2.5
    with door.admitted(), door.admitted():  # what was measured before a pause says nothing
        assert door.retry_after() == 5
    assert door.inside == 0


def test_what_nobody_waits_for_any_more_is_not_computed(captioner: Captioner) -> None:
    with serving(captioner) as (service, app):
        held = Held(service)

        async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
            first = asyncio.create_task(client.post(PREDICT, **form(picture(0))))
            await held.is_busy()
            others = [asyncio.create_task(client.post(PREDICT, **form(picture(n)))) for n in range(3)]
            await until(lambda: len(service.batcher) == 3)
            later(31)
            return await asyncio.gather(first, *others)

        late = together(app, work)
        assert len(service.batcher) == 3
        held.let_go()
        assert post(app, **form(picture(0))).status_code == 200
    assert [answer.status_code for answer in late] == [504] * 4
    assert late[0].json()["message"].startswith("no caption within 30 s: ")
    assert int(late[0].headers["retry-after"]) >= 1
    assert held.sizes == [1, 1]


def test_a_failing_batch_is_an_error_of_its_own(captioner: Captioner, caplog: pytest.LogCaptureFixture) -> None:
    with serving(captioner) as (service, app):
        model, service.batcher._model = service.batcher._model, _fails(ZeroDivisionError)
        broken = post(app, **form(picture(0)))
        service.batcher._model = model
        sound = post(app, **form(picture(0)))
        healthy = together(app, lambda client: client.get("/health"))
    assert broken.status_code == 500 and broken.json()["message"] == "the model failed (ZeroDivisionError)"
    assert "Traceback" in caplog.text and "in _fail" in caplog.text
    assert sound.status_code == healthy.status_code == 200 and healthy.json() == {"status": "ok"}


def test_a_model_that_has_stopped_is_told(captioner: Captioner, caplog: pytest.LogCaptureFixture) -> None:
    with serving(captioner) as (service, app):
        service.batcher._model = _fails(SystemExit)

        async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
            first = await client.post(PREDICT, **form(picture(0)))
            await until(lambda: service.batcher.failed)
            return [first, await client.post(PREDICT, **form(picture(0))), await client.get("/health")]

        answers = together(app, work)
    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert "the model has stopped" in answers[1].json()["message"]
    assert "SystemExit" in caplog.text


def test_what_waits_at_the_end_is_finished_first() -> None:
    closing = threading.Event()

    def answers(images: Any, beam_size: int) -> Any:
        assert closing.wait(20)
        return [[("a", -1.0)]] * len(images)

    batcher = Batcher(answers, 1, lambda size, seconds: None).__enter__()
    waiting = [batcher.submit({}, 1) for _ in range(3)]
    ending = threading.Thread(target=batcher.__exit__)
    ending.start()
    assert not any(each.done() for each in waiting) and ending.is_alive()
    closing.set()
    ending.join(20)
    assert [each.result(0).batch for each in waiting] == [1, 1, 1]


def test_who_waits_for_a_model_that_ends_is_told() -> None:
    begun, go = threading.Event(), threading.Event()

    def ends(images: Any, beam_size: int) -> Any:
        begun.set()
        assert go.wait(20)
        raise SystemExit

    with Batcher(ends, 4, lambda size, seconds: None) as batcher:
        first = batcher.submit({}, 1)
        assert begun.wait(20)
        second = batcher.submit({}, 2)
        go.set()
        for each in (second, first):
            with pytest.raises(ModelError, match="the model's thread has ended"):
                each.result(20)
        assert batcher.failed and not len(batcher)
        with pytest.raises(ModelError, match="takes no more"):
            batcher.submit({}, 1)


def _fails(kind: type[BaseException]) -> Any:
    def _fail(images: Any, beam_size: int) -> Any:
        raise kind

    return _fail


def test_what_was_taken_is_finished(captioner: Captioner) -> None:
    with serving(captioner) as (service, app):
        held = Held(service)

        async def work(client: httpx.AsyncClient) -> tuple[list[httpx.Response], list[httpx.Response]]:
            taken = [asyncio.create_task(client.post(PREDICT, **form(picture(n)))) for n in range(3)]
            await held.is_busy()
            await until(lambda: service.admission.inside == 3)
            service.drain()
            refused = [await client.post(PREDICT, **form(picture(0))), await client.get("/health")]
            held.let_go()
            return refused, await asyncio.gather(*taken)

        refused, taken = together(app, work)
    assert [answer.status_code for answer in refused] == [503, 503]
    assert {answer.json()["message"] for answer in refused} == {"the service is shutting down"}
    assert "retry-after" in refused[0].headers
    assert [answer.status_code for answer in taken] == [200, 200, 200]


def test_a_model_that_cannot_begin_says_so_before_anything_is_served(captioner: Captioner) -> None:
    service = Service(captioner, Limits(), "tiny")
    service.batcher._warm_up = lambda: _fails(MemoryError)(0, 0)
    with pytest.raises(MemoryError), service:
        raise AssertionError("it was served")


def test_the_memory_of_batches_of_all_sizes_is_given_back(captioner: Captioner) -> None:
    with serving(captioner) as (service, app):
        sizes = []

        async def work(client: httpx.AsyncClient) -> None:
            for count in (*range(1, 17), 3, 5):
                await asyncio.gather(*(client.post(PREDICT, **form(picture(n))) for n in range(count)))
                sizes.append(memory.pooled_bytes())

        together(app, work)
        assert max(sizes) <= service._kept < math.inf


def test_an_ensemble_answers_as_its_captioner_does(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture(3, "PNG"))
    both = pycap.load([trained / "best", trained / "last"])
    (expected,) = both.caption(file)
    with serving(both) as (_, app):
        answer = post(app, **form(picture(3, "PNG"))).json()
    assert [p["caption"] for p in answer["predictions"]] == [text for text, _ in expected.beams]
    assert [p["probability"] for p in answer["predictions"]] == [math.exp(logprob) for _, logprob in expected.beams]


def test_pages_elsewhere_may_call_where_they_are_named(captioner: Captioner) -> None:
    with Service(captioner, Limits(), "tiny") as service:
        for origins, allowed in (([], None), (["https://a.example"], "https://a.example")):
            app = build(service, [], origins=origins)
            request = form(picture(0)) | {"headers": {"origin": "https://a.example"}}
            answer = post(app, **request)
            assert answer.status_code == 200
            assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(("less", "status"), [(0, 200), (1, 413)])
def test_an_image_may_have_as_much_as_is_said(captioner: Captioner, less: int, status: int) -> None:
    image = picture(0, size=(60, 40))
    for limits in ({"max_bytes": len(image) - less}, {"max_pixels": 60 * 40 - less}):
        with serving(captioner, **limits) as (_, app):
            assert post(app, **form(image)).status_code == status, limits


def test_the_first_signal_lets_it_finish_and_the_second_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(os, "_exit", sys.exit)
    running = server.Server(Starlette(), stopping=lambda: told.append("stopping"))
    running.handle_exit(signal.SIGTERM, None)
    assert running.should_exit and told == ["stopping"]
    with pytest.raises(SystemExit, match="130"):
        running.handle_exit(signal.SIGINT, None)
    assert told == ["stopping"]


@pytest.mark.parametrize(("large", "alone"), [(2399, True), (2400, False)])
def test_large_images_are_decoded_one_at_a_time(large: int, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(decoding, "_LARGE", large)
    monkeypatch.setattr(decoding, "decode_image", lambda *image: held.append(decoding._large.locked()))
    decoding.decode(bytearray(picture(0, size=(60, 40))), [32, 64], 10_000)
    assert held == [alone, alone] and not decoding._large.locked()


def test_limits_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="--beam-size 11 is above --max-beam-size 10"):
        Limits(beam_size=11)
    with pytest.raises(ValueError, match="--max-pixels 90,000,000 is above 80,000,000"):
        Limits(max_pixels=90_000_000)


def test_a_line_a_request_is_logged_where_it_is_wanted(captioner: Captioner, caplog: pytest.LogCaptureFixture) -> None:
    with serving(captioner) as (_, app), caplog.at_level(logging.INFO, "pycap"):
        together(app, lambda client: client.get("/a%0Ab%1b"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("127.0.0.1 GET '/a\\nb\\x1b' 404 ")


def test_a_browser_asks_whether_the_page_has_changed(captioner: Captioner) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        for path in ("/", "/static/style.css", "/static/serve.js", "/examples"):
            assert (await client.get(path)).headers["cache-control"] == "no-cache"
        tag = (await client.get("/static/serve.js")).headers["etag"]
        assert (await client.get("/static/serve.js", headers={"if-none-match": tag})).status_code == 304

    with serving(captioner) as (_, app):
        together(app, work)
