"""How many drafted tokens a read should hold: the most expected tokens per second, none included."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

#: Factor by which each new measurement of a size lowers the weight of older ones.
_KEPT = 0.8
#: Cost of another token of a read as long as only one size was measured, in the cost per token of that size.
_UNKNOWN = 0.35
#: A size that was not read for this many reads is forgotten, so that a bad measurement does not last.
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

    Between two measured sizes costs lie on a line. Beyond the longest they grow as fast as they grew on
    average up to it, so longer reads are tried one after the other while they pay.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []  #: measured sizes, ascending
        self._seconds: dict[int, tuple[float, float]] = {}  #: their mean cost, and the weight of it
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
        mean, weight = self._seconds.get(tokens, (0.0, 0.0))
        weight = _KEPT * weight + 1
        if tokens not in self._seconds:
            insort(self._sizes, tokens)
        self._seconds[tokens] = mean + (seconds - mean) / weight, weight
        if self._reads % _FORGET == 0:
            self._forget()

    def seconds(self, tokens: int) -> float:
        """Expected seconds of a read; only where :attr:`known`."""
        if tokens in self._seconds:
            return self._seconds[tokens][0]
        sizes = self._sizes
        at = bisect_left(sizes, tokens)
        low, high = sizes[max(at - 1, 0)], sizes[min(at, len(sizes) - 1)]
        low_s, high_s = self._seconds[low][0], self._seconds[high][0]
        if at == 0:
            return high_s
        if at < len(sizes):
            return low_s + (high_s - low_s) * (tokens - low) / (high - low)
        if low == sizes[0]:
            return low_s * (1 + _UNKNOWN * (tokens - low) / low)
        first_s = self._seconds[sizes[0]][0]
        return low_s + max(0.0, low_s - first_s) * (tokens - low) / (low - sizes[0])

    def _forget(self) -> None:
        """Forget sizes that were not read lately, except the shortest one."""
        old = [size for size in self._sizes[1:] if self._reads - self._last[size] > _FORGET]
        for size in old:
            self._sizes.remove(size)
            del self._seconds[size]
