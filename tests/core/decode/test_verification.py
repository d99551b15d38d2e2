from __future__ import annotations

import numpy as np
import pytest

from vt_core.decode.rounding import Rounding
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.verification import Draft, NumpyTile, accepted_prefix, verify

V = 200


class FakeHead:
    """Tiles of given logits ``[k, V]``, and others for near ties: the hidden states are indices of rows."""

    def __init__(self, logits, whole=None, dtype="float32"):
        self.logits, self.whole = logits, logits if whole is None else whole
        self.rounding = Rounding(dtype)
        self.scans = 0

    def tiles(self, hidden):
        self.scans += 1
        logits = self.logits[hidden]
        return (NumpyTile(at, logits[:, at : at + 30].copy()) for at in range(0, V, 30))

    def row_logits(self, hidden, ids):
        return self.whole[hidden[0], ids]


def choices(logits, active, **sampling):
    """What verification chooses for each row of ``logits [k, V]``, and how often it read the head."""
    sampler = Sampler(SamplerSettings(**sampling), V)
    drafts = [
        Draft(position, (), row[active], float(np.abs(row).max())) for position, row in enumerate(logits)
    ]
    head = FakeHead(logits)
    every = np.arange(V)
    assert verify(head, np.arange(len(logits)), drafts, sampler).choices == [
        sampler.choose(row, every, position) for position, row in enumerate(logits)
    ]
    return head.scans


@pytest.mark.parametrize("seed", range(5))
def test_the_head_is_read_again_where_much_of_the_mass_is_not_active(seed):
    active = np.arange(0, 50, 10)
    peaked = np.full(V, -9.0, dtype=np.float32)
    flat = np.full(V, -3.0, dtype=np.float32)  # 195 rows of weight 0.05 beside 5 of weight 1
    peaked[active] = flat[active] = 0
    options = {"temperature": 1.0, "top_p": 0.9, "seed": seed}
    assert choices(np.stack([peaked, peaked]), active, **options) == 1
    assert choices(np.stack([peaked, flat, peaked]), active, **options) == 2


def test_one_reading_does_without_top_p():
    logits = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32)
    for options in ({}, {"temperature": 2.0}, {"temperature": 1.0, "top_k": 9, "top_p": 0.5}):
        assert choices(logits, np.arange(0, V, 3), **options) == 1


def test_min_p_leaves_nothing_to_read_again_for():
    """It may keep less than top-p would: that is no sign of missing rows."""
    logits = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32)
    options = {"temperature": 1.0, "top_p": 0.99, "min_p": 0.5}
    assert choices(logits, np.arange(V), **options) == 1


def test_accepted_prefix():
    assert accepted_prefix([1, 2, 3], [1, 2, 3]) == (3, None)
    assert accepted_prefix([1, 2, 3], [1, 7, 3]) == (1, 7)
    assert accepted_prefix([], []) == (0, None)
