"""Connections whose client sends or reads too slowly: uvicorn limits the time between requests only."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: Most bytes of a request's headers.
MAX_HEADERS = 64 << 10


def limited(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, with ``seconds`` for a client to send the headers of a request, and to make
    room for more of a response. The time for a body is the application's affair.
    """
    return type("LimitedConnection", (_Connection,), {"seconds": seconds})


class _Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    seconds: float
    _headers_timer: asyncio.TimerHandle | None = None  # runs while a request's headers are awaited
    _reading_timer: asyncio.TimerHandle | None = None  # runs while the client reads nothing
    _received = 0  # bytes of headers that are not complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        cycle = self.cycle  # of the request whose headers came last
        if cycle is not None and (cycle is not before or not cycle.response_complete):
            if self._headers_timer is not None:
                self._headers_timer.cancel()
            self._headers_timer, self._received = None, 0
            return
        self._await_headers()
        if cycle is None or not cycle.more_body:  # not the rest of a body that was refused
            self._received += len(data)
        if self._received > MAX_HEADERS:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_timer = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reading_timer is not None:
            self._reading_timer.cancel()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Closing waits until the client has read what was sent.
        self._await_headers()

    def _await_headers(self) -> None:
        if self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop_timers(self) -> None:
        for timer in (self._headers_timer, self._reading_timer):
            if timer is not None:
                timer.cancel()
