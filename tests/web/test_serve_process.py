"""`pycap serve` as a process: it says where it is, ends when what it took is answered, and a second signal ends it at once."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from tests.train.conftest import _selection, data, trained
from tests.web.service import picture

__all__ = ["_selection", "data", "trained"]

BODY = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + picture(0) + b"\r\n--b--\r\n"
HEAD = (
    b"POST /model/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
_PATIENCE_S = 30


def command(*arguments: object) -> subprocess.Popen[str]:
    program = "from pycap.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def served(trained: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, and the port that it has said."""
    process = command(trained, "--port", 0, *options)
    try:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        found = re.fullmatch(r"run: http://127\.0\.0\.1:(\d+)/\n", said)
        assert found, said + process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def in_hand(port: int) -> float:
    """Requests that were admitted and not answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.findall(r"^pycap_requests_in_hand (\S+)$", text, re.MULTILINE)[0])


def begun(port: int) -> socket.socket:
    """A request that has been admitted, and whose body has not come as a whole."""
    request = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
    request.sendall(HEAD + BODY[:100])
    waiting = time.monotonic() + _PATIENCE_S
    while in_hand(port) != 1:
        assert time.monotonic() < waiting
    return request


def refuses(port: int) -> None:
    """Returns when nobody listens any more."""
    waiting = time.monotonic() + _PATIENCE_S
    while True:
        assert time.monotonic() < waiting
        try:
            socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S).close()
        except ConnectionError:
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_has_taken(trained: Path, number: signal.Signals) -> None:
    with served(trained) as (process, port), begun(port) as request:
        process.send_signal(number)
        refuses(port)
        request.sendall(BODY[100:])
        answer = http.client.HTTPResponse(request)
        answer.begin()
        assert answer.status == 200 and b'"status":"ok"' in answer.read()
        said, complaints = process.communicate(timeout=_PATIENCE_S)
    assert (process.returncode, said, complaints) == (0, "", "")


def test_a_second_signal_ends_it_at_once(trained: Path) -> None:
    with served(trained) as (process, port), begun(port):
        process.send_signal(signal.SIGINT)
        refuses(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE_S) == 128 + signal.SIGTERM


def test_a_port_that_is_taken_and_options_that_cannot_be(trained: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            f"127.0.0.1:{port}: another program listens there; name another with --port": (trained, "--port", port),
            "--beam-size 11 is above --max-beam-size 10": (trained, "--beam-size", 11),
            "none: no such folder": (tmp_path / "none", "--port", 0),
            "--max_bytes: '10X' is no count such as 500k, 10M or 1.5G": (trained, "--max-bytes", "10X"),
        }
        started = {text: command(*arguments) for text, arguments in wrong.items()}
        for text, process in started.items():
            _, complaints = process.communicate(timeout=_PATIENCE_S)
            assert text in complaints and "Traceback" not in complaints
            assert process.returncode in (1, 2)
