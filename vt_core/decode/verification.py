"""The full head's choices for a block of positions, from one reading of its rows in tiles.

A backend multiplies each tile with the hidden states of the block. This module keeps what decides: the best
rows so far, the normalizer that top-p needs, and the rows that noise could still make the winner. No array
over the whole vocabulary exists. Near ties are settled by the product that ``--head full`` uses, see
:mod:`vt_core.decode.rounding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vt_core.decode.rounding import Rounding, decide
from vt_core.decode.sampling import Sampler, check_finite
from vt_core.vocab.active import Ids

Floats = npt.NDArray[np.float32]


class LogitTile(Protocol):
    """Logits ``[k, n]`` of the rows ``start … start + n - 1`` for ``k`` positions, where a backend holds
    them.
    """

    start: int
    count: int  #: n

    @property
    def largest(self) -> Floats:
        """The largest logit of each position, ``[k]``; not a number where one of them is not."""

    def above(self, thresholds: Floats) -> tuple[Ids, Ids, Floats]:
        """Position, place in the tile, and logit of every logit that is at least its position's threshold, in
        the order of positions and then places.
        """

    def mass(self, shift: Floats, scale: float) -> npt.NDArray[np.float64]:
        """``sum(exp((logits - shift) * scale))`` of each position, ``[k]``."""

    def take(self, position: int, places: Ids) -> Floats:
        """Logits of one position at some places of the tile."""

    def put(self, position: int, places: Ids, logits: Floats) -> None:
        """Replace them."""

    def first(self, count: int) -> LogitTile:
        """A tile of the first ``count`` rows."""


class HeadScan(Protocol):
    """The full head of a backend, read from the store."""

    rounding: Rounding  #: how far the logits of a tile may be from :meth:`row_logits`

    def tiles(self, hidden: Any) -> Iterable[LogitTile]:
        """Logits of every row for ``hidden [k, hidden]``, in the order of ids."""

    def row_logits(self, hidden: Any, ids: Ids) -> Floats:
        """Logits ``[n]`` of some full ids for one position, ``hidden [1, hidden]``, equal to those that the
        head has when it is held whole and multiplied with this position alone.
        """


@dataclass(frozen=True)
class Draft:
    """A position to verify: what was chosen on the reduced head, and what it takes to choose again."""

    position: int  #: index of the token within the request
    pending: tuple[int, ...]  #: the block's tokens before it, which penalties see as well
    reduced: Floats | None = None  #: adjusted logits of the active rows, where the choice is not plain greedy
    magnitude: float = 0.0  #: largest absolute logit of the active rows before they were adjusted


class Verified(NamedTuple):
    """The full head's choices for a block."""

    choices: list[int]  #: full ids, one for each position
    settled: int  #: positions that were near ties


class NumpyTile:
    """A tile in host memory."""

    def __init__(self, start: int, logits: Floats) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits

    @cached_property
    def largest(self) -> Floats:
        largest: Floats = self._logits.max(axis=1)
        return largest

    def above(self, thresholds: Floats) -> tuple[Ids, Ids, Floats]:
        # Few tiles hold such a logit, and the largest ones are found far faster than their places.
        rows = np.flatnonzero(self.largest >= thresholds)
        near = self._logits[rows]
        positions, places = np.nonzero(near >= thresholds[rows, None])
        return rows[positions], places, near[positions, places]

    def mass(self, shift: Floats, scale: float) -> npt.NDArray[np.float64]:
        weights = self._logits - shift[:, None]
        weights *= np.float32(scale)
        return np.exp(weights, out=weights).sum(axis=1, dtype=np.float64)

    def take(self, position: int, places: Ids) -> Floats:
        return self._logits[position, places]

    def put(self, position: int, places: Ids, logits: Floats) -> None:
        self._logits[position, places] = logits
        self.__dict__.pop("largest", None)

    def first(self, count: int) -> NumpyTile:
        return NumpyTile(self.start, self._logits[:, :count])


def verify(head: HeadScan, hidden: Any, drafts: Sequence[Draft], sampler: Sampler) -> Verified:
    """Choose again at each position of a block, on the full head.

    Args:
        head: the full head.
        hidden: hidden states of the positions, ``[k, hidden]``.
        drafts: the positions.
        sampler: of the request; its context ends where the block begins. Rows after the sampler's are padding
            and are not chosen.

    Raises:
        ModelError: a logit is not a number.
    """

    def scan() -> Iterator[LogitTile]:
        return without_padding(head.tiles(hidden), sampler.rows)

    if sampler.settings.plain_greedy:
        found = _greedy(scan(), head.rounding, len(drafts))
    else:
        found = _general(scan, head.rounding, drafts, sampler)
    choices, settled = [], 0
    for index, (position, draft) in enumerate(zip(found, drafts, strict=True)):
        choice, decisive = position.decide(draft, sampler)
        if len(decisive):
            ids = np.sort(position.ids[decisive])
            logits = head.row_logits(hidden[index : index + 1], ids)
            choice = position.settle(ids, logits, draft, sampler)
            settled += 1
        choices.append(choice)
    return Verified(choices, settled)


