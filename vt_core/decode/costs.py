"""Costs of decoding on a machine, and the miss rate up to which exact decoding is faster there.

Times are in seconds of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vt_core.decode.drafting import ReadCosts

#: Factor by which each new measurement lowers the weight of older ones.
_KEPT = 0.8
#: Reading the full head costs at least as much as this many positions of a product.
_FIXED = 16


@dataclass
class Line:
    """A least-squares line through measurements that never falls. The latest measurements weigh most.

    The first measurement contains one-time costs (allocation, page cache), so old ones must fade.
    """

    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    @property
    def known(self) -> bool:
        return self._weight > 0

    def add(self, x: float, y: float) -> None:
        self._weight = _KEPT * self._weight + 1
        self._x = _KEPT * self._x + x
        self._y = _KEPT * self._y + y
        self._xx = _KEPT * self._xx + x * x
        self._xy = _KEPT * self._xy + x * y

    @property
    def slope(self) -> float:
        """At least 0, and 0 while all measurements have the same x.

        It is limited so that the line's value at 0 is worth at least 16 of x. With noise, a line through the
        origin would say that short blocks cost nothing.
        """
        if not self.known or self._x == 0:
            return 0.0
        spread = self._xx - self._x * self._x / self._weight
        if spread < 1e-9 * self._xx:
            return 0.0
        slope = (self._xy - self._x * self._y / self._weight) / spread
        return min(max(slope, 0.0), self._y / (self._x + _FIXED * self._weight))

    def at(self, x: float) -> float:
        """The line's value at ``x``; only where :attr:`known`."""
        return self._y / self._weight + self.slope * (x - self._x / self._weight)


@dataclass
class Costs:
    """Measured costs of reads on the reduced head and of verifying a block."""

    reads: ReadCosts = field(default_factory=ReadCosts)
    _verification: Line = field(default_factory=Line)
    #: Measured and expected seconds of reading tokens again after a miss.
    _rereads: tuple[float, float] = (0.0, 0.0)

    @property
    def known(self) -> bool:
        return self.reads.known and self._verification.known

    @property
    def step_s(self) -> float:
        """Seconds of a read of one token."""
        return self.reads.seconds(1)

    @property
    def position_s(self) -> float:
        """Time that one more position adds to a verification."""
        return self._verification.slope

    def verify_s(self, positions: int) -> float:
        return self._verification.at(positions)

    def add_verification(self, positions: int, seconds: float) -> None:
        self._verification.add(positions, seconds)

    def reread_s(self, tokens: int) -> float:
        """Seconds of reading tokens again after a miss. Some models read them one by one."""
        measured, expected = self._rereads
        return self.reads.seconds(tokens) * (measured / expected if expected else 1.0)

    def add_reread(self, tokens: int, seconds: float) -> None:
        measured, expected = self._rereads
        self._rereads = _KEPT * measured + seconds, _KEPT * expected + self.reads.seconds(tokens)

    def tokens_per_s(self, miss_rate: float, max_block: int) -> float:
        """Speed of exact decoding with blocks of the best length, if every token is a miss with probability
        ``miss_rate``.
        """
        best = expected = 0.0
        for positions in range(1, max_block + 1):
            # A block yields the tokens up to its first miss, which is replaced.
            expected += (1 - miss_rate) ** (positions - 1)
            best = max(best, expected / (positions * self.step_s + self.verify_s(positions)))
        return best

    def break_even(self, full_step_s: float, max_block: int) -> float:
        """The miss rate at which exact decoding is as fast as steps of ``full_step_s`` on the full head.

        1 where it is faster at any rate, 0 where it is slower even without misses.
        """
        low, high = 0.0, 1.0
        if self.tokens_per_s(high, max_block) * full_step_s >= 1:
            return high
        if self.tokens_per_s(low, max_block) * full_step_s < 1:
            return low
        while high - low > 1e-4:
            middle = (low + high) / 2
            if self.tokens_per_s(middle, max_block) * full_step_s >= 1:
                low = middle
            else:
                high = middle
        return low
