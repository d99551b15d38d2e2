"""The stock frameworks, for scripts and tests that hold a plain Hugging Face directory: one call each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.export import stock_copy
from vt_core.decode.backend import BACKENDS, Stock, stock_backend
from vt_core.files.model_dir import ModelDirectory

Tokens = tuple[list[int], list[float]]  #: full ids and the time of each, the start of the call first


def export(model: Path) -> Path:
    """A model directory as a plain Hugging Face one, in the user's cache."""
    return stock_copy(ModelDirectory.open(model))


def load(backend: str, path: str | Path, dtype: str) -> Stock:
    return stock_backend(backend).load_stock(Path(path), device="cpu", dtype=dtype, stored=dtype)


def generate(model: Stock, prompt: Sequence[int], max_tokens: int, eos: Collection[int]) -> Tokens:
    times = [time.perf_counter()]
    ids = model.generate(prompt, max_tokens, eos, lambda: times.append(time.perf_counter()))
    return ids, times


def next_logits(backend: str, model: Stock, context: Sequence[int]) -> np.ndarray:
    return model.next_logits(context)


def text_logits(backend: str, model: Stock, prompt: Sequence[int], text: Sequence[int]) -> np.ndarray:
    return model.text_logits(prompt, text)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of ``logits [n, V]``, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


LOAD: dict[str, Callable[..., Any]] = {backend: partial(load, backend) for backend in BACKENDS}
GENERATE: dict[str, Callable[..., Tokens]] = dict.fromkeys(BACKENDS, generate)
