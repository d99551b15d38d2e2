"""Runs the requests of one decoder together: gathers what they ask for, and calls the decoder once for all.

There is no thread of the scheduler's own. A thread that waits for a token of its request drives rounds for
all live requests until it has one; other threads wait, and one of them goes on driving. So with one request
the model runs in the caller's thread, only while the caller waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from vt_core.decode.asks import Ask, Check, Follow, Prefill
from vt_core.decode.costs import Costs
from vt_core.decode.decoder import Decoder
from vt_core.decode.metrics import Clock
from vt_core.decode.request import Request
from vt_core.decode.types import Read
from vt_core.errors import BackendError
from vt_core.types import Ids

#: Tokens of a request that may wait for its caller. A request with more takes no part in rounds.
BACKLOG = 64

#: Requests that run at once. More of them wait.
BATCH = 8


class Scheduler:
    """The live requests of a decoder."""

    def __init__(
        self,
        decoder: Decoder[Any, Any],
        costs: Costs | None = None,
        clock: Clock = time.perf_counter,
        batch: int = BATCH,
        cache_bytes: int | None = None,
    ) -> None:
        """
        Args:
            decoder: runs the model.
            costs: learns what reads and verifications cost.
            clock: clock of these measurements, seconds.
            batch: most requests that run at once.
            cache_bytes: most bytes that their caches may take, as far as can be foreseen; None for no bound.
                A request that would exceed it waits until others end.
        """
        self._decoder = decoder
        self._costs = Costs() if costs is None else costs
        self._clock = clock
        self._batch = batch
        self._cache_bytes = cache_bytes
        self._token_bytes = 0.0  #: bytes of caches per token, as measured
        self._changed = threading.Condition()
        self._driver: int | None = None  #: thread that drives
        self._holders = 0  #: threads that wait to :meth:`hold`; they go before the next token
        self._had_prompt = False  #: whether the last round read a prompt
        self._tasks: list[_Task] = []  #: in the order in which they came
        self._closed = False

    def run(self, request: Request, prompt: Ids) -> Generator[int, None, None]:
        """Yield the full ids of a request as they are final. Closing the generator cancels the request.

        Raises:
            BackendError: the scheduler is closed, or the request's slot is in use.
        """
        request.company = self.company
        task = _Task(request, prompt)
        with self._changed:
            self._check_open()
            if request.slot is not None and any(
                other.request.slot is request.slot for other in self._tasks if not other.cancelled
            ):
                raise BackendError(
                    "this session is in the middle of a turn; finish or close its stream first"
                )
            self._tasks.append(task)
        try:
            ended = False
            while not ended:
                self._advance(task)
                ended = task.ended
                while task.ready:
                    yield task.ready.popleft()
            if task.error is not None:
                raise task.error
        finally:
            self._cancel(task)

    def company(self) -> int:
        """Number of requests that take part in rounds."""
        return sum(task.runs for task in self._tasks)

    @property
    def is_idle(self) -> bool:
        """Whether no request is live."""
        return not self._tasks

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep rounds from running; waits for the one that runs.

        Raises:
            BackendError: the scheduler is closed.
        """
        with self._changed:
            self._holders += 1
            try:
                while self._driver is not None:
                    self._check_thread()
                    self._changed.wait()
            finally:
                self._holders -= 1
                self._changed.notify_all()
            self._check_open()
            self._driver = threading.get_ident()
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def hold_idle(self) -> Iterator[None]:
        """As :meth:`hold`, when no request is live.

        Raises:
            BackendError: a request is live, or the scheduler is closed.
        """
        with self.hold():
            if self._tasks:
                raise _busy()
            yield

    def close(self) -> None:
        """End all requests: whoever waits for one gets a BackendError. Closing twice is allowed."""
        if self._closed:
            return
        with self.hold():
            self._closed = True
            for task in list(self._tasks):
                task.fail(_closed())
                self._end(task)
            del self._decoder  # or its tables would stay open as long as this object

    def set_learned(self, ids: list[int]) -> None:
        """Replace the head's learned rows; only while :meth:`hold` is held."""
        self._decoder.head.set_learned(ids)
        self._activate_live()

    # One round.

    def _round(self) -> None:
        """Answer what the requests that take part ask for: checks, or one prompt, or the next tokens."""
        self._end_cancelled()
        self._start_waiting()
        tasks = [task for task in self._tasks if task.runs]
        prompts = [task for task in tasks if isinstance(task.ask, Prefill)]
        reads = [task for task in tasks if isinstance(task.ask, (Read, Follow))]
        if any(isinstance(task.ask, Check) for task in tasks):
            self._check(tasks)
        elif prompts and not (self._had_prompt and reads):
            self._prefill(prompts[0])
        else:
            self._read(reads)
        # Prompts and tokens take turns: many new requests do not stop the others.
        self._had_prompt = bool(prompts) and not self._had_prompt
        for task in tasks:
            if task.ended:
                self._end(task)

    def _start_waiting(self) -> None:
        """Start requests in the order in which they came, as long as there is room."""
        running = sum(task.runs for task in self._tasks)
        for task in [task for task in self._tasks if not task.started and not task.cancelled]:
            if running and (running >= self._batch or not self._has_room(task)):
                return
            task.start()
            running += 1

    def _has_room(self, task: _Task) -> bool:
        if self._cache_bytes is None:
            return True
        tokens = task.most_tokens + sum(other.most_tokens for other in self._tasks if other.started)
        return tokens * self._token_bytes <= self._cache_bytes

    def _check(self, tasks: list[_Task]) -> None:
        """Verify the blocks of all requests, also of those that do not ask for it yet: the full head is read
        once.
        """
        for task in tasks:
            if isinstance(task.ask, Read):
                task.send(None)
        asking = [(task, task.ask.block) for task in tasks if isinstance(task.ask, Check)]
        started = self._clock()
        with _failing([task for task, _ in asking]):
            verified = self._decoder.verify([block for _, block in asking])
            spent = self._clock() - started
            positions = sum(len(block.drafts) for _, block in asking)
            self._costs.add_verification(positions, spent)
            for (task, block), choices in zip(asking, verified, strict=True):
                task.request.checks.verify_s += spent * len(block.drafts) / positions
                task.send(choices)

    def _prefill(self, task: _Task) -> None:
        assert isinstance(task.ask, Prefill)
        slot, ids = task.ask.slot, task.ask.ids
        with _failing([task]):
            steps = self._decoder.prefill(slot, ids)
            self._token_bytes = max(self._token_bytes, self._decoder.slot_bytes(slot) / len(slot.text))
            task.send(steps)

    def _read(self, tasks: list[_Task]) -> None:
        """Run the body for all requests that ask for it."""
        if not tasks:
            return
        started, tokens = self._clock(), 0
        for together in (True, False):
            group = [task for task in tasks if task.request.together == together]
            reads = [task.ask for task in group if isinstance(task.ask, Read)]
            tokens += sum(len(read.ids) for read in reads)
            with _failing(group):
                steps = iter(self._decoder.read(reads, together=together) if reads else ())
                answers = [task.ask.steps if isinstance(task.ask, Follow) else next(steps) for task in group]
                tokens += len(group) - len(reads)
                for task, answer in zip(group, answers, strict=True):
                    task.send(answer)
        self._costs.reads.add(tokens, self._clock() - started)

    # Ends of requests.

    def _end_cancelled(self) -> None:
        for task in [task for task in self._tasks if task.cancelled]:
            task.close()
            self._end(task)

    def _end(self, task: _Task) -> None:
        """Forget a request, and the rows that only it needed."""
        with self._changed:
            if task in self._tasks:
                self._tasks.remove(task)
        if task.started:
            self._decoder.release()
            self._decoder.head.truncate()
            self._activate_live()

    def _activate_live(self) -> None:
        live = [np.array(list(task.request.needed), dtype=np.int64) for task in self._tasks]
        if live:
            self._decoder.head.add(np.concatenate(live))

    def _cancel(self, task: _Task) -> None:
        """End a request whose caller has left; at once, or where another thread drives, in its next round.

        Garbage collection may call this anywhere, so it must not wait for a round.
        """
        with self._changed:
            task.cancelled = True
            if task not in self._tasks or self._driver is not None:
                return
            self._driver = threading.get_ident()
        try:
            self._end_cancelled()
        finally:
            self._release()

    # Driving.

    def _advance(self, task: _Task) -> None:
        """Return when a request has tokens or has ended; drive, unless another thread does."""
        with self._changed:
            while not task.has_news and (self._driver is not None or self._holders):
                self._check_thread()
                self._changed.wait()
            if task.has_news:
                return
            self._driver = threading.get_ident()
        try:
            while not task.has_news:
                self._round()
                with self._changed:
                    self._changed.notify_all()
        finally:
            self._release()

    def _release(self) -> None:
        try:
            if any(task.cancelled for task in self._tasks):
                self._end_cancelled()
        finally:
            with self._changed:
                self._driver = None
                self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    def _check_thread(self) -> None:
        """A thread that waited for a round of its own would wait for ever."""
        if self._driver == threading.get_ident():
            raise _busy()


