"""Responses whose client may leave: the work for them ends then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from vt_core.serve.errors import ApiError, stopping

Result = TypeVar("Result")

COMMENT = b": keep-alive\n\n"


class ClientLeft(Exception):
    """The client has closed the connection before its response was whole."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is canceled when the client leaves.

    Raises:
        ClientLeft: it has.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        if not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. What fails before the first event is an ordinary error response."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        describe: Callable[[BaseException], ApiError],
        error_event: Callable[[ApiError], str],
        *,
        keep_alive: float,
        timeout: Callable[[], ApiError],
        seconds: float,
    ) -> None:
        """
        Args:
            events: the events, with their line feeds.
            describe: what to tell the client of an exception.
            error_event: how the stream tells it after its first event.
            keep_alive: seconds without an event after which a comment is sent.
            timeout: the error of a stream that takes too long.
            seconds: what is too long.
        """
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._describe, self._error_event = events, describe, error_event
        self._keep_alive, self._timeout, self._seconds = keep_alive, timeout, seconds
        self._started = False
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            try:
                await asyncio.wait_for(self._send_all(send), self._seconds)
            except asyncio.TimeoutError:
                await self._send_error(self._timeout(), scope, receive, send)
            except asyncio.CancelledError:
                # The client has left, or the server stops.
                await self._send_error(stopping(), scope, receive, send)
                raise
            except Exception as error:
                if isinstance(error, OSError) and self._started:
                    raise ClientLeft from error
                await self._send_error(self._describe(error), scope, receive, send)

        await while_connected(receive, work())

    async def _send_all(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        pinger = asyncio.ensure_future(self._ping(send))
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    self._last = loop.time()
                    await self._send(send, event.encode())
        finally:
            pinger.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait = self._last + self._keep_alive - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                self._last = loop.time()
                await self._send(send, COMMENT)

    async def _send(self, send: Send, body: bytes) -> None:
        if not self._started:
            self._started = True
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _send_error(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await json_error(error)(scope, receive, send)
            return
        await send(
            {"type": "http.response.body", "body": self._error_event(error).encode(), "more_body": False}
        )


def json_error(error: ApiError) -> JSONResponse:
    """The response of a failed request."""
    return JSONResponse(error.body(), error.status, error.headers)
