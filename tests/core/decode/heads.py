"""A full head of given logits, for tests of verification."""

from __future__ import annotations

import numpy as np

from vt_core.decode.blocks import Block, Draft
from vt_core.decode.rounding import Rounding
from vt_core.decode.tiles import NumpyTile
from vt_core.decode.verification import verify

TILE = 30


class FakeHead:
    """:class:`vt_core.decode.tiles.HeadScan` whose hidden states are indices of positions.

    ``tiles`` gives ``logits [k, V]``, and ``row_logits`` those of ``whole``, which may round differently.
    """

    def __init__(self, logits, whole=None, dtype="float32"):
        self.logits, self.whole = logits, logits if whole is None else whole
        self.rounding = Rounding(dtype)
        self.scans, self.tile = 0, TILE
        self.asked = []  #: position and full ids of each call of ``row_logits``

    def tiles(self, hidden):
        self.scans += 1
        logits = self.logits[hidden]
        starts = range(0, logits.shape[1], self.tile)
        return (NumpyTile(at, logits[:, at : at + self.tile].copy()) for at in starts)

    def row_logits(self, hidden, ids):
        self.asked.append((int(hidden[0]), ids))
        return self.whole[hidden[0], ids]


def drafts(sampler, reduced, active):
    """Drafts of a block whose active rows have the logits ``reduced [k, n]`` and full ids ``active [n]``."""
    return [
        Draft(position, (), sampler.adjust(row, active), sampler.magnitude(row))
        for position, row in enumerate(reduced)
    ]


def every_choice(sampler, logits):
    """What the sampler chooses at each position from the logits ``[k, V]`` of all rows."""
    every = np.arange(logits.shape[1])
    return [sampler.choose(row, every, position) for position, row in enumerate(logits)]


def check(head, drafts, sampler):
    """Verify one block whose positions are the head's rows, in order."""
    return verify(head, np.arange(len(drafts)), [Block((), drafts, sampler)])
