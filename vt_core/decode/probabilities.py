"""Log-probabilities over the whole vocabulary, from one pass over the full head's tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from vt_core.decode.blocks import Draft
from vt_core.decode.search import GreedySearch
from vt_core.decode.tiles import HeadScan, LogitTile
from vt_core.decode.types import Scored
from vt_core.types import Ids


def log_probabilities(head: HeadScan, hidden: Any, targets: Ids, top: int = 0) -> Scored:
    """Log-probability of one full id for each position, the greedy choice there, and the likeliest ids.

    The normalizer is a running maximum and sum, so no array over the whole vocabulary is held. Near ties of
    the greedy choice are settled as in verification.

    Args:
        head: the full head, which is read once.
        hidden: hidden states of ``k`` positions, ``[k, hidden]``.
        targets: a full id for each position, int64 ``[k]``.
        top: how many of the most likely ids to return; at most as many as there are rows.

    Returns:
        ``[k]`` and ``[k, top]`` each; of equal logits the lowest id comes first.

    Raises:
        ModelError: a logit is not a number.
    """
    search = GreedySearch(head.rounding, [Draft(at, ()) for at in range(len(targets))])
    highest = search.best
    mass = np.zeros(len(targets))
    logits = np.zeros(len(targets))
    likeliest = _Likeliest(len(targets), top)
    for tile in head.tiles(hidden):
        search.add(tile)
        mass *= np.exp((highest - search.best).astype(np.float64))
        mass += tile.mass(search.best, 1.0)
        highest = search.best
        likeliest.add(tile)
        inside = (targets >= tile.start) & (targets < tile.start + tile.count)
        for position in np.flatnonzero(inside).tolist():
            logits[position] = tile.take(position, targets[position : position + 1] - tile.start)[0]
    search.finish()
    choices = np.array(
        [found.greedy(head, hidden[at : at + 1]) for at, found in enumerate(search.found)], np.int64
    )
    normalizer = highest + np.log(mass)
    return Scored(
        logits - normalizer, choices, likeliest.ids, likeliest.logits.astype(np.float64) - normalizer[:, None]
    )


class _Likeliest:
    """The rows with the largest logits of each position, over the tiles seen so far."""

    def __init__(self, positions: int, count: int) -> None:
        self.logits = np.full((positions, count), -np.inf, dtype=np.float32)  #: ``[k, count]``, largest first
        self.ids = np.full((positions, count), -1, dtype=np.int64)  #: their full ids, ``[k, count]``

    def add(self, tile: LogitTile) -> None:
        """Take the rows of a tile that belong to them."""
        positions, count = self.logits.shape
        if not count:
            return
        # A later row with an equal logit has a higher id and does not belong to them.
        least = np.nextafter(self.logits[:, -1], np.float32(np.inf))
        rows, places, logits = tile.above(least)
        rows = np.concatenate([np.repeat(np.arange(positions), count), rows])
        ids = np.concatenate([self.ids.ravel(), places + tile.start])
        logits = np.concatenate([self.logits.ravel(), logits])
        order = np.lexsort((ids, -logits, rows))
        rows = rows[order]
        ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = order[ranks < count]
        self.logits = logits[kept].reshape(positions, count)
        self.ids = ids[kept].reshape(positions, count)
