"""How many drafted tokens a read should hold: the most expected tokens per second, none included."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

#: Factor by which each new measurement of a size lowers the weight of older ones.
_KEPT = 0.8
#: Cost of another token of a read, in reads of one token, as long as no longer read was measured.
_UNKNOWN = 0.35
#: A size that was not read for this many reads is forgotten, so that one bad measurement does not last.
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
        self._seconds: dict[int, tuple[float, float]] = {}  #: sum of weights and of weighted seconds
        self._warm: set[int] = set()  #: sizes that were read once; the first read of each is not counted
        self._last: dict[int, int] = {}  #: number of the last read of each size
        self._reads = 0

    @property
    def known(self) -> bool:
        """Whether single tokens were measured: :meth:`seconds` may be asked."""
        return 1 in self._seconds

    def add(self, tokens: int, seconds: float) -> None:
        """Note a read of `tokens` tokens. The first of each size is left out, for it has one-time costs."""
        self._reads += 1
        if tokens not in self._warm:
            self._warm.add(tokens)
            return
        weight, total = self._seconds.get(tokens, (0.0, 0.0))
        self._seconds[tokens] = _KEPT * weight + 1, _KEPT * total + seconds
        self._last[tokens] = self._reads
        for size in [size for size, last in self._last.items() if self._reads - last > _FORGET and size > 1]:
            del self._seconds[size], self._last[size]

    def seconds(self, tokens: int) -> float:
        """Expected seconds of a read; only where :attr:`known`."""
        sizes = sorted(self._seconds)
        at = bisect_left(sizes, tokens)
        if at < len(sizes) and sizes[at] == tokens:
            return self._measured(tokens)
        if at < len(sizes):
            low, high = sizes[at - 1], sizes[at]
            share = (tokens - low) / (high - low)
            return (1 - share) * self._measured(low) + share * self._measured(high)
        one, longest = self._measured(1), sizes[-1]
        slope = _UNKNOWN * one if longest == 1 else max(0.0, self._measured(longest) - one) / (longest - 1)
        return self._measured(longest) + slope * (tokens - longest)

    def _measured(self, tokens: int) -> float:
        weight, total = self._seconds[tokens]
        return total / weight
