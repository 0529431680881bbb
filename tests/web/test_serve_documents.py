"""What the service says of itself is true: answers are as openapi.json has them, every status in it occurs, counters count."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("jsonschema", reason="jsonschema is not installed: make dev")

import jsonschema
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

import pycap
from pycap.captioner import Captioner
from pycap.web import examples, uploads
from pycap.web.openapi import REFUSALS, document
from pycap.web.serve import build
from pycap.web.service import Limits, Service
from tests.train.conftest import _selection, data, trained
from tests.web.service import PREDICT, Held, form, later, picture, post, serving, together, until

__all__ = ["_selection", "data", "trained"]

DOCUMENT = document(3, 10, 10_000_000, 40_000_000)


@pytest.fixture(scope="module")
def captioner(trained: Path) -> Iterator[Captioner]:
    yield pycap.load(trained)


def conforms(answer: httpx.Response, method: str, path: str) -> None:
    """Fails where the document does not foresee this answer."""
    told = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
    assert set(told.get("headers", {})) <= {name.title() for name in answer.headers}
    ((media_type, content),) = told["content"].items()
    assert re.match(media_type.replace("*", ".*"), answer.headers["content-type"])
    if media_type == "application/json":
        schema = content["schema"] | {"components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())


def test_the_document_is_sound() -> None:
    assert re.fullmatch(r"3\.1\.\d", DOCUMENT["openapi"]) and DOCUMENT["info"].keys() >= {"title", "version"}
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    refs = set(re.findall(r"'#/components/schemas/(\w+)'", str(DOCUMENT)))
    assert refs == set(DOCUMENT["components"]["schemas"])
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            assert operation["responses"] and all(
                response["description"] for response in operation["responses"].values()
            )
            in_path = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path))


def test_every_address_answers_as_documented(captioner: Captioner) -> None:
    limits = Limits(max_pixels=1_000_000)
    with Service(captioner, limits, "tiny", ["0" * 64]) as service:
        app = build(service, examples.drawn())

        async def work(client: httpx.AsyncClient) -> None:
            said = (await client.get("/openapi.json")).json()
            assert said == document(limits.beam_size, limits.max_beam_size, limits.max_bytes, limits.max_pixels)
            for path in ("/model/metadata", "/health", "/metrics", "/examples"):
                answer = await client.get(path)
                assert answer.status_code == 200
                conforms(answer, "get", path)
                assert (await client.head(path)).status_code == 200
                assert (await client.post(path)).status_code == 405
            for number in ("0", "8"):
                conforms(await client.get(f"/examples/{number}"), "get", "/examples/{number}")
            conforms(await client.post(PREDICT, **form(picture(0))), "post", PREDICT)
            service.drain()
            conforms(await client.get("/health"), "get", "/health")

        together(app, work)
        served = {path for route in app.routes if (path := getattr(route, "path", "")).startswith("/")}
    assert {re.sub(r":\w+}", "}", path) for path in served} == {*DOCUMENT["paths"], "/", "/openapi.json", "/static"} | {
        "/static/style.css"
    }


def test_metadata(captioner: Captioner) -> None:
    with serving(captioner, queue=7) as (_, app):
        said = together(app, lambda client: client.get("/model/metadata")).json()
    assert said["name"] == "tiny" and said["checkpoints"] == ["0" * 64]
    assert said["vocabulary"] == len(captioner.vocab) and said["image_size"] == captioner.spec.crop
    assert said["limits"]["queue"] == 7 and said["max_length"] == captioner.config.max_length
    assert said["precision"] == "fp32" and said["device"] == "cpu"


def _refused(service: Service, app: Starlette, status: int, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    """A request for captions that ends so."""

    async def never() -> Any:
        yield b"--b\r\n"
        await asyncio.Event().wait()

    kind = {"content-type": "multipart/form-data; boundary=b"}
    requests: dict[int, dict[str, Any]] = {
        400: {"content": b"no form", "headers": kind},
        408: {"content": never(), "headers": kind},
        413: form(bytes(200_000)),
        415: form(b"words"),
        422: form(picture(0), beam_size="0"),
    }
    if status in requests:
        monkeypatch.setattr(uploads, "GRACE_S", 0.05)
        return post(app, **requests[status])
    if status == 411:

        async def bare(client: httpx.AsyncClient) -> httpx.Response:
            request = client.build_request("POST", PREDICT, headers=kind)
            del request.headers["content-length"]
            return await client.send(request)

        return together(app, bare)
    if status == 500:
        service.batcher._model = lambda images, beam_size: 1 / 0
        return post(app, **form(picture(0)))
    if status == 503:
        service.admission.inside = service.admission.most
        try:
            return post(app, **form(picture(0)))
        finally:
            service.admission.inside = 0
    held = Held(service)

    async def late(client: httpx.AsyncClient) -> httpx.Response:
        sent = asyncio.create_task(client.post(PREDICT, **form(picture(0))))
        await held.is_busy()
        later(31)
        return await sent

    try:
        return together(app, late)
    finally:
        held.let_go()


@pytest.mark.parametrize("status", REFUSALS)
def test_every_documented_refusal_occurs(captioner: Captioner, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(captioner, max_bytes=100_000) as (service, app):
        answer = _refused(service, app, status, monkeypatch)
    assert answer.status_code == status
    conforms(answer, "post", PREDICT)


def test_the_counters_count(captioner: Captioner) -> None:
    with serving(captioner) as (service, app):
        held = Held(service)

        async def work(client: httpx.AsyncClient) -> tuple[dict[Any, float], dict[Any, float]]:
            tasks = [asyncio.create_task(client.post(PREDICT, **form(picture(0))))]
            await held.is_busy()
            tasks += [asyncio.create_task(client.post(PREDICT, **form(picture(0)))) for _ in range(3)]
            await until(lambda: len(service.batcher) == 3)
            during = _samples((await client.get("/metrics")).text)
            held.let_go()
            await asyncio.gather(*tasks)
            await client.post(PREDICT, **form(b""))
            await client.get("/nothing/at/all")
            await client.get("/static/style.css")
            return during, _samples((await client.get("/metrics")).text)

        during, after = together(app, work)
    assert during["pycap_queue_images", ()] == 3 and during["pycap_requests_in_hand", ()] == 4
    assert after["pycap_queue_images", ()] == 0 and after["pycap_requests_in_hand", ()] == 0
    requests = {labels: value for (name, labels), value in after.items() if name == "pycap_requests_total"}
    assert requests == {
        (("path", "/model/predict"), ("status", "200")): 4,
        (("path", "/model/predict"), ("status", "422")): 1,
        (("path", "/metrics"), ("status", "200")): 1,
        (("path", "/static"), ("status", "200")): 1,
        (("path", "other"), ("status", "404")): 1,
    }
    assert after["pycap_images_total", ()] == after["pycap_batch_images_sum", ()] == 4
    assert after["pycap_batch_images_count", ()] == 2
    assert after["pycap_predict_seconds_count", ()] == 4
    assert after["pycap_model_seconds_total", ()] > 0
    ((_, labels),) = [key for key in after if key[0] == "pycap_build_info"]
    assert dict(labels) == {"version": pycap.__version__, "model": "tiny", "checkpoint": "0" * 64}


def _samples(text: str) -> dict[Any, float]:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
