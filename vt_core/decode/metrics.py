"""Time and memory of a request, measured outside the algorithms."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Clock = Callable[[], float]  #: monotonic clock, seconds

_STATUS = Path("/proc/self/status")


@dataclass
class Stopwatch:
    """Token times of one request. It starts when it is made."""

    clock: Clock
    started: float = field(init=False)  #: start of the request, seconds
    first: float | None = field(init=False, default=None)  #: time of the first token, seconds
    last: float | None = field(init=False, default=None)  #: time of the latest token, seconds
    tokens: int = field(init=False, default=0)  #: tokens counted

    def __post_init__(self) -> None:
        self.started = self.clock()

    def token(self) -> None:
        """Count a token, emitted now."""
        self.last = self.clock()
        if self.first is None:
            self.first = self.last
        self.tokens += 1

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token; None without tokens."""
        return None if self.first is None else self.first - self.started

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None with fewer than two tokens."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first, per second."""
        return 1 / self.tpot_s if self.tpot_s else None


@dataclass
class ProcessMemory:
    """Peak memory of this process.

    Linux records the peak of all resident memory, but only the current size of the anonymous part. Call
    :meth:`sample` where memory is largest.
    """

    anonymous: int | None = None  #: largest anonymous memory sampled, bytes; None where it is unknown

    def sample(self) -> None:
        """Update :attr:`anonymous`."""
        now = _status_bytes("RssAnon")
        if now is not None:
            self.anonymous = max(now, self.anonymous or 0)

    @property
    def peak(self) -> int:
        """Peak resident bytes of the process, anonymous and file-backed."""
        recorded = _status_bytes("VmHWM")
        if recorded is not None:
            return recorded
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_bytes() -> int | None:
    """Resident bytes of the process now; None where the system does not tell."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    """A size from Linux's ``/proc/self/status``, in bytes; None on other systems."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
