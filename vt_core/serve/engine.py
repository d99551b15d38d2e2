"""One model and the requests that run on it, in worker threads beside the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from vt_core import __version__
from vt_core.decode.options import request_options
from vt_core.model import Chunk, Model, Score
from vt_core.serve.cache import PromptCache
from vt_core.serve.markup import Markup
from vt_core.serve.metrics import Metrics
from vt_core.serve.turnstile import Turnstile
from vt_core.vocab.ngrams import NgramTable
from vt_core.vocab.task import TaskVocabulary

Result = TypeVar("Result")


@dataclass(frozen=True)
class Task:
    """A task that requests can choose."""

    vocabulary: TaskVocabulary
    tables: tuple[NgramTable, ...] = ()  #: to draft from


@dataclass(frozen=True)
class Job:
    """One answer to generate."""

    ids: list[int]  #: the prompt, full ids
    options: dict[str, Any]  #: of :meth:`vt_core.Model.stream`
    task: str | None = None  #: name of the task vocabulary; None: the union of all
    shown: Mapping[int, str] = field(default_factory=dict)  #: special tokens that the text shows, and how


@dataclass
class _Run:
    """A job that runs or waits. ``stopped`` tells its thread that nobody wants more."""

    job: Job
    emit: Callable[[Chunk | BaseException], None]
    stopped: threading.Event = field(default_factory=threading.Event)


class Engine:
    """A loaded model, used from one event loop."""

    def __init__(
        self,
        model: Model,
        tasks: Mapping[str, Task],
        *,
        places: int,
        queue: int,
        cache_bytes: int,
        metrics: Metrics,
        name: str,
    ) -> None:
        """
        Args:
            model: the model, whose static rows are those of all tasks.
            tasks: by name.
            places: requests that may run at once.
            queue: requests that may wait.
            cache_bytes: most bytes of cached prompts.
            metrics: counts what happens here.
            name: of the model, for metrics.
        """
        self.model, self.tasks = model, tasks
        self.turnstile = Turnstile(places, queue)
        self.cache = PromptCache(model, cache_bytes)
        self.markup = Markup.of(model.tokenizer)
        self.fingerprint = _fingerprint(model)  #: changes where texts may
        self.id_length = 24 if self.markup.calls is None else self.markup.calls.id_length
        self._metrics, self._name = metrics, name
        self._threads = ThreadPoolExecutor(places, thread_name_prefix=f"vt-{name}")
        self._task: str | None = None
        self._task_lock = threading.Lock()
        self._runs: set[asyncio.Task[None]] = set()

    async def generate(self, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Run jobs, as many at once as there are places; yields their chunks as they come, with the index of
        the job. Closing the generator cancels what still runs or waits.

        Raises:
            ApiError: the queue is full.
            VtError: as :meth:`vt_core.Model.stream`.
        """
        self.turnstile.check(len(jobs))
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Chunk | BaseException]] = asyncio.Queue()

        def run_for(index: int, job: Job) -> _Run:
            def emit(item: Chunk | BaseException) -> None:
                with suppress(RuntimeError):  # the loop is closed: the server has ended
                    loop.call_soon_threadsafe(queue.put_nowait, (index, item))

            return _Run(job, emit)

        runs = [run_for(index, job) for index, job in enumerate(jobs)]
        tasks = [asyncio.create_task(self._run(run)) for run in runs]
        self._runs.update(tasks)
        for task in tasks:
            task.add_done_callback(self._runs.discard)
        clocks = [self._metrics.clock(self._name) for _ in jobs]
        left = len(jobs)
        try:
            while left:
                index, item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                clocks[index].chunk(item)
                left -= item.result is not None
                yield index, item
        finally:
            # Nothing is awaited here: a task that was canceled may be canceled again at each await. The
            # threads stop within a step, and their places are free then.
            for run, task in zip(runs, tasks, strict=True):
                run.stopped.set()
                task.cancel()

    async def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], task: str | None, top: int = 0
    ) -> list[Score]:
        """Score pairs of prompt and continuation with the full head; see
        :meth:`vt_core.Model.score_each`.
        """

        def score() -> list[Score]:
            return list(self.model.score_each(pairs, top=top))

        async with self.turnstile.admitted(task):
            return await self._in_thread(score)

    async def close(self) -> None:
        """Cancel what runs, wait for its threads, and free the model."""
        for task in list(self._runs):
            task.cancel()
        await asyncio.to_thread(self._threads.shutdown)
        self.cache.clear()
        await asyncio.to_thread(self.model.close)

    async def _run(self, run: _Run) -> None:
        async with self.turnstile.admitted(run.job.task):
            self._metrics.batch(self._name, self.turnstile.running)
            await self._in_thread(lambda: self._work(run), run.stopped)

    async def _in_thread(
        self, function: Callable[[], Result], stopped: threading.Event | None = None
    ) -> Result:
        """Run a function in a thread of this engine and wait for its end, also when canceled: the place is
        taken until then. ``stopped`` tells the function to end.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stopped is not None:
                stopped.set()
            with suppress(Exception):
                await _finished(future)
            raise

    def _work(self, run: _Run) -> None:
        """Run one job in a worker thread."""
        try:
            if run.stopped.is_set():
                return
            self._select(run.job.task)
            ids = np.array(run.job.ids, dtype=np.int64)
            slot = self.cache.take(ids)
            options = request_options(**run.job.options)
            with closing(self.model.run(ids, options, slot, run.job.shown)) as chunks:
                for chunk in chunks:
                    run.emit(chunk)
                    if run.stopped.is_set():
                        break
            if slot is not None:
                self.cache.put(slot)
        except BaseException as error:
            run.emit(error)

    def _select(self, name: str | None) -> None:
        """Give the model the rows of a task. The turnstile admits one task at a time, so the first request of
        another task finds the model idle.
        """
        with self._task_lock:
            if name != self._task and self.tasks:
                chosen = list(self.tasks.values()) if name is None else [self.tasks[name]]
                self.model.set_task(*(task.vocabulary for task in chosen))
                self.model.set_drafts(*(table for task in chosen for table in task.tables))
                self._task = name


def _fingerprint(model: Model) -> str:
    parts = [__version__, {**model.identity, "head": model.decoder.head.name}]
    return "vt-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


async def _finished(future: asyncio.Future[Any]) -> None:
    """Wait for a future, whatever cancels the waiting; its own error is raised."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    future.result()
