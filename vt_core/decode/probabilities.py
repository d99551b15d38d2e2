"""Log-probabilities over the whole vocabulary, from one pass over the full head's tiles."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vt_core.decode.sampling import check_finite
from vt_core.decode.types import Scored
from vt_core.decode.verification import LogitTile
from vt_core.vocab.active import Ids


def log_probabilities(tiles: Iterable[LogitTile], targets: Ids) -> Scored:
    """Log-probability of one full id for each position, and the greedy choice there.

    The normalizer is a running maximum and sum, so no array over the whole vocabulary is held.

    Args:
        tiles: logits of every row of the full head, in id order, for ``k`` positions.
        targets: a full id for each position, int64 ``[k]``.

    Returns:
        ``[k]`` each; of equal logits the choice is the lowest id.

    Raises:
        ModelError: a logit is not a number.
    """
    top = np.full(len(targets), -np.inf, dtype=np.float32)
    mass = np.zeros(len(targets))
    logits = np.zeros(len(targets))
    choices = np.zeros(len(targets), dtype=np.int64)
    for tile in tiles:
        larger = np.maximum(top, check_finite(tile.largest))
        # The first of each position is the lowest id of equal ones.
        positions, places, _ = tile.above(np.where(larger > top, larger, np.float32(np.inf)))
        positions, first = np.unique(positions, return_index=True)
        choices[positions] = tile.start + places[first]
        mass *= np.exp((top - larger).astype(np.float64))
        mass += tile.mass(larger, 1.0)
        top = larger
        inside = (targets >= tile.start) & (targets < tile.start + tile.count)
        for position in np.flatnonzero(inside).tolist():
            logits[position] = tile.take(position, targets[position : position + 1] - tile.start)[0]
    return Scored(logits - top - np.log(mass), choices)
