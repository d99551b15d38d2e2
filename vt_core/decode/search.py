"""Finds the rows that a position can choose, among the logits of tiles.

A search keeps the best rows so far, the normalizer that top-p needs, and the rows that noise could still make
the winner. No array over the whole vocabulary exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vt_core.decode.blocks import Draft
from vt_core.decode.rounding import Rounding, decide
from vt_core.decode.sampling import Sampler, SamplerSettings, check_finite
from vt_core.decode.tiles import Bools, Floats, HeadScan, LogitTile
from vt_core.types import Ids

#: Below every finite logit, and above minus infinity.
_LOWEST = float(np.finfo(np.float32).min)
_GREEDY = SamplerSettings()


@dataclass
class Found:
    """The rows of one position that can still be chosen."""

    logits: Floats  #: adjusted
    ids: Ids  #: full ids of them, ascending
    error: float  #: how far each logit may be from the whole head's
    total: tuple[float, float] | None = None  #: see :meth:`vt_core.decode.sampling.Sampler.pick`

    def choose(self, head: HeadScan, hidden: Any, draft: Draft, sampler: Sampler) -> tuple[int, bool]:
        """The choice, a full id, and whether it was a near tie, which the head's own product settled."""
        choice, decisive = decide(
            self.logits, self.ids, draft.position, sampler.settings, self.error, self.total
        )
        if not len(decisive):
            return int(self.ids[choice]), False
        ids = np.sort(self.ids[decisive])
        return self._settle(ids, head.row_logits(hidden, ids), draft, sampler), True

    def greedy(self, head: HeadScan, hidden: Any) -> int:
        """The full id with the largest logit, for logits that nothing adjusts; near ties are settled."""
        choice, decisive = decide(self.logits, self.ids, 0, _GREEDY, self.error)
        if not len(decisive):
            return int(self.ids[choice])
        ids = np.sort(self.ids[decisive])
        return int(ids[check_finite(head.row_logits(hidden, ids)).argmax()])

    def _settle(self, ids: Ids, logits: Floats, draft: Draft, sampler: Sampler) -> int:
        """The choice, a full id, once the logits of some of the rows are those of the whole head."""
        check_finite(logits)
        logits = sampler.adjust(logits, ids, draft.pending)
        places = np.searchsorted(self.ids, ids)
        total = self.total
        if total is not None:
            weights = [
                np.exp(np.minimum((part.astype(np.float64) - total[0]) / sampler.settings.temperature, 600.0))
                for part in (logits, self.logits[places])
            ]
            total = total[0], total[1] + float(weights[0].sum() - weights[1].sum())
        self.logits[places] = logits
        if sampler.settings.temperature == 0:
            return sampler.pick(logits, ids, draft.position)
        return sampler.pick(self.logits, self.ids, draft.position, total)


class Search(Protocol):
    """Finds the rows of a block's positions that can be chosen, in the tiles of one or two scans."""

    found: list[Found]

    def add(self, tile: LogitTile) -> None:
        """Look at a tile of the block's positions."""

    def finish(self) -> bool:
        """A scan is over: set :attr:`found`. Returns False where another scan is needed."""


class GreedySearch:
    """The largest logit, and those near it."""

    best: Floats  #: largest logit of each position in the tiles so far
    found: list[Found]

    def __init__(self, rounding: Rounding, drafts: Sequence[Draft]) -> None:
        self._rounding = rounding
        self.best = np.full(len(drafts), -np.inf, dtype=np.float32)
        self._thresholds = np.full(len(drafts), np.inf, dtype=np.float32)
        self._gathered = _Gathered()
        self._restriction = _Restriction.of(drafts)
        self._magnitude = np.array([draft.magnitude for draft in drafts], np.float32)

    def add(self, tile: LogitTile) -> None:
        if self._restriction is not None:
            tile = self._restriction.apply(tile)
        largest = _largest(tile, self._restriction)
        if (largest > self.best).any():  # few tiles hold a larger one
            self.best = np.maximum(self.best, largest)
            self._thresholds = self._lowest(2 * self._errors())
        self._gathered.add(tile, self._thresholds)

    def finish(self) -> bool:
        errors = self._errors()
        rows = self._gathered.split(self._lowest(2 * errors))
        self.found = [
            Found(logits, ids, error) for (logits, ids), error in zip(rows, errors.tolist(), strict=True)
        ]
        return True

    def _errors(self) -> Floats:
        best = self.best
        if self._restriction is None:
            return self._rounding.error(best)
        # A small logit may be a difference of terms as large as those of the other rows.
        return self._rounding.error(np.maximum(np.where(np.isfinite(best), np.abs(best), 0), self._magnitude))

    def _lowest(self, margins: Floats) -> Floats:
        if self._restriction is None:
            return self.best - margins
        # A position of which no allowed row was seen has no row at all, not every one.
        return np.where(np.isfinite(self.best), self.best - margins, np.float32(np.inf))


