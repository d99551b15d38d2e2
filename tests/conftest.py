from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest

# Tiny products: threads would wait for each other longer than they compute. Before any library reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from converters import convert
from tests.tiny import write_model

# A deadline would test how busy the machine is.
hypothesis.settings.register_profile("vt", deadline=None)
hypothesis.settings.load_profile("vt")

FRAMEWORKS = {"torch": "torch", "mlx": "mlx_lm"}


def backend_params() -> list:
    """The backends whose framework is installed; a machine without one runs the other's tests."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(importlib.util.find_spec(framework) is None, reason=f"no {framework}"),
        )
        for name, framework in FRAMEWORKS.items()
    ]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What tests convert and quantize does not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """``tiny(kind, dtype)``: (Hugging Face directory, model directory) of a random model, made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(kind: str, dtype: str = "float32") -> tuple[Path, Path]:
        if (kind, dtype) not in made:
            root = tmp_path_factory.mktemp(f"{kind}-{dtype}")
            source = write_model(root / "hf", kind, dtype)
            made[kind, dtype] = (source, convert(source, root / "vt", progress=False))
        return made[kind, dtype]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers that run tests side by side must give them the same names."""
    for item in items:
        assert " at 0x" not in item.nodeid, f"an address is in the name of {item.nodeid}; give it an id"
