"""Which requests run: first come, first served, a bounded number at a time, and a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vt_core.serve.errors import ApiError


class Turnstile:
    """Lets requests of one model in. Those that run together have the same task: a model holds the rows of
    one task at a time.

    Used from one event loop.
    """

    def __init__(self, places: int, queue: int) -> None:
        """
        Args:
            places: requests that may run at once.
            queue: requests that may wait.
        """
        self._places, self._queue = places, queue
        self._task: str | None = None
        self._waiting: deque[tuple[str | None, asyncio.Future[None]]] = deque()
        self.running = 0  #: requests that run now

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._waiting)

    def check(self, count: int) -> None:
        """Refuse ``count`` more requests if they do not fit.

        Raises:
            ApiError: the queue is full; status 429.
        """
        free = max(0, self._places - self.running) if not self._waiting else 0
        if count > free + self._queue - self.waiting:
            raise ApiError(
                f"{self.running} requests are running and {self.waiting} waiting; try again later",
                status=429,
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    @asynccontextmanager
    async def admitted(self, task: str | None) -> AsyncIterator[None]:
        """Wait for a place; hold it while entered."""
        await self._enter(task)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, task: str | None) -> None:
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, ticket))
        self._admit()
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.cancelled():
                self._waiting = deque(pair for pair in self._waiting if pair[1] is not ticket)
                self._admit()  # it may have been all that kept requests of another task waiting
            else:  # admitted and canceled in the same turn of the loop
                self._leave()
            raise

    def _leave(self) -> None:
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        # Strictly in order: a request of another task is never overtaken, so it waits a bounded time.
        while self._waiting and self.running < self._places:
            task, ticket = self._waiting[0]
            if self.running and task != self._task:
                return
            self._waiting.popleft()
            if ticket.cancelled():
                continue
            self.running += 1
            self._task = task
            ticket.set_result(None)
