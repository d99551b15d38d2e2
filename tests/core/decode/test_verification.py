from __future__ import annotations

import numpy as np
import pytest

from tests.core.decode.heads import FakeHead, check, drafts, every_choice
from vt_core.decode.blocks import accepted_prefix
from vt_core.decode.sampling import Sampler, SamplerSettings

V = 200


def scans(logits, active, **sampling):
    """How often verification reads the head to choose as the sampler does from ``logits [k, V]``."""
    sampler = Sampler(SamplerSettings(**sampling), V)
    head = FakeHead(logits)
    (found,) = check(head, drafts(sampler, logits[:, active], active), sampler)
    assert found.choices == every_choice(sampler, logits)
    return head.scans


@pytest.mark.parametrize("seed", range(5))
def test_head_is_read_again_where_much_mass_is_not_active(seed):
    active = np.arange(0, 50, 10)
    peaked = np.full(V, -9.0, dtype=np.float32)
    flat = np.full(V, -3.0, dtype=np.float32)  # 195 rows of weight 0.05 beside 5 of weight 1
    peaked[active] = flat[active] = 0
    options = {"temperature": 1.0, "top_p": 0.9, "seed": seed}
    assert scans(np.stack([peaked, peaked]), active, **options) == 1
    assert scans(np.stack([peaked, flat, peaked]), active, **options) == 2


def test_one_scan_is_enough_without_top_p():
    logits = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32)
    for options in ({}, {"temperature": 2.0}, {"temperature": 1.0, "top_k": 9, "top_p": 0.5}):
        assert scans(logits, np.arange(0, V, 3), **options) == 1


def test_one_scan_is_enough_where_min_p_keeps_less_than_top_p():
    logits = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32)
    assert scans(logits, np.arange(V), temperature=1.0, top_p=0.99, min_p=0.5) == 1


def test_padding_rows_are_not_chosen():
    logits = np.zeros((1, V), np.float32)
    logits[0, [50, 150]] = 1.0, 9.0
    sampler = Sampler(SamplerSettings(), 100)
    (found,) = check(FakeHead(logits), drafts(sampler, logits[:, :10], np.arange(10)), sampler)
    assert found.choices == [50]


def test_accepted_prefix():
    assert accepted_prefix([1, 2, 3], [1, 2, 3]) == (3, None)
    assert accepted_prefix([1, 2, 3], [1, 7, 3]) == (1, 7)
    assert accepted_prefix([], []) == (0, None)
