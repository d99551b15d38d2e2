"""Search for the smallest memory in which a variant keeps its speed, page cache included."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vt_core.errors import BackendError
from vt_core.measure.cgroup import ControlGroup, control_group, drop_caches
from vt_core.measure.job import Job
from vt_core.measure.prompts import Prompts
from vt_core.measure.worker import Worker

#: Share of the unlimited speed that counts as keeping it.
KEPT = 0.8
#: A run under a limit may take this many times as long as the run without one, loading included.
_PATIENCE = 4
_WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Trial:
    """One run under a limit."""

    #: Bytes; None for no limit.
    limit: int | None
    #: 0 where the run failed or took too long.
    tokens_per_s: float
    #: Peak of the memory charged to the run, page cache included.
    charged_bytes: int


def bisect(measure: Callable[[int | None], Trial], runs: int) -> dict[str, Any]:
    """Find the smallest limit that keeps :data:`KEPT` of the unlimited speed.

    Args:
        measure: runs the variant under a limit.
        runs: bisection steps.

    Returns:
        ``limit_bytes`` (smallest limit that suffices), ``fails_bytes`` (largest limit tried that does not;
        the true limit lies between the two), ``tokens_per_s`` and ``charged_bytes`` without a limit, and
        ``trials``.
    """
    free = measure(None)
    fits, fails = free.charged_bytes, 0
    trials = []
    for _ in range(runs):
        limit = (fits + fails) // 2
        trial = measure(limit)
        trials.append(trial)
        if trial.tokens_per_s >= KEPT * free.tokens_per_s:
            fits = limit
        else:
            fails = limit
    return {
        "limit_bytes": fits,
        "fails_bytes": fails,
        "kept": KEPT,
        "tokens_per_s": round(free.tokens_per_s, 3),
        "charged_bytes": free.charged_bytes,
        "trials": [[trial.limit, round(trial.tokens_per_s, 3)] for trial in trials],
    }


@dataclass(frozen=True)
class LimitSearch:
    """Settings of the search."""

    #: Bisection steps.
    runs: int = 5
    #: Prompts of each run.
    prompts: int = 2
    #: Tokens of each prompt.
    max_tokens: int = 32

    def run(self, job: Job, prompts: Prompts, watch: Callable[[str], object]) -> dict[str, Any]:
        """Search the limit of one variant; see :func:`bisect`. ``watch`` is called with what was done."""
        patience: float | None = None

        def measure(limit: int | None) -> Trial:
            nonlocal patience
            trial, seconds = self._measure(job, prompts, limit, patience)
            if limit is None:
                patience = _PATIENCE * seconds
            watch(f"{job.name} in {'all memory' if limit is None else f'{limit / 1e6:.0f} MB'}")
            return trial

        return bisect(measure, self.runs) | {"prompts": min(self.prompts, len(prompts.ids))}

    def _measure(
        self, job: Job, prompts: Prompts, limit: int | None, patience: float | None
    ) -> tuple[Trial, float]:
        """Run in a fresh process with a cold page cache. Returns the trial and its total seconds."""
        started = time.monotonic()
        until = None if patience is None else started + patience
        speed = 0.0
        with control_group(limit) as group:
            try:
                drop_caches()
                speed = self._speed(job, prompts, group, until)
            except (BackendError, TimeoutError):
                if limit is None:
                    raise
            charged = group.peak()
        return Trial(limit, speed, charged), time.monotonic() - started

    def _speed(self, job: Job, prompts: Prompts, group: ControlGroup, until: float | None) -> float:
        """Tokens per second of whole requests, after a warm-up."""
        tokens, seconds = 0, 0.0
        with Worker(job, before=group.enter, until=until) as worker:
            worker.warm_up(prompts.warm_up, max_tokens=_WARM_UP_TOKENS)
            for prompt in prompts.ids[: self.prompts]:
                found = worker.generate(prompt, max_tokens=self.max_tokens)
                tokens += len(found["token_ids"])
                seconds += found["e2e_s"]
        return tokens / seconds
