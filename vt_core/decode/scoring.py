"""How likely a model finds a given text: log-probabilities over the whole vocabulary, from the full head in
tiles. Neither the head nor an array of logits over the vocabulary is ever held whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from vt_core.decode.decoder import POSITIONS, Decoder
from vt_core.decode.types import Scored
from vt_core.vocab.active import Ids


def score(decoder: Decoder[Any], texts: Iterable[tuple[Ids, int]]) -> Generator[Scored, None, None]:
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
    decoder: Decoder[Any], texts: Iterable[tuple[Ids, int]], lengths: deque[int]
) -> Generator[tuple[Any, Ids], None, None]:
    """Pieces of states and the ids that follow them; ``lengths`` gets how many of these each text has."""
    last: tuple[Ids, Any] | None = None
    for ids, given in texts:
        read, targets = ids[:-1], ids[given:]
        lengths.append(len(targets))
        # Choices of one token each behind the same text: that is read once.
        if last is not None and len(targets) == 1 and np.array_equal(last[0], read):
            yield last[1], targets
            continue
        at = 0
        decoder.begin(confidence=False)
        try:
            for states in decoder.states(read, given - 1):
                last = read, states
                yield states, targets[at : at + len(states)]
                at += len(states)
        finally:
            decoder.end()
        last = last if len(targets) == 1 else None


def _batches(pieces: Iterable[tuple[Any, Ids]]) -> Iterator[tuple[list[Any], Ids]]:
    """Pieces together until they have :data:`POSITIONS` positions."""
    states: list[Any] = []
    targets: list[Ids] = []
    for piece, ids in pieces:
        states.append(piece)
        targets.append(ids)
        if sum(map(len, targets)) >= POSITIONS:
            yield states, np.concatenate(targets)
            states, targets = [], []
    if states:
        yield states, np.concatenate(targets)