def without_padding(tiles: Iterable[LogitTile], rows: int) -> Iterator[LogitTile]:
    """The tiles of the first ``rows`` rows."""
    for tile in tiles:
        if tile.start >= rows:
            return
        yield tile if tile.start + tile.count <= rows else tile.first(rows - tile.start)


def accepted_prefix(drafted: Sequence[int], checked: Sequence[int]) -> tuple[int, int | None]:
    """Compare drafted with checked ids.

    Returns:
        The number of drafted ids before the first difference, and the checked id there (None: no difference).
    """
    for index, (draft, check) in enumerate(zip(drafted, checked, strict=True)):
        if draft != check:
            return index, check
    return len(drafted), None


@dataclass
class _Found:
    """The rows of one position that can still be chosen."""

    logits: Floats  #: adjusted
    ids: Ids  #: full ids of them, ascending
    error: float  #: how far each logit may be from the whole head's
    total: tuple[float, float] | None = None  #: see :meth:`vt_core.decode.sampling.Sampler.pick`

    def decide(self, draft: Draft, sampler: Sampler) -> tuple[int, Ids]:
        """The choice, a full id, and the indices of the rows to settle; none where the choice is certain."""
        choice, decisive = decide(
            self.logits, self.ids, draft.position, sampler.settings, self.error, self.total
        )
        return int(self.ids[choice]), decisive

    def settle(self, ids: Ids, logits: Floats, draft: Draft, sampler: Sampler) -> int:
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


def _greedy(tiles: Iterable[LogitTile], rounding: Rounding, count: int) -> list[_Found]:
    best = np.full(count, -np.inf, dtype=np.float32)
    gathered = _Gathered()
    for tile in tiles:
        best = np.maximum(best, check_finite(tile.largest))
        gathered.add(tile, best - 2 * rounding.error(best))
    errors = rounding.error(best)
    return [
        _Found(logits, ids, error)
        for (logits, ids), error in zip(gathered.split(best - 2 * errors), errors.tolist(), strict=True)
    ]


def _general(
    scan: Callable[[], Iterable[LogitTile]], rounding: Rounding, drafts: Sequence[Draft], sampler: Sampler
) -> list[_Found]:
    reduced = [draft.reduced for draft in drafts if draft.reduced is not None]
    assert len(reduced) == len(drafts)
    largest = np.array([logits.max() for logits in reduced], np.float32)
    magnitude = np.array([draft.magnitude for draft in drafts], np.float32)
    errors = rounding.adjusted_error(sampler.settings, magnitude, largest)
    # The active rows are part of the whole head: what they rule out, the full head rules out as well. Their
    # logits may be off as the tiles' may, and near ties must be found on both sides.
    margins = (4 * errors).tolist()
    thresholds = np.array(
        [sampler.likely_threshold(*pair) for pair in zip(reduced, margins, strict=True)], np.float32
    )
    found = _gather(scan(), drafts, sampler, thresholds, errors)
    if sampler.needs_mass:
        # Rare: much of the mass lies in rows that are not active, each of them unlikely. Where the threshold
        # was the safe one already (min-p can raise it that far), nothing is missing.
        lower = np.full(len(drafts), np.inf, np.float32)
        for at, position in enumerate(found):
            if position.total is not None and not sampler.suffices(position.logits, position.total):
                lower[at] = sampler.threshold(reduced[at], margins[at])
        short = np.flatnonzero(lower < thresholds)
        if len(short):
            again = _gather(scan(), drafts, sampler, lower, errors)
            for at in short.tolist():
                found[at] = again[at]
    return found


def _gather(
    tiles: Iterable[LogitTile], drafts: Sequence[Draft], sampler: Sampler, thresholds: Floats, errors: Floats
) -> list[_Found]:
    """The rows of each position at or above its threshold, with the normalizer over all rows where the
    sampler needs it.
    """
    settings = sampler.settings
    top = np.full(len(drafts), -np.inf, dtype=np.float32)
    mass = np.zeros(len(drafts))
    gathered = _Gathered()
    scale = 1 / settings.temperature if settings.temperature else 1.0
    touched = [sampler.touched(draft.pending) for draft in drafts] if settings.adjusts else []
    for tile in tiles:
        for row, ids in enumerate(touched):
            _adjust(tile, row, ids, drafts[row], sampler)
        larger = np.maximum(top, check_finite(tile.largest))
        if sampler.needs_mass:
            mass *= np.exp((top - larger).astype(np.float64) * scale)
            mass += tile.mass(larger, scale)
        top = larger
        gathered.add(tile, thresholds)
    totals = zip(top.tolist(), mass.tolist(), strict=True)
    return [
        _Found(logits, ids, error, total if sampler.needs_mass else None)
        for (logits, ids), error, total in zip(gathered.split(), errors.tolist(), totals, strict=True)
    ]


def _adjust(tile: LogitTile, row: int, touched: Ids, draft: Draft, sampler: Sampler) -> None:
    """Apply penalties and bias to the few ids (sorted) of a tile that they concern."""
    first, last = np.searchsorted(touched, [tile.start, tile.start + tile.count])
    if first < last:
        ids = touched[first:last]
        places = ids - tile.start
        tile.put(row, places, sampler.adjust(tile.take(row, places), ids, draft.pending))


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
