"""Running servers for tests: in a thread of this process, on a free port of the loopback address."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from vt_core import load
from vt_core.serve.registry import Served
from vt_core.serve.server import serve
from vt_core.serve.settings import Settings


@dataclass
class Running:
    """A server that runs."""

    url: str
    models: dict[str, Any]  #: by name

    @property
    def api(self) -> str:
        return f"{self.url}/v1"


@contextmanager
def running(
    models: dict[str, Any],
    tasks: dict[str, Any] | None = None,
    *,
    load_model: Callable[[], Any] | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """A server of loaded models by name, stopped at the end; it closes the models. ``load_model`` loads one
    that is None.
    """
    started = threading.Event()
    state: dict[str, Any] = {}

    def ready(server, url):
        state.update(server=server, url=url)
        started.set()

    def loader(model):
        return load_model or (lambda: model)

    def source(task):
        return task if callable(task) else lambda directory: task

    sources = {name: source(task) for name, task in (tasks or {}).items()}
    served = [Served(name, loader(model), sources) for name, model in models.items()]

    def run():
        try:
            serve(served, Settings(**{"port": 0, "drain": 5.0, **settings}), ready)
        except BaseException as error:
            state["error"] = error
            started.set()
            raise

    thread = threading.Thread(target=run, name="server")
    thread.start()
    assert started.wait(60) and "error" not in state, state
    try:
        yield Running(state["url"], models)
    finally:
        state["server"].should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def tiny_model(tiny, kind="llama", **options):
    pytest.importorskip("torch")
    return load(tiny(kind)[1], backend="torch", device="cpu", dtype="float32", **options)
