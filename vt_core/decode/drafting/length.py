"""How many drafted tokens a read should hold: the most expected tokens per second, none included."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median_low

#: Measurements of a size that count.
_LATEST = 9
#: Highest assumed cost of another token of a read longer than the measured ones, in reads of one token.
_UNKNOWN = 0.2
#: A size that was not read for this many reads is forgotten, so that it is tried again.
_FORGET = 1000


def best_length(rates: Sequence[float], seconds: Callable[[int], float], undo_s: float = 0.0) -> int:
    """The number of drafted tokens, 0 to `len(rates)`, with the most expected tokens per second.

    All lengths are compared, because the cost of a read need not be convex.

    Args:
        rates: probability that each drafted token is right, if those before it are.
        seconds: cost of a read of 1, 2, … tokens. A read holds the last known token and the drafted ones.
        undo_s: seconds that it takes to take wrong tokens back.
    """
    best, best_speed = 0, 1 / seconds(1)
    right = expected = 1.0
    for length, rate in enumerate(rates, 1):
        right *= rate
        expected += right
        speed = expected / (seconds(length + 1) + (1 - right) * undo_s)
        if speed > best_speed:
            best, best_speed = length, speed
    return best


class ReadCosts:
    """Measured seconds of a read of 1, 2, … tokens.

    Between two measured sizes costs lie on a line. Beyond the longest, up to twice its size, they are assumed
    to grow slowly, even where they grew fast so far, so that longer reads are tried one after the other: that
    2 tokens cost twice one does not mean that 4 cost more. Beyond that, another token is assumed to cost as
    much as a read of its own.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []  #: measured sizes, ascending
        self._latest: dict[int, deque[float]] = {}  #: their latest measurements
        self._seconds: dict[int, float] = {}  #: the medians of these
        self._last: dict[int, int] = {}  #: number of the last read of each size, also of unmeasured ones
        self._reads = 0

    @property
    def known(self) -> bool:
        """Whether any size was measured: :meth:`seconds` may be asked."""
        return bool(self._sizes)

    def add(self, tokens: int, seconds: float) -> None:
        """Note a read of `tokens` tokens. The first of each size is left out, for it has one-time costs."""
        self._reads += 1
        first = tokens not in self._last
        self._last[tokens] = self._reads
        if first:
            return
        if tokens not in self._latest:
            insort(self._sizes, tokens)
            self._latest[tokens] = deque(maxlen=_LATEST)
        latest = self._latest[tokens]
        latest.append(seconds)
        # Not the mean: now and then a read takes several times as long, and drafting would stop or start.
        self._seconds[tokens] = median_low(latest)
        if self._reads % _FORGET == 0:
            self._forget()

    def seconds(self, tokens: int) -> float:
        """Expected seconds of a read; only where :attr:`known`."""
        if tokens in self._seconds:
            return self._seconds[tokens]
        sizes, costs = self._sizes, self._seconds
        at = bisect_left(sizes, tokens)
        if at == 0:
            return costs[sizes[0]]
        low = sizes[at - 1]
        if at < len(sizes):
            high = sizes[at]
            return costs[low] + (costs[high] - costs[low]) * (tokens - low) / (high - low)
        first, near = sizes[0], min(tokens, 2 * low)
        own = costs[first] / first
        slope = _UNKNOWN * own
        if low > first:
            slope = min(slope, max(0.0, costs[low] - costs[first]) / (low - first))
        return costs[low] + slope * (near - low) + own * (tokens - near)

    def _forget(self) -> None:
        """Forget sizes that were not read lately, except the shortest one."""
        for size in [size for size in self._sizes[1:] if self._reads - self._last[size] >= _FORGET]:
            self._sizes.remove(size)
            del self._seconds[size], self._latest[size]
