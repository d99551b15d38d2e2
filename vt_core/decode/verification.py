"""The full head's choices for a block of positions, from one reading of its rows in tiles.

A backend multiplies each tile with the hidden states of the block; what is kept of it is here: the best row
so far, what top-p must know of the rest, and the rows that noise could still make the winner. No array over
the whole vocabulary exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vt_core.decode.sampling import Sampler
from vt_core.vocab.active import Ids

Floats = npt.NDArray[np.float32]


class LogitTile(Protocol):
    """Logits ``[k, n]`` of the rows ``start … start + n - 1`` for ``k`` positions, where a backend holds
    them.
    """

    start: int
    count: int  #: n

    def better(self, than: Floats) -> tuple[Ids, Floats, Ids]:
        """Positions whose largest logit is above their value in ``than [k]``, that logit, float32, and where
        in the tile it is: the first of equal ones.
        """

    def mass(self, shift: Floats, scale: float) -> npt.NDArray[np.float64]:
        """``sum(exp((logits - shift) * scale))`` of each position, ``[k]``."""

    def above(self, thresholds: Floats) -> tuple[Ids, Ids, Floats]:
        """Position, place in the tile, and logit of every logit that is at least its position's threshold."""

    def take(self, position: int, places: Ids) -> Floats:
        """Logits of one position at some places of the tile."""

    def put(self, position: int, places: Ids, logits: Floats) -> None:
        """Replace them."""

    def first(self, count: int) -> LogitTile:
        """A tile of the first ``count`` rows."""


@dataclass(frozen=True)
class Draft:
    """A position to verify: what was chosen on the reduced head and what must be known to choose again."""

    position: int  #: index of the token within the request
    pending: tuple[int, ...]  #: the block's tokens before it, which penalties see as well
    reduced: Floats | None  #: adjusted logits of the active rows, where the choice is not plain greedy


class NumpyTile:
    """A tile in host memory."""

    def __init__(self, start: int, logits: Floats) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits

    def better(self, than: Floats) -> tuple[Ids, Floats, Ids]:
        # Largest values are found far faster than their places, and few tiles hold a better one.
        positions = np.flatnonzero(self._largest > than)
        return positions, self._largest[positions], self._logits[positions].argmax(axis=1)

    def mass(self, shift: Floats, scale: float) -> npt.NDArray[np.float64]:
        weights = self._logits - shift[:, None]
        weights *= np.float32(scale)
        return np.exp(weights, out=weights).sum(axis=1, dtype=np.float64)

    def above(self, thresholds: Floats) -> tuple[Ids, Ids, Floats]:
        rows = np.flatnonzero(self._largest >= thresholds)
        near = self._logits[rows]
        positions, places = np.nonzero(near >= thresholds[rows, None])
        return rows[positions], places, near[positions, places]

    def take(self, position: int, places: Ids) -> Floats:
        return self._logits[position, places]

    def put(self, position: int, places: Ids, logits: Floats) -> None:
        self._logits[position, places] = logits
        self.__dict__.pop("_largest", None)

    def first(self, count: int) -> NumpyTile:
        return NumpyTile(self.start, self._logits[:, :count])

    @cached_property
    def _largest(self) -> Floats:
        """``[k]``."""
        largest: Floats = self._logits.max(axis=1)
        return largest


def verify(scan: Callable[[], Iterable[LogitTile]], drafts: Sequence[Draft], sampler: Sampler) -> list[int]:
    """The full head's choice, a full id, for each position of a block.

    Args:
        scan: begins a reading of all rows of the full head, in id order.
        drafts: the positions, as many as the tiles' logits have rows.
        sampler: of the request; its context ends where the block begins. What lies behind its rows is padding
            and is not chosen.
    """
    if sampler.settings.plain_greedy:
        return _greedy(_without_padding(scan(), sampler.rows), len(drafts))
    return _general(lambda: _without_padding(scan(), sampler.rows), drafts, sampler)


def _without_padding(tiles: Iterable[LogitTile], rows: int) -> Iterator[LogitTile]:
    for tile in tiles:
        if tile.start >= rows:
            return
        yield tile if tile.start + tile.count <= rows else tile.first(rows - tile.start)


