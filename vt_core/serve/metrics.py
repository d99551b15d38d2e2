"""What ``/metrics`` tells, in Prometheus' format."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vt_core.decode.metrics import memory_bytes
from vt_core.model import Chunk, Stats

_TTFT = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TPOT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64)

#: Counters of tokens and checks: name, help, and the field of :class:`Stats` that they add up.
_SUMS = {
    "vt_prompt_tokens": ("Tokens of prompts", "prompt_tokens"),
    "vt_cached_tokens": ("Tokens of prompts that the prompt cache held", "cached_tokens"),
    "vt_generated_tokens": ("Tokens generated", "generated_tokens"),
    "vt_verifications": ("Reads of the full head", "verifications"),
    "vt_rescued_tokens": ("Tokens that verification replaced", "rescued"),
    "vt_rolled_back_steps": ("Steps thrown away because they followed a wrong token", "rolled_back"),
    "vt_drafted_tokens": ("Tokens drafted", "drafted"),
    "vt_accepted_tokens": ("Drafted tokens that were right", "accepted"),
}


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._time = clock
        self.registry = CollectorRegistry()
        model = ["model"]

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self._requests = counter("vt_requests", "Responses by path and status", ["path", "status"])
        self._cancelled = counter("vt_cancelled", "Requests whose client left", [])
        self._sums = {attribute: counter(name, text, model) for name, (text, attribute) in _SUMS.items()}
        self._ttft = Histogram(
            "vt_ttft_seconds", "Seconds from a request to its first token", model,
            buckets=_TTFT, registry=self.registry,
        )  # fmt: skip
        self._tpot = Histogram(
            "vt_tpot_seconds", "Seconds per token after the first", model,
            buckets=_TPOT, registry=self.registry,
        )  # fmt: skip
        self._batch = Histogram(
            "vt_batch_size",
            "Requests that run when one starts",
            model,
            buckets=_BATCH,
            registry=self.registry,
        )
        memory = Gauge("vt_memory_bytes", "Resident memory of the server", registry=self.registry)
        memory.set_function(lambda: memory_bytes() or 0)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def response(self, path: str, status: int) -> None:
        """Count a response. ``path``: of a route, so that clients cannot invent more."""
        self._requests.labels(path, str(status)).inc()

    def cancelled(self) -> None:
        """Count a request whose client left."""
        self._cancelled.inc()

    def batch(self, model: str, size: int) -> None:
        """Record how many requests run, one that starts included."""
        self._batch.labels(model).observe(size)

    def clock(self, model: str) -> AnswerClock:
        """A clock for an answer that was asked for now."""
        return AnswerClock(self, model, self._time, self._time())

    def finished(self, model: str, stats: Stats, ttft: float | None, tpot: float | None) -> None:
        """Record a finished answer."""
        for attribute, counter in self._sums.items():
            counter.labels(model).inc(getattr(stats, attribute))
        if ttft is not None:
            self._ttft.labels(model).observe(ttft)
        if tpot is not None:
            self._tpot.labels(model).observe(tpot)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


@dataclass
class AnswerClock:
    """Times the chunks of one answer; waiting in the queue counts."""

    _metrics: Metrics
    _model: str
    _time: Callable[[], float]
    _started: float
    _first: float | None = field(default=None)

    def chunk(self, chunk: Chunk) -> None:
        """Take note of a chunk that arrived now."""
        now = self._time()
        if self._first is None:
            self._first = now
        if chunk.result is not None:
            stats = chunk.result.stats
            later = stats.generated_tokens - 1
            tpot = (now - self._first) / later if later > 0 else None
            self._metrics.finished(self._model, stats, self._first - self._started, tpot)
