"""The models of a server by name: loaded at the start or on first use, unloaded when idle."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vt_core.errors import OptionError, VocabularyError, shorten
from vt_core.files.model_dir import ModelDirectory
from vt_core.model import Model
from vt_core.serve.engine import Engine, Task
from vt_core.serve.errors import ApiError
from vt_core.serve.metrics import Metrics
from vt_core.serve.settings import Settings
from vt_core.vocab.collection import check_task, open_task
from vt_core.vocab.ngrams import open_tables

_LOG = logging.getLogger("vt.serve")


#: Opens a task for the model of a directory.
TaskSource = Callable[[ModelDirectory], Task]


@dataclass
class Served:
    """A model that the server offers."""

    name: str  #: as clients write it
    load: Callable[[], Model]  #: loads it, with the rows of all tasks
    tasks: Mapping[str, TaskSource] = field(default_factory=dict)  #: by name
    created: int = field(default_factory=lambda: int(time.time()))  #: Unix time
    engine: Engine | None = None  #: while it is loaded
    users: int = 0  #: requests that use it now
    used: float = 0.0  #: when the last one ended, in the loop's time
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  #: held while it is loaded or unloaded


class Registry:
    """The models of a server. Used from one event loop."""

    def __init__(self, models: Sequence[Served], settings: Settings, metrics: Metrics) -> None:
        """
        Args:
            models: at least one; the first answers requests that name none.
            settings: of the server.
            metrics: of the server.

        Raises:
            OptionError: two models or tasks have one name.
        """
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            raise OptionError("two models have one name; give them names: --model NAME=PATH")
        self._settings, self._metrics = settings, metrics
        metrics.watch("vt_running_requests", "Requests that run", lambda: self._sum("running"))
        metrics.watch("vt_waiting_requests", "Requests that wait", lambda: self._sum("waiting"))
        metrics.watch(
            "vt_cache_bytes", "Bytes of cached prompts", lambda: sum(e.cache.nbytes for e in self._engines())
        )
        metrics.watch("vt_loaded_models", "Models in memory", lambda: len(list(self._engines())))

    def names(self) -> list[tuple[str, Served]]:
        """Every name that clients can ask for, ``model`` and ``model:task``."""
        return [
            (name, model)
            for model in self._models.values()
            for name in (model.name, *(f"{model.name}:{task}" for task in model.tasks))
        ]

    def find(self, name: str | None, task: str | None = None) -> tuple[Served, str | None]:
        """The model of a name, and the task that its name or ``task`` asks for.

        Raises:
            ApiError: there is no such model or task.
        """
        model = next(iter(self._models.values())) if name is None else self._models.get(name)
        if model is None and name is not None:
            base, _, suffix = name.rpartition(":")
            model = self._models.get(base)
            if model is not None and suffix in model.tasks and task in (None, suffix):
                return model, suffix
            model = None
        if model is None:
            raise ApiError(
                f"there is no model {shorten(name)}; this server has "
                f"{', '.join(known for known, _ in self.names())}",
                status=404,
                param="model",
                code="model_not_found",
            )
        if task is not None and task not in model.tasks:
            raise ApiError(
                f"vt.task is {shorten(task)}, but {model.name} has "
                f"{', '.join(map(shorten, model.tasks)) or 'no tasks'}",
                param="vt.task",
            )
        return model, task

    @asynccontextmanager
    async def use(self, model: Served) -> AsyncIterator[Engine]:
        """The engine of a model, which stays loaded while entered.

        Raises:
            VtError: the model cannot be loaded.
        """
        model.users += 1
        try:
            async with model.lock:
                if model.engine is None:
                    model.engine = await asyncio.to_thread(self._load, model)
            yield model.engine
        finally:
            model.users -= 1
            model.used = asyncio.get_running_loop().time()

    def load_all(self) -> None:
        """Load every model, in order, before the loop runs.

        Raises:
            VtError: a model cannot be loaded.
        """
        for model in self._models.values():
            model.engine = self._load(model)

    async def unload_idle(self) -> None:
        """Unload models that were not used for the time of the settings; runs until it is canceled."""
        idle = self._settings.idle
        assert idle is not None
        while True:
            await asyncio.sleep(max(0.05, min(idle / 4, 10.0)))
            now = asyncio.get_running_loop().time()
            for model in self._models.values():
                async with model.lock:
                    engine = model.engine
                    if engine is not None and not model.users and now - model.used > idle:
                        model.engine = None
                        await engine.close()
                        await asyncio.to_thread(_freeze)
                        _LOG.info("unloaded", extra={"fields": {"model": model.name}})

    async def close(self) -> None:
        """Free all models."""
        for model in self._models.values():
            engine, model.engine = model.engine, None
            if engine is not None:
                await engine.close()

    def _load(self, model: Served) -> Engine:
        started = time.perf_counter()
        loaded = model.load()
        _freeze()
        seconds = round(time.perf_counter() - started, 3)
        _LOG.info("loaded", extra={"fields": {"model": model.name, "seconds": seconds}})
        return Engine(
            loaded,
            {name: source(loaded.directory) for name, source in model.tasks.items()},
            places=self._settings.batch,
            queue=self._settings.queue,
            cache_bytes=self._settings.cache_bytes,
            metrics=self._metrics,
            name=model.name,
        )

    def _engines(self) -> Iterable[Engine]:
        return (model.engine for model in self._models.values() if model.engine is not None)

    def _sum(self, attribute: str) -> int:
        return sum(getattr(engine.turnstile, attribute) for engine in self._engines())


def _freeze() -> None:
    """Keep what is alive now out of garbage collections: going through a framework's 400,000 objects stops
    every thread for 0.2 s.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def named_tasks(tasks: Iterable[Path]) -> dict[str, TaskSource]:
    """Tasks by their names, with the n-gram tables next to their files.

    Args:
        tasks: files, or names in the collection of task vocabularies.

    Raises:
        VocabularyError: a file cannot be read, there is no such task, or two tasks have one name.
    """
    sources: dict[str, TaskSource] = {}
    for task in tasks:
        read = check_task(task)
        name = str(task) if read is None else read.name
        if name in sources:
            raise VocabularyError(f"{task}: two tasks are named {shorten(name)}; rename one")
        sources[name] = partial(_open_task, task)
    return sources


def _open_task(task: Path, directory: ModelDirectory) -> Task:
    vocabulary, file = open_task(task, directory)
    return Task(vocabulary, tuple(open_tables([file], directory.manifest.tokenizer_digest)))
