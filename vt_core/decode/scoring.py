"""How likely a model finds a given text: log-probabilities over the whole vocabulary, from the full head in
tiles. Neither the head nor an array of logits over the vocabulary is ever held whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vt_core.decode.backend import Decoder, States
from vt_core.decode.verification import LogitTile
from vt_core.vocab.active import Ids

#: Hidden states in one piece; the full head is read once for each time that so many, or more, have gathered.
#: It bounds the logits of a tile, and by then the product takes far longer than the reading.
POSITIONS = 256


class Scored(NamedTuple):
    """For each of ``k`` positions: the natural logarithm of a given id's probability, float64, and the greedy
    choice, a full id.
    """

    log_probs: npt.NDArray[np.float64]
    choices: Ids


def log_probabilities(tiles: Iterable[LogitTile], targets: Ids) -> Scored:
    """The log-probability of one full id for each position, ``targets [k]``, and the greedy choice there, of
    equal logits the lowest id, from one reading of the full head's tiles.
    """
    top = np.full(len(targets), -np.inf, dtype=np.float32)
    mass = np.zeros(len(targets))
    logits = np.zeros(len(targets))
    choices = np.zeros(len(targets), dtype=np.int64)
    for tile in tiles:
        positions, values, places = tile.better(top)
        larger = top.copy()
        larger[positions] = values
        choices[positions] = tile.start + places
        mass *= np.exp((top - larger).astype(np.float64))
        mass += tile.mass(larger, 1.0)
        top = larger
        inside = (targets >= tile.start) & (targets < tile.start + tile.count)
        for position in np.flatnonzero(inside).tolist():
            logits[position] = tile.take(position, targets[position : position + 1] - tile.start)[0]
    return Scored(logits - top - np.log(mass), choices)


def score(decoder: Decoder, texts: Iterable[tuple[Ids, int]]) -> Generator[Scored, None, None]:
    """Score the ids behind the first ``given`` ones (at least one, and not all) of each text
    ``(ids, given)``, in order. Positions of several texts meet the full head together.
    """
    lengths: deque[int] = deque()
    scored = Scored(np.empty(0), np.empty(0, dtype=np.int64))
    # Closed here, not when it is collected: by then the decoder may be at another request.
    with closing(_positions(decoder, texts, lengths)) as pieces:
        for states, targets in _batches(pieces):
            more = decoder.score(states, targets)
            scored = Scored(
                np.concatenate([scored.log_probs, more.log_probs]),
                np.concatenate([scored.choices, more.choices]),
            )
            while lengths and lengths[0] <= len(scored.choices):
                count = lengths.popleft()
                yield Scored(scored.log_probs[:count], scored.choices[:count])
                scored = Scored(scored.log_probs[count:], scored.choices[count:])


def _positions(
    decoder: Decoder, texts: Iterable[tuple[Ids, int]], lengths: deque[int]
) -> Generator[tuple[States, Ids], None, None]:
    """Pieces of states and the ids that follow them; ``lengths`` gets how many of these each text has."""
    last: tuple[Ids, States] | None = None
    for ids, given in texts:
        read, targets = ids[:-1], ids[given:]
        lengths.append(len(targets))
        # Choices of one token each behind the same text: that is read once.
        if last is not None and len(targets) == 1 and np.array_equal(last[0], read):
            yield last[1], targets
            continue
        at = 0
        decoder.begin()
        try:
            for states in decoder.states(read, given - 1):
                last = read, states
                yield states, targets[at : at + len(states)]
                at += len(states)
        finally:
            decoder.end()
        last = last if len(targets) == 1 else None


def _batches(pieces: Iterable[tuple[States, Ids]]) -> Iterator[tuple[list[States], Ids]]:
    """Pieces together until they have :data:`POSITIONS` positions."""
    states: list[States] = []
    targets: list[Ids] = []
    for piece, ids in pieces:
        states.append(piece)
        targets.append(ids)
        if sum(map(len, targets)) >= POSITIONS:
            yield states, np.concatenate(targets)
            states, targets = [], []
    if states:
        yield states, np.concatenate(targets)
