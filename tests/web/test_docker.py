"""The Dockerfile's last stage: what it starts serves, its health check tells, and it is not root. No engine runs here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pycap.commands import parser
from tests.export.models import ROOT, save


@pytest.fixture(scope="module")
def last_stage() -> dict[str, str]:
    """Instruction -> its last argument; lines that go on are joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8").rpartition("\nFROM ")[2]
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()[1:]
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))


def healthy(last_stage: dict[str, str], port: int) -> bool:
    """What the health check says of the service on this port."""
    program, *arguments = json.loads(last_stage["HEALTHCHECK"].partition(" CMD ")[2])
    assert program == "python"
    code = [part.replace(f":{last_stage['EXPOSE']}/", f":{port}/") for part in arguments]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True)
    assert done.returncode == 0 or "Connection refused" in done.stderr
    return done.returncode == 0


def test_what_it_starts_serves_and_is_healthy_until_it_is_stopped(tmp_path: Path, last_stage: dict[str, str]) -> None:
    name, *arguments = json.loads(last_stage["ENTRYPOINT"])
    assert name == "pycap" and "/model" in arguments
    model = str(save(tmp_path / "tiny"))
    command = [model if part == "/model" else part for part in arguments] + ["--port", "0", "--threads", "1"]
    service = subprocess.Popen(
        [sys.executable, "-c", "from pycap.cli import main; main()", *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert service.stdout is not None
        said = service.stdout.readline()
        found = re.search(r"tiny: http://127\.0\.0\.1:(\d+)/, for all who reach this machine", said)
        assert found, said
        port = int(found[1])
        assert healthy(last_stage, port)
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
        assert not healthy(last_stage, port)
    finally:
        service.kill()
        service.wait()


def test_its_port_is_the_one_that_the_service_listens_on(last_stage: dict[str, str]) -> None:
    whole, _ = parser()
    args = whole.parse_args(json.loads(last_stage["ENTRYPOINT"])[1:])
    assert args.port == int(last_stage["EXPOSE"]) and args.host == "0.0.0.0"
    assert f"http://127.0.0.1:{args.port}/health" in last_stage["HEALTHCHECK"]


def test_it_is_not_root(last_stage: dict[str, str]) -> None:
    order = list(last_stage)
    assert int(last_stage["USER"]) > 0 and f"--uid {last_stage['USER']} " in last_stage["RUN"]
    assert order.index("USER") > order.index("RUN") and order.index("USER") < order.index("ENTRYPOINT")