class GeneralSearch:
    """The rows of each position at or above a threshold, with the normalizer over all rows where the sampler
    needs it.
    """

    found: list[Found]

    def __init__(self, rounding: Rounding, drafts: Sequence[Draft], sampler: Sampler) -> None:
        self._drafts, self._sampler = drafts, sampler
        reduced = [draft.reduced for draft in drafts if draft.reduced is not None]
        assert len(reduced) == len(drafts)
        largest = np.array([logits.max() for logits in reduced], np.float32)
        magnitude = np.array([draft.magnitude for draft in drafts], np.float32)
        self._errors = rounding.adjusted_error(sampler.settings, magnitude, largest)
        # The active rows are part of the whole head: what they rule out, the full head rules out as well.
        # Their logits may be off as the tiles' may, and near ties must be found on both sides.
        self._margins = (4 * self._errors).tolist()
        self._reduced = reduced
        self._thresholds = np.array(
            [sampler.likely_threshold(*pair) for pair in zip(reduced, self._margins, strict=True)], np.float32
        )
        # Rows that are not allowed have minus infinity, and no threshold is as low.
        self._thresholds = np.maximum(self._thresholds, _LOWEST)
        self._restriction = _Restriction.of(drafts)
        adjusts = sampler.settings.adjusts
        self._touched = [sampler.touched(draft.pending) for draft in drafts] if adjusts else []
        self._again = False
        self._begin()

    def _begin(self) -> None:
        self._top = np.full(len(self._drafts), -np.inf, dtype=np.float32)
        self._mass = np.zeros(len(self._drafts))
        self._gathered = _Gathered()

    def add(self, tile: LogitTile) -> None:
        sampler = self._sampler
        for row, ids in enumerate(self._touched):
            _adjust(tile, row, ids, self._drafts[row], sampler)
        if self._restriction is not None:
            tile = self._restriction.apply(tile)
        larger = np.maximum(self._top, _largest(tile, self._restriction))
        if sampler.needs_mass:
            scale = 1 / sampler.settings.temperature
            # Any number will do where no allowed row was seen: there is no mass yet.
            shift = np.where(np.isfinite(larger), larger, np.float32(0))
            self._mass *= np.exp((self._top - shift).astype(np.float64) * scale)
            self._mass += tile.mass(shift, scale)
        self._top = larger
        self._gathered.add(tile, self._thresholds)

    def finish(self) -> bool:
        totals = zip(self._top.tolist(), self._mass.tolist(), strict=True)
        self.found = [
            Found(logits, ids, error, total if self._sampler.needs_mass else None)
            for (logits, ids), error, total in zip(
                self._gathered.split(), self._errors.tolist(), totals, strict=True
            )
        ]
        return self._again or not self._lower_thresholds()

    def _lower_thresholds(self) -> bool:
        """Lower the thresholds of positions where something is missing; False where nothing is.

        Much of the mass can lie in rows that are not active, each of them unlikely. Where the threshold was
        the safe one already (min-p can raise it that far), nothing is missing.
        """
        sampler, lower = self._sampler, self._thresholds.copy()
        for at, position in enumerate(self.found):
            if position.total is not None and not sampler.suffices(position.logits, position.total):
                safe = max(sampler.threshold(self._reduced[at], self._margins[at]), _LOWEST)
                lower[at] = min(lower[at], safe)
        self._again = bool((lower < self._thresholds).any())
        if self._again:
            self._thresholds = lower
            self._begin()
        return self._again


def _adjust(tile: LogitTile, row: int, touched: Ids, draft: Draft, sampler: Sampler) -> None:
    """Apply penalties and bias to the few ids (sorted) of a tile that they concern."""
    first, last = np.searchsorted(touched, [tile.start, tile.start + tile.count])
    if first < last:
        ids = touched[first:last]
        places = ids - tile.start
        tile.put(row, places, sampler.adjust(tile.take(row, places), ids, draft.pending))


@dataclass
class _Restriction:
    """The rows that may be chosen at each position of a block."""

    allowed: Sequence[Bools]  #: of each position, ``[V]``

    @classmethod
    def of(cls, drafts: Sequence[Draft]) -> _Restriction | None:
        """That of some drafts; None where all rows are allowed."""
        allowed = [draft.allowed for draft in drafts if draft.allowed is not None]
        assert len(allowed) in (0, len(drafts))
        return cls(allowed) if allowed else None

    def apply(self, tile: LogitTile) -> LogitTile:
        """A tile of the block with the rows that are allowed."""
        rows = slice(tile.start, tile.start + tile.count)
        return tile.restrict(np.stack([allowed[rows] for allowed in self.allowed]))


def _largest(tile: LogitTile, restriction: _Restriction | None) -> Floats:
    """The largest logit of each position; minus infinity where no row of the tile is allowed."""
    largest = tile.largest
    check_finite(largest if restriction is None else largest[~np.isneginf(largest)])
    return largest


class _Gathered:
    """Rows found in the tiles of one scan."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ids, Ids, Floats]] = []
        self._count = 0

    def add(self, tile: LogitTile, thresholds: Floats) -> None:
        """Keep the rows of a tile that are at or above their position's threshold."""
        self._count = len(thresholds)
        positions, places, logits = tile.above(thresholds)
        if len(positions):
            self._parts.append((positions, places + tile.start, logits))

    def split(self, thresholds: Floats | None = None) -> list[tuple[Floats, Ids]]:
        """Logits and ids of each position, ids ascending, above new thresholds if there are any."""
        positions, ids, logits = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        if thresholds is not None:
            kept = logits >= thresholds[positions]
            positions, ids, logits = positions[kept], ids[kept], logits[kept]
        order = np.argsort(positions, kind="stable")
        ends = np.cumsum(np.bincount(positions, minlength=self._count))[:-1]
        return list(zip(np.split(logits[order], ends), np.split(ids[order], ends), strict=True))
