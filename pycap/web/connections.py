"""One connection of a client, on uvicorn's protocol: what stands still is closed, and every error is JSON."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's connection over h11, and what that leaves open: it would wait without end for a request's head, for the rest
    of a body that nobody reads, and for a client that does not take its answer."""

    #: Seconds in which a request's head must have come, what is left of a body that was refused, and an answer be taken.
    patience_s = 10.0
    #: Connections at once; further ones are closed. A process may have 1,024 files open where nobody has said otherwise.
    most = 960

    _timer: asyncio.TimerHandle | None = None
    _crowded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._crowded = True
        self._stop_timer()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._crowded = False
        self._stop_timer()
        self._watch()

    def _watch(self) -> None:
        """The timer runs while the client is to do something and the application waits for nothing; its own waiting for a
        body is the application's."""
        waiting = self.cycle is None or self.cycle.response_complete or self._crowded
        if not waiting:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.patience_s, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP: answered where no answer has begun, and the connection is closed."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:  # the application is told that nobody listens any more
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"status": "error", "message": msg}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """The server stops: what is under way is answered, else the connection closed."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False
