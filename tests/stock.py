"""The stock frameworks on a plain Hugging Face directory: the reference that decoders are tested against."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vt_core.decode.backend import BACKENDS, Stock, stock_backend


def load(backend: str, path: str | Path, dtype: str) -> Stock:
    """Load the stock framework's model on the CPU."""
    return stock_backend(backend).load_stock(Path(path), device="cpu", dtype=dtype, stored=dtype)


def generate(
    model: Stock, prompt: Sequence[int], max_tokens: int, eos: Collection[int]
) -> tuple[list[int], list[float]]:
    """Generate greedily. Returns full ids, and the start time followed by the time of each id."""
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


LOAD: dict[str, Callable[..., Stock]] = {backend: partial(load, backend) for backend in BACKENDS}
GENERATE: dict[str, Callable[..., tuple[list[int], list[float]]]] = dict.fromkeys(BACKENDS, generate)
