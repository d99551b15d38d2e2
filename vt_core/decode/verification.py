"""The full head's choices for a block of positions, from one reading of its rows in tiles.

A backend multiplies each tile with the hidden states of the block; a search (:mod:`vt_core.decode.search`)
keeps the rows that can be chosen. Near ties are settled by the product that ``--head full`` uses, see
:mod:`vt_core.decode.rounding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vt_core.decode.blocks import Block, Draft, Verified
from vt_core.decode.sampling import Sampler
from vt_core.decode.search import Found, GeneralSearch, GreedySearch, Search
from vt_core.decode.tiles import Floats, HeadScan, tile_without_padding
from vt_core.types import Ids


def verify(head: HeadScan, hidden: Any, blocks: Sequence[Block[Any]]) -> list[Verified]:
    """Choose again at each position of some blocks, on the full head, which is read once for all of them.

    Rows after a sampler's are padding and are not chosen.

    Args:
        head: the full head.
        hidden: hidden states of all positions, ``[k, hidden]``, block after block.
        blocks: the blocks; their own ``hidden`` is not used.

    Raises:
        ModelError: a logit is not a number.
    """
    counts = [len(block.drafts) for block in blocks]
    ends = np.cumsum(counts).tolist()
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    searches: list[Search] = [
        GreedySearch(head.rounding, block.drafts)
        if block.sampler.settings.plain_greedy
        else GeneralSearch(head.rounding, block.drafts, block.sampler)
        for block in blocks
    ]
    open_ = list(range(len(blocks)))
    while open_:
        for tile in head.tiles(hidden):
            for at in open_:
                whole = tile if len(blocks) == 1 else tile.positions(starts[at], ends[at])
                if (part := tile_without_padding(whole, blocks[at].sampler.rows)) is not None:
                    searches[at].add(part)
        # Rare: a search needs another scan.
        open_ = [at for at in open_ if not searches[at].finish()]
    verified = []
    for search, block, start in zip(searches, blocks, starts, strict=True):
        choices, settled = [], 0
        for index, (position, draft) in enumerate(zip(search.found, block.drafts, strict=True)):
            state = hidden[start + index : start + index + 1]
            choice, near_tie = position.choose(head, state, draft, block.sampler)
            choices.append(choice)
            settled += near_tie
        verified.append(Verified(choices, settled))
    return verified


def choose_certain(
    head: HeadScan, hidden: Any, logits: Floats, ids: Ids, draft: Draft, sampler: Sampler
) -> tuple[int, bool]:
    """What the full head chooses at a position all of whose candidates are known; near ties are settled.

    Args:
        head: the full head.
        hidden: hidden state of the position, ``[1, hidden]``.
        logits: of all full ids that may be chosen, not adjusted.
        ids: these full ids, in the same order.
        draft: the position, with its ``magnitude``.
        sampler: of the request.

    Returns:
        A full id, and whether it was a near tie.
    """
    order = np.argsort(ids)
    ids = ids[order]
    adjusted = sampler.adjust(logits[order], ids, draft.pending)
    magnitude = np.array([max(draft.magnitude, sampler.magnitude(logits))], np.float32)
    if sampler.settings.plain_greedy:
        error = head.rounding.error(magnitude)
    else:
        largest = np.array([adjusted.max()], np.float32)
        error = head.rounding.adjusted_error(sampler.settings, magnitude, largest)
    return Found(adjusted, ids, float(error[0])).choose(head, hidden, draft, sampler)
