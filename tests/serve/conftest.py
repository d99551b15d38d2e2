from __future__ import annotations

import importlib.util

import pytest

NEEDED = ("starlette", "uvicorn", "prometheus_client", "httpx", "openai")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["*"]


@pytest.fixture(scope="module")
def server(tiny):
    """A server of one tiny model, named ``tiny``."""
    from tests.serve.running import running, tiny_model

    with running({"tiny": tiny_model(tiny)}) as server:
        yield server


@pytest.fixture(scope="module")
def reference(tiny):
    """The same model, for the test itself."""
    from tests.serve.running import tiny_model

    with tiny_model(tiny) as model:
        yield model
