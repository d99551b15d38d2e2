"""Verification with the rows that a grammar allows chooses what the whole head would among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.decode.heads import FakeHead, check, drafts
from tests.core.decode.test_rounding import ROWS, disturbed, rounded, samplings
from vt_core.decode.blocks import Block
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.tiles import NumpyTile
from vt_core.decode.verification import choose_certain, verify
from vt_core.errors import ModelError

#: Tiles of the fake head have 30 rows.
FIRST_TILE, SECOND_TILE = np.arange(ROWS) < 30, (np.arange(ROWS) >= 30) & (np.arange(ROWS) < 60)


def masks(rng, share):
    """Allowed rows of three positions, each at least one."""
    allowed = rng.random((3, ROWS)) < share
    allowed[np.arange(3), rng.integers(0, ROWS, 3)] = True
    return allowed


def reference(sampler, logits, allowed):
    """What the sampler chooses from all logits ``[k, V]`` among the allowed rows."""
    return [
        sampler.choose(row[ids], ids, position)
        for position, (row, ids) in enumerate(zip(logits, map(np.flatnonzero, allowed), strict=True))
    ]


def masked_drafts(sampler, reduced, active, allowed):
    """Drafts whose active rows are ``active``, and at least one allowed row of each position."""
    result = []
    for position, (row, mask) in enumerate(zip(reduced, allowed, strict=True)):
        ids = active[mask[active]]
        ids = ids if len(ids) else np.flatnonzero(mask)[:1]
        (draft,) = drafts(sampler, row[None, ids], ids)
        magnitude = sampler.magnitude(row[active])
        result.append(replace(draft, position=position, allowed=mask, magnitude=magnitude))
    return result


@given(
    samplings,
    st.integers(0, 2**32),
    st.sampled_from([2.0, 30.0]),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.sampled_from([0.02, 0.3, 1.0]),
)
def test_choices_are_those_of_the_whole_head_among_allowed_rows(sampling, seed, spread, share, wide):
    rng = np.random.default_rng(seed)
    whole = rounded(spread - np.abs(rng.normal(size=(3, ROWS))) * spread / 20)
    sampler = Sampler(SamplerSettings(**sampling), ROWS)
    sampler.extend(rng.integers(0, ROWS, size=20))
    active = np.union1d(rng.permutation(ROWS)[:30], [3, 60])
    allowed = masks(rng, wide)
    head = FakeHead(disturbed(whole, rng, share), whole, "bfloat16")
    block = masked_drafts(sampler, disturbed(whole, rng, share), active, allowed)
    assert check(head, block, sampler)[0].choices == reference(sampler, whole, allowed)


@given(samplings, st.integers(0, 2**32), st.sampled_from([2.0, 30.0]), st.sampled_from([0.0, 0.5]))
def test_a_certain_choice_is_that_of_the_whole_head_among_allowed_rows(sampling, seed, spread, share):
    rng = np.random.default_rng(seed)
    whole = rounded(spread - np.abs(rng.normal(size=(3, ROWS))) * spread / 20)
    sampler = Sampler(SamplerSettings(**sampling), ROWS)
    sampler.extend(rng.integers(0, ROWS, size=20))
    allowed = masks(rng, 0.3)
    reduced = disturbed(whole, rng, share)
    head = FakeHead(reduced, whole, "bfloat16")
    block = masked_drafts(sampler, reduced, np.arange(ROWS), allowed)
    chosen = []
    for position, draft in enumerate(block):
        ids = rng.permutation(np.flatnonzero(allowed[position]))
        logits = reduced[position, ids]
        chosen.append(choose_certain(head, np.array([position]), logits, ids, draft, sampler)[0])
    assert chosen == reference(sampler, whole, allowed)
    assert head.scans == 0


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "top_k": 40, "top_p": 0.5}]
)
def test_tiles_without_an_allowed_row_do_not_matter(sampling):
    logits = np.random.default_rng(0).normal(size=(2, ROWS)).astype(np.float32)
    logits[:, 60:] += 50  # would win without the mask
    allowed = np.stack([FIRST_TILE, SECOND_TILE])
    sampler = Sampler(SamplerSettings(**sampling), ROWS)
    block = masked_drafts(sampler, logits, np.arange(0, ROWS, 7), allowed)
    assert check(FakeHead(logits), block, sampler)[0].choices == reference(sampler, logits, allowed)


def test_blocks_with_and_without_a_mask_share_a_scan():
    logits = np.random.default_rng(1).normal(size=(2, ROWS)).astype(np.float32)
    sampler = Sampler(SamplerSettings(), ROWS)
    free = drafts(sampler, logits[:1], np.arange(ROWS))
    (masked,) = masked_drafts(sampler, logits[1:], np.arange(ROWS), SECOND_TILE[None])
    head = FakeHead(logits)
    found = verify(head, np.arange(2), [Block((), free, sampler), Block((), [masked], sampler)])
    assert [block.choices for block in found] == [
        [int(logits[0].argmax())],
        [30 + int(logits[1, 30:60].argmax())],
    ]
    assert head.scans == 1


def test_a_logit_that_is_not_a_number_is_an_error_where_it_is_allowed():
    logits = np.zeros((1, ROWS), np.float32)
    faulty = logits.copy()
    faulty[0, 35] = np.nan
    sampler = Sampler(SamplerSettings(), ROWS)
    block = masked_drafts(sampler, logits, np.arange(30, 60), SECOND_TILE[None])
    with pytest.raises(ModelError, match="logits that are not finite numbers"):
        check(FakeHead(faulty), block, sampler)
    elsewhere = masked_drafts(sampler, logits, np.arange(30), FIRST_TILE[None])
    assert check(FakeHead(faulty), elsewhere, sampler)[0].choices == [0]


def test_a_restricted_tile_leaves_the_tile_as_it_was():
    tile = NumpyTile(0, np.array([[1.0, 3.0]], np.float32))
    assert tile.restrict(np.array([[True, False]])).largest.tolist() == [1.0]
    assert tile.largest.tolist() == [3.0]
