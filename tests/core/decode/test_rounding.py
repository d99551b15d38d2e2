"""Near ties: verification chooses what the whole head would, although its tiles round differently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.decode.heads import FakeHead, check, drafts, every_choice
from vt_core.decode.rounding import Rounding, decide
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.errors import ModelError

#: Not more than are settled at the border of top-p. Beyond them the normalizer stays that of the tiles.
ROWS = 100
UNIT = 2.0**-7  #: relative spacing of bfloat16


def rounded(values):
    """Values with eight significant bits, as bfloat16 has them."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)


def disturbed(logits, rng, share):
    """Logits of which a share moves to a neighboring number."""
    steps = rng.choice([-1, 0, 1], p=[share / 2, 1 - share, share / 2], size=logits.shape)
    _, exponent = np.frexp(logits)
    return (logits + steps * np.ldexp(UNIT, exponent - 1)).astype(np.float32)


samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 7, 40]),
        "top_p": st.sampled_from([0.3, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
        "seed": st.integers(0, 2**32),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "logit_bias": st.sampled_from([{}, {3: 2.0, 60: -30.0}]),
    }
)


@given(samplings, st.integers(0, 2**32), st.sampled_from([2.0, 30.0]), st.sampled_from([0.02, 0.5]))
# Rows that min-p drops weigh in top-p.
@example(
    {
        "temperature": 0.3,
        "top_k": 0,
        "top_p": 0.3,
        "min_p": 0.1,
        "seed": 60,
        "repetition_penalty": 0.7,
        "presence_penalty": 0.0,
        "logit_bias": {},
    },
    450456,
    30.0,
    0.5,
)
def test_choices_are_those_of_the_whole_head(sampling, seed, spread, share):
    rng = np.random.default_rng(seed)
    # Close to each other at the top, so that most positions are near ties.
    whole = rounded(spread - np.abs(rng.normal(size=(3, ROWS))) * spread / 20)
    sampler = Sampler(SamplerSettings(**sampling), ROWS)
    sampler.extend(rng.integers(0, ROWS, size=20))
    active = np.union1d(rng.permutation(ROWS)[:30], [3, 60])
    head = FakeHead(disturbed(whole, rng, share), whole, "bfloat16")
    block = drafts(sampler, disturbed(whole, rng, share)[:, active], active)
    assert check(head, block, sampler)[0].choices == every_choice(sampler, whole)


def test_only_near_ties_are_settled_and_only_their_rows_are_read():
    whole = np.full((3, ROWS), -5.0, np.float32)
    whole[0, [7, 70]] = 16.0, 15.0  # far apart
    whole[1, [70, 85, 99]] = 16.0, 16.0, 15.875  # equal, and a unit below
    whole[2, [4, 9]] = 16.0, 15.5  # four units: two logits are off by one each at most
    tiles = whole.copy()
    tiles[1, [70, 85, 99]] = 15.875, 16.0, 16.0
    head = FakeHead(tiles, whole, "bfloat16")
    sampler = Sampler(SamplerSettings(), ROWS)
    (found,) = check(head, drafts(sampler, tiles, np.arange(ROWS)), sampler)
    assert found.choices == [7, 70, 4] and found.settled == 1
    assert [(position, ids.tolist()) for position, ids in head.asked] == [(1, [70, 85, 99])]


def test_a_tie_of_more_rows_than_are_settled_goes_to_the_lowest_id():
    logits = np.ones((1, 2000), np.float32)
    head = FakeHead(logits, dtype="float32")
    sampler = Sampler(SamplerSettings(), 2000)
    assert check(head, drafts(sampler, logits, np.arange(2000)), sampler)[0].choices == [0]


@given(st.floats(2.0**-8, 1e4), st.sampled_from([("bfloat16", 8), ("float16", 11)]))
def test_an_error_is_at_least_the_distance_of_neighboring_numbers(value, kind):
    dtype, bits = kind
    error = Rounding(dtype).error(np.float32(value))
    _, exponent = np.frexp(np.float32(value))
    assert 2.0 ** (int(exponent) - bits) <= error <= max(2 * 2.0 ** (int(exponent) - bits), 2.0**-bits)
    assert Rounding(dtype, units=2).error(np.float32(value)) == 2 * error
    assert Rounding(dtype, offset=1e3).error(np.float32(value)) >= Rounding(dtype).error(np.float32(1e3))


@given(samplings, st.integers(0, 2**32))
def test_without_errors_every_choice_but_a_tie_is_certain(sampling, seed):
    logits = np.random.default_rng(seed).normal(size=ROWS).astype(np.float32) * 3
    settings = SamplerSettings(**sampling)
    choice, decisive = decide(logits, np.arange(ROWS), 5, settings, 0.0)
    chosen = Sampler(settings, ROWS).pick(logits, np.arange(ROWS), 5)
    assert choice == chosen if len(decisive) == 0 else settings.min_p == 1.0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"repetition_penalty": 1.2}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_not_a_number_is_an_error(sampling, value):
    logits = np.zeros((2, ROWS), np.float32)
    faulty = logits.copy()
    faulty[1, 7] = value
    sampler = Sampler(SamplerSettings(**sampling), ROWS)
    block = drafts(sampler, logits, np.arange(ROWS))
    with pytest.raises(ModelError, match="logits that are not finite numbers"):
        check(FakeHead(faulty), block, sampler)


def test_a_settled_logit_that_is_not_a_number_is_an_error():
    logits = np.zeros((1, ROWS), np.float32)
    faulty = np.full_like(logits, np.nan)
    sampler = Sampler(SamplerSettings(), ROWS)
    with pytest.raises(ModelError, match="logits that are not finite numbers"):
        check(FakeHead(logits, faulty), drafts(sampler, logits, np.arange(ROWS)), sampler)
