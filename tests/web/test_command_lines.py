"""What people give `pycap select` and `pycap serve` in error is told with its remedy, before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from pycap import commands
from pycap.data import DataError
from pycap.picking.images import ImageFolder
from pycap.web import WebError, server


def test_a_socket_that_cannot_listen_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Recorded(socket.socket):
        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            made.append(self)

    with server.listen(server.LOCAL, 0) as taken:
        monkeypatch.setattr(server.socket, "socket", Recorded)
        with pytest.raises(WebError):
            server.listen(server.LOCAL, taken.getsockname()[1])
    assert [each.fileno() for each in made] == [-1]


def test_a_port_that_is_taken_and_a_host_that_is_not_ours() -> None:
    with server.listen(server.LOCAL, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WebError, match=f"{port}: another program listens there; name another with --port"):
            server.listen(server.LOCAL, port)
    # 192.0.2.0/24 is nobody's (RFC 5737).
    with pytest.raises(WebError, match="^192.0.2.1:0: .*; name an address of this machine with --host$"):
        server.listen("192.0.2.1", 0)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://example.org/page", "https://"])
def test_an_origin_that_no_browser_would_send_is_refused(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.parser()[0].parse_args(["serve", "runs/coco", "--cors", origin])
    assert f"{origin} is no origin, as https://example.org is" in capsys.readouterr().err


def test_origins_as_browsers_send_them() -> None:
    origins = ["https://example.org", "http://localhost:3000", "chrome-extension://abcdef", "*"]
    assert commands.parser()[0].parse_args(["serve", "runs/coco", "--cors", *origins]).cors == origins


def test_an_archive_in_place_of_the_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "photos.tar").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"photos.tar: is a file, not a folder; .*, unpacked where they were in an archive"
    ):
        ImageFolder(tmp_path / "photos.tar")
