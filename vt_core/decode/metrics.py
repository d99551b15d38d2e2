"""Time and memory of a request, measured from outside of the algorithms."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Clock = Callable[[], float]  #: seconds, monotonic

_STATUS = Path("/proc/self/status")


@dataclass
class Stopwatch:
    """Times of the tokens of one request, in seconds of ``clock``."""

    clock: Clock
    started: float = field(init=False)
    first: float | None = field(init=False, default=None)
    last: float | None = field(init=False, default=None)
    tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def token(self) -> None:
        """Note that a token was emitted now."""
        self.last = self.clock()
        if self.first is None:
            self.first = self.last
        self.tokens += 1

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token, or None without one."""
        return None if self.first is None else self.first - self.started

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first, or None with fewer than two tokens."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time after the first."""
        return 1 / self.tpot_s if self.tpot_s else None


@dataclass
class ProcessMemory:
    """The most memory that this process was seen to hold, in bytes.

    The system keeps the peak of the whole; of its anonymous part only the present value, so :meth:`sample` is
    called where memory is at its largest.
    """

    anonymous: int | None = None

    def sample(self) -> None:
        now = _status_bytes("RssAnon")
        if now is not None:
            self.anonymous = max(now, self.anonymous or 0)

    @property
    def peak(self) -> int:
        """Peak resident bytes of the process, anonymous and file-backed."""
        kept = _status_bytes("VmHWM")
        if kept is not None:
            return kept
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(name: str) -> int | None:
    """A size in Linux's ``/proc/self/status``, or None elsewhere."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
