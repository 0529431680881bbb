"""docs/serving.md: it names all that there is, and its examples work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

import pycap
from pycap.commands import parser
from pycap.web import examples
from pycap.web.metrics import Metrics
from pycap.web.openapi import REFUSALS, document
from pycap.web.serve import build
from tests.train.conftest import _selection, data, trained
from tests.web.service import listening, picture, serving

__all__ = ["_selection", "data", "trained"]
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text("utf-8")
# Of other commands too, and told with those.
ELSEWHERE = {"--device", "--backend", "--precision", "--help"}


@pytest.fixture(scope="module")
def address(trained: Path) -> Iterator[str]:
    with serving(pycap.load(trained)) as (service, _), listening(build(service, examples.drawn())) as (host, port):
        yield f"http://{host}:{port}"


def example(language: str, address: str) -> str:
    """The one block of that language in the section on REST, for a service at another address."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", TEXT.partition("## REST")[2].partition("###")[0], re.DOTALL)
    assert "http://127.0.0.1:8000" in block
    return str(block).replace("http://127.0.0.1:8000", address)


def test_every_option_is_told() -> None:
    (options,) = (command._option_string_actions for name, command in parser()[1].items() if name == "serve")
    long = {name for name in options if name.startswith("--") and "_" not in name}
    assert {name for name in long - ELSEWHERE if f"`{name}" not in TEXT} == set()
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= long


def test_every_status_is_told_once() -> None:
    assert [int(status) for status in re.findall(r"^\| (\d{3}) \|", TEXT, re.MULTILINE)] == sorted(REFUSALS)


def test_every_address_is_told() -> None:
    told = {path.replace("N", "{number}") for path in re.findall(r"`(?:GET |POST )?(/[a-z./]+N?)`", TEXT)}
    assert set(document(3, 10, 1, 1)["paths"]) <= told


def test_every_counter_is_told() -> None:
    metrics = Metrics({"version": "1"}, lambda: 0, lambda: 0)
    names = set(re.findall(r"^# TYPE (pycap_\w+) ", metrics.text().decode(), re.MULTILINE))
    assert {name for name in names if not name.endswith("_created") and f"`{name}" not in TEXT} == set()


def test_the_request_by_curl(address: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(picture())
    try:
        said = subprocess.run(
            [*shlex.split(example("sh", address)), "--silent"], cwd=tmp_path, capture_output=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    assert b'"status":"ok"' in said.stdout


def test_the_request_by_python(address: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(picture())
    said = subprocess.run(
        [sys.executable, "-c", example("python", address)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(said.stdout.splitlines()) == 3