def accepted_prefix(drafted: Sequence[int], checked: Sequence[int]) -> tuple[int, int | None]:
    """How many drafted ids stand, and the id that replaces the first one that does not (None: all stand)."""
    for index, (draft, check) in enumerate(zip(drafted, checked, strict=True)):
        if draft != check:
            return index, check
    return len(drafted), None


def _greedy(tiles: Iterable[LogitTile], count: int) -> list[int]:
    best = np.full(count, -np.inf, dtype=np.float32)
    ids = np.zeros(count, dtype=np.int64)
    for tile in tiles:
        # Strictly better: ids ascend from tile to tile, and of equal logits the lowest id is chosen.
        positions, values, places = tile.better(best)
        best[positions] = values
        ids[positions] = tile.start + places
    return ids.tolist()


def _general(scan: Callable[[], Iterable[LogitTile]], drafts: Sequence[Draft], sampler: Sampler) -> list[int]:
    reduced = [draft.reduced for draft in drafts if draft.reduced is not None]
    assert len(reduced) == len(drafts)
    # The active rows are part of the whole: what they rule out, the full head rules out as well.
    thresholds = np.array([sampler.likely_threshold(logits) for logits in reduced], np.float32)
    found = _gather(scan(), drafts, sampler, thresholds)
    if sampler.needs_mass:
        # Rare: much of the mass lies in rows that are not active, each of them unlikely. Where the threshold
        # was the sure one already (min-p can raise it so far), nothing is missing.
        lower = np.full(len(drafts), np.inf, np.float32)
        for at, (logits, _, total) in enumerate(found):
            if not sampler.suffices(logits, total):
                lower[at] = sampler.threshold(reduced[at])
        short = np.flatnonzero(lower < thresholds)
        if len(short):
            again = _gather(scan(), drafts, sampler, lower)
            for at in short.tolist():
                found[at] = again[at]
    return [
        sampler.pick(logits, ids, draft.position, total if sampler.needs_mass else None)
        for draft, (logits, ids, total) in zip(drafts, found, strict=True)
    ]


def _gather(
    tiles: Iterable[LogitTile], drafts: Sequence[Draft], sampler: Sampler, thresholds: Floats
) -> list[tuple[Floats, Ids, tuple[float, float]]]:
    """For each position the adjusted logits at or above its threshold, their ids, and what top-p must know
    of all rows: the largest logit (or the largest active one) and the sum of weights in units of that one's.
    """
    top = np.array([draft.reduced.max() for draft in drafts if draft.reduced is not None], dtype=np.float32)
    mass = np.zeros(len(drafts))
    found: list[tuple[Ids, Ids, Floats]] = []
    scale = 1 / sampler.settings.temperature if sampler.settings.temperature else 1.0
    touched = [sampler.touched(draft.pending) if sampler.settings.adjusts else None for draft in drafts]
    for tile in tiles:
        for row, (draft, ids) in enumerate(zip(drafts, touched, strict=True)):
            if ids is not None:
                _adjust(tile, row, ids, draft, sampler)
        if sampler.needs_mass:
            larger = top.copy()
            positions, values, _ = tile.better(top)
            larger[positions] = values
            mass *= np.exp((top - larger).astype(np.float64) * scale)
            top = larger
            mass += tile.mass(top, scale)
        positions, places, logits = tile.above(thresholds)
        found.append((positions, places + tile.start, logits))
    rows, candidates, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows, kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=len(drafts)))[:-1]
    return [
        (mine, ids, (float(largest), float(weight)))
        for mine, ids, largest, weight in zip(
            np.split(logits[order], ends), np.split(candidates[order], ends), top, mass, strict=True
        )
    ]


def _adjust(tile: LogitTile, row: int, touched: Ids, draft: Draft, sampler: Sampler) -> None:
    """Apply penalties and bias to the few ids (sorted) of a tile that they concern."""
    first, last = np.searchsorted(touched, [tile.start, tile.start + tile.count])
    if first < last:
        ids = touched[first:last]
        places = ids - tile.start
        tile.put(row, places, sampler.adjust(tile.take(row, places), ids, draft.pending))