def _closed() -> BackendError:
    return BackendError("this model is closed; load it again")


def _busy() -> BackendError:
    return BackendError("this model is in the middle of a request; finish or close its stream first")


class _Task:
    """A request with its loop."""

    def __init__(self, request: Request, prompt: Ids) -> None:
        self.request = request
        self.ask: Ask | None = None  #: what the request waits for
        self.ready: deque[int] = deque()  #: final ids that the caller has not taken
        self.error: BaseException | None = None  #: why the request failed
        self.started = self.ended = self.cancelled = False
        self.most_tokens = len(prompt) + request.max_tokens  #: that its caches may hold
        self._loop = request.asks(prompt)

    @property
    def runs(self) -> bool:
        """Whether the request takes part in rounds."""
        return self.started and not self.ended and not self.cancelled and len(self.ready) < BACKLOG

    @property
    def has_news(self) -> bool:
        """Whether the caller need not wait."""
        return bool(self.ready) or self.ended

    def start(self) -> None:
        self.started = True
        self.send(None)

    def send(self, answer: Any) -> None:
        """Answer the request and learn what it asks for next."""
        self._go_on(lambda: self._loop.send(answer))

    def fail(self, error: BaseException) -> None:
        """End the request with an error."""
        if not self.ended:
            self._go_on(lambda: self._loop.throw(error))

    def close(self) -> None:
        """End the request early."""
        self._loop.close()
        self.ended = True

    def _go_on(self, step: Any) -> None:
        try:
            ask = step()
            while isinstance(ask, list):
                self.ready.extend(ask)
                ask = self._loop.send(None)
            self.ask = ask
        except StopIteration:
            self.ended = True
        except BaseException as error:
            self.error, self.ended = error, True
            if not isinstance(error, Exception):
                raise


@contextmanager
def _failing(tasks: list[_Task]) -> Iterator[None]:
    """If what is run for some requests raises, they all fail: what their caches hold is not known."""
    try:
        yield
    except Exception as error:
        for task in tasks:
            task.fail(error)
    except BaseException as error:
        for task in tasks:
            if not task.ended:
                with suppress(BaseException):
                    task.fail(BackendError(f"the request was interrupted ({type(error).__name__})"))
        raise
