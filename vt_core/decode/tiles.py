"""Tiles of the full head: logits of some of its rows for a block of positions, where a backend holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vt_core.decode.rounding import Rounding
from vt_core.types import Ids

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


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

    def positions(self, start: int, end: int) -> LogitTile:
        """A tile of the positions ``start … end - 1``, whose logits may share memory with this one's."""

    def restrict(self, allowed: Bools) -> LogitTile:
        """A tile whose logits are minus infinity where ``allowed [k, n]`` is false."""


class HeadScan(Protocol):
    """The full head of a backend, read from the store."""

    rounding: Rounding  #: how far the logits of a tile may be from :meth:`row_logits`

    def tiles(self, hidden: Any) -> Iterable[LogitTile]:
        """Logits of every row for ``hidden [k, hidden]``, in the order of ids."""

    def row_logits(self, hidden: Any, ids: Ids) -> Floats:
        """Logits ``[n]`` of some full ids for one position, ``hidden [1, hidden]``, equal to those that the
        head has when it is held whole and multiplied with this position alone.
        """


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

    def positions(self, start: int, end: int) -> NumpyTile:
        return NumpyTile(self.start, self._logits[start:end])

    def restrict(self, allowed: Bools) -> NumpyTile:
        return NumpyTile(self.start, np.where(allowed, self._logits, np.float32(-np.inf)))


def without_padding(tiles: Iterable[LogitTile], rows: int) -> Iterator[LogitTile]:
    """The tiles of the first ``rows`` rows."""
    for tile in tiles:
        if (part := tile_without_padding(tile, rows)) is None:
            return
        yield part


def tile_without_padding(tile: LogitTile, rows: int) -> LogitTile | None:
    """The part of a tile among the first ``rows`` rows; None where that is nothing."""
    if tile.start >= rows:
        return None
    return tile if tile.start + tile.count <= rows else tile.first(rows - tile.start)
