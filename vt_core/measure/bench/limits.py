"""The smallest memory in which a variant keeps its speed, page cache included: a cgroup and a bisection.

The fairest question on a small device. It needs Linux and the right to make control groups (root, mostly).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.errors import BackendError, OptionError
from vt_core.measure.bench.processes import Worker
from vt_core.measure.bench.prompts import Prompts

KEPT = 0.8  #: share of the speed that counts as keeping it
_PATIENCE = 4  #: times as long as without a limit a run may take, loading included
_CGROUPS = Path("/sys/fs/cgroup")
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Trial:
    """One run under a limit in bytes (None: none): its speed, 0 where it did not end, and the most memory
    that was charged to it, page cache included.
    """

    limit: int | None
    tokens_per_s: float
    charged_bytes: int


def bisect(measure: Callable[[int | None], Trial], runs: int) -> dict[str, Any]:
    """The smallest limit at which :data:`KEPT` of the speed without a limit is kept, by a few runs.

    Returns ``limit_bytes``, ``fails_bytes`` (the largest limit tried that does not suffice), ``tokens_per_s``
    without a limit, ``charged_bytes`` without one, and the ``trials``. The truth lies between the first two.
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
    """How the search is made: bisection steps, prompts of each, tokens of each prompt."""

    runs: int = 5
    prompts: int = 2
    max_tokens: int = 32

    def run(self, job: Mapping[str, Any], prompts: Prompts, watch: Callable[[str], object]) -> dict[str, Any]:
        """The limit of one variant, see :func:`bisect`."""

        def measure(limit: int | None) -> Trial:
            found = self._measure(job, prompts, limit, deadline[0])
            if limit is None:
                deadline[0] = _PATIENCE * found[1]
            watch(f"{job['name']} in {'all memory' if limit is None else f'{limit / 1e6:.0f} MB'}")
            return found[0]

        deadline: list[float | None] = [None]
        return bisect(measure, self.runs) | {"prompts": min(self.prompts, len(prompts.ids))}

    def _measure(
        self, job: Mapping[str, Any], prompts: Prompts, limit: int | None, deadline: float | None
    ) -> tuple[Trial, float]:
        """A run in a fresh process and from a cold page cache; and how long it took in all."""
        started = time.monotonic()
        speed = 0.0
        with control_group(limit) as group:
            try:
                drop_caches()
                speed = self._speed(job, prompts, group, None if deadline is None else started + deadline)
            except (BackendError, TimeoutError):
                if limit is None:
                    raise
            charged = group.peak()
        return Trial(limit, speed, charged), time.monotonic() - started

    def _speed(
        self, job: Mapping[str, Any], prompts: Prompts, group: ControlGroup, until: float | None
    ) -> float:
        """Tokens per second from the prompts to the ends of their texts, the warm-up left out."""
        tokens, seconds = 0, 0.0
        with Worker(job, before=group.enter, until=until) as worker:
            worker.request(prompts.warm_up, 8)
            for prompt in prompts.ids[: self.prompts]:
                found = worker.request(prompt, self.max_tokens)
                tokens += len(found["token_ids"])
                seconds += found["e2e_s"]
        return tokens / seconds


def check() -> None:
    """Raises OptionError where the search cannot be made: better before an hour of measuring than after."""
    with control_group(None):
        if not os.access(_DROP_CACHES, os.W_OK):
            raise OptionError(
                f"--memory-limit-search must empty the page cache, and {_DROP_CACHES} cannot be written "
                "here; run it as root, or leave it out"
            )


@dataclass(frozen=True)
class ControlGroup:
    """A memory control group, version 1 or 2."""

    path: Path
    members: str
    peak_file: str

    def enter(self) -> None:
        """Move the calling process into it."""
        (self.path / self.members).write_text(str(os.getpid()))

    def peak(self) -> int:
        """The most bytes that were charged."""
        return int((self.path / self.peak_file).read_text())


@contextmanager
def control_group(limit: int | None) -> Iterator[ControlGroup]:
    """A control group with a memory limit in bytes, and no swap; removed at the end.

    Raises:
        OptionError: this system has none, or does not let us make one.
    """
    second = (_CGROUPS / "cgroup.controllers").exists()
    parent = _CGROUPS if second else _CGROUPS / "memory"
    path = parent / f"vt-bench-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        raise OptionError(
            f"--memory-limit-search needs memory control groups, and {path} cannot be made "
            f"({error.strerror}); run it on Linux as root, or leave it out"
        ) from error
    try:
        if limit is not None:
            (path / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
        no_swap = path / ("memory.swap.max" if second else "memory.swappiness")
        if no_swap.exists():  # a system may be built without swap
            no_swap.write_text("0")
        if second:
            yield ControlGroup(path, "cgroup.procs", "memory.peak")
        else:
            yield ControlGroup(path, "tasks", "memory.max_usage_in_bytes")
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    """A group can be removed once its last process is gone, which may take a moment."""
    for _ in range(50):
        try:
            path.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    path.rmdir()


def drop_caches() -> None:
    """Pages in the cache are charged to whoever read them first: nobody must have, before a run."""
    os.sync()
    _DROP_CACHES.write_text("1")
