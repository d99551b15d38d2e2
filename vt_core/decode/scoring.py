"""Scoring given texts: log-probabilities of their tokens by the full head, which is read in tiles.

Neither the whole head nor an array of logits over the whole vocabulary is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

import numpy as np

from vt_core.decode import prompts
from vt_core.decode.decoder import POSITIONS, Decoder
from vt_core.decode.results import Score
from vt_core.decode.types import Scored
from vt_core.types import Ids


def score_pairs(
    decoder: Decoder[Any, Any],
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    rows: int,
    context: int | None,
    top: int,
    hold: Callable[[], AbstractContextManager[None]],
) -> Generator[Score, None, None]:
    """Score pairs of prompt and continuation, both token ids, in order.

    Args:
        decoder: reads the texts.
        pairs: prompts and continuations.
        rows: ids must be below it.
        context: most tokens of a pair together; None for no limit.
        top: how many of the likeliest tokens to list for each position.
        hold: keeps requests from running on the decoder.

    Raises:
        PromptError: a pair is empty or too long, or has ids without a row.
    """
    continuations: deque[Ids] = deque()

    def texts() -> Iterator[tuple[Ids, int]]:
        for pair in pairs:
            prompt, continuation = prompts.token_id_pair(pair)
            prompts.check_scored(prompt, continuation, rows, context)
            continuations.append(continuation)
            yield np.concatenate([prompt, continuation]), len(prompt)

    scores = score(decoder, texts(), min(top, rows))
    try:
        while True:
            with hold():
                scored = next(scores, None)
            if scored is None:
                return
            yield _score(scored, continuations.popleft())
    finally:
        scores.close()


def _score(scored: Scored, continuation: Ids) -> Score:
    likeliest = zip(scored.top_ids.tolist(), scored.top_log_probs.tolist(), strict=True)
    return Score(
        tuple(continuation.tolist()),
        tuple(scored.log_probs.tolist()),
        tuple((scored.choices == continuation).tolist()),
        tuple(tuple(zip(*pair, strict=True)) for pair in likeliest),
    )


def score(
    decoder: Decoder[Any, Any], texts: Iterable[tuple[Ids, int]], top: int = 0
) -> Generator[Scored, None, None]:
    """Score texts, in order.

    Positions of several texts are gathered, so that one read of the full head serves many.

    Args:
        decoder: no request may be running on it.
        texts: ``(ids, given)`` of each text: full ids, and how many of them are given, at least one and not
            all. The ids after them are scored.
        top: how many of the likeliest ids to return for each position.
    """
    lengths: deque[int] = deque()
    scored = Scored(
        np.empty(0), np.empty(0, dtype=np.int64), np.empty((0, top), dtype=np.int64), np.empty((0, top))
    )
    # Closed here, not at garbage collection: by then the decoder may run another request.
    with closing(_positions(decoder, texts, lengths)) as pieces:
        for states, targets in _batches(pieces):
            more = decoder.score(states, targets, top)
            scored = scored.with_more(more)
            while lengths and lengths[0] <= len(scored.choices):
                count = lengths.popleft()
                yield scored.part(0, count)
                scored = scored.part(count, None)


def _positions(
    decoder: Decoder[Any, Any], texts: Iterable[tuple[Ids, int]], lengths: deque[int]
) -> Generator[tuple[Any, Ids], None, None]:
    """Pieces of states and the ids to score there; ``lengths`` gets the number of ids of each text."""
    last: tuple[Ids, Any] | None = None
    for ids, given in texts:
        read, targets = ids[:-1], ids[given:]
        lengths.append(len(targets))
        # Single-token choices after the same text: read it once.
        if last is not None and len(targets) == 1 and np.array_equal(last[0], read):
            yield last[1], targets
            continue
        at = 0
        with closing(decoder.states(read, given - 1)) as pieces:
            for states in pieces:
                last = read, states
                yield states, targets[at : at + len(states)]
                at += len(states)
        last = last if len(targets) == 1 else None


def _batches(pieces: Iterable[tuple[Any, Ids]]) -> Iterator[tuple[list[Any], Ids]]:
    """Join pieces until they have :data:`POSITIONS` positions."""
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
