"""Which requests run, in which order, and when the queue is full."""

from __future__ import annotations

import asyncio

import pytest

from vt_core.serve.errors import ApiError
from vt_core.serve.turnstile import Turnstile


class Visitors:
    """Enter a turnstile under names and leave when told."""

    def __init__(self, turnstile):
        self.turnstile, self.inside = turnstile, []
        self._tasks, self._leave = {}, {}

    async def come(self, name, task=None):
        self._leave[name] = asyncio.Event()

        async def visit():
            async with self.turnstile.admitted(task):
                self.inside.append(name)
                await self._leave[name].wait()
            self.inside.remove(name)

        self._tasks[name] = asyncio.create_task(visit())
        await self._settle()

    async def leave(self, name):
        self._leave[name].set()
        await self._settle()

    async def cancel(self, name):
        self._tasks[name].cancel()
        await self._settle()
        self.inside = [each for each in self.inside if each != name]

    async def _settle(self):
        for _ in range(10):
            await asyncio.sleep(0)


def run(scenario, places=2, queue=2):
    async def main():
        turnstile = Turnstile(places, queue)
        await scenario(turnstile, Visitors(turnstile))

    asyncio.run(main())


def test_requests_enter_in_order():
    async def scenario(turnstile, visitors):
        for name in "abcd":
            await visitors.come(name)
        assert visitors.inside == ["a", "b"] and turnstile.waiting == 2
        await visitors.leave("b")
        assert visitors.inside == ["a", "c"]
        await visitors.leave("a")
        assert visitors.inside == ["c", "d"] and turnstile.waiting == 0

    run(scenario)


def test_requests_of_one_task_run_together():
    async def scenario(turnstile, visitors):
        await visitors.come("a", "math")
        await visitors.come("b", "sql")
        await visitors.come("c", "math")  # not before b, or b might wait for ever
        assert visitors.inside == ["a"]
        await visitors.leave("a")
        assert visitors.inside == ["b"]
        await visitors.leave("b")
        assert visitors.inside == ["c"]
        await visitors.come("d", "math")
        assert visitors.inside == ["c", "d"]

    run(scenario, queue=9)


def test_canceled_requests_make_room():
    async def scenario(turnstile, visitors):
        for name in "abcd":
            await visitors.come(name)
        await visitors.cancel("c")
        assert turnstile.waiting == 1
        await visitors.cancel("a")
        assert visitors.inside == ["b", "d"] and turnstile.running == 2
        for name in "bd":
            await visitors.leave(name)
        assert turnstile.running == 0

    run(scenario)


def test_canceled_request_of_another_task_holds_nobody_up():
    async def scenario(turnstile, visitors):
        await visitors.come("a", "math")
        await visitors.come("b", "sql")
        await visitors.come("c", "math")
        await visitors.cancel("b")
        assert visitors.inside == ["a", "c"]

    run(scenario)


def test_request_canceled_as_it_enters_gives_its_place_back():
    async def scenario(turnstile, visitors):
        await visitors.come("a")
        waiting = asyncio.create_task(turnstile._enter(None))
        await asyncio.sleep(0)
        turnstile._leave()  # admits the next one, which has not run since
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert turnstile.running == 0

    run(scenario, places=1)


def test_full_queue_refuses():
    async def scenario(turnstile, visitors):
        turnstile.check(4)
        with pytest.raises(ApiError):
            turnstile.check(5)
        for name in "abc":
            await visitors.come(name)
        turnstile.check(1)
        with pytest.raises(ApiError, match="2 requests are running and 1 waiting") as caught:
            turnstile.check(2)
        assert caught.value.status == 429 and caught.value.headers == {"Retry-After": "1"}

    run(scenario)
