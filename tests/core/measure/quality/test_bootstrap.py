"""Intervals whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from vt_core.measure.quality.bootstrap import draw_weights, estimate, estimate_difference
from vt_core.measure.quality.scores import Mean

MEAN = Mean("mean", "", lambda answer, example: 0.0)


def statistics(shares) -> np.ndarray:
    return np.array([[share, 1.0] for share in shares])


def test_every_resample_has_as_many_examples_and_a_seed_repeats_it():
    weights = draw_weights(30, 500, seed=3)
    assert weights.shape == (500, 30) and np.all(weights.sum(axis=1) == 30) and np.all(weights >= 0)
    assert np.array_equal(weights, draw_weights(30, 500, seed=3))
    assert not np.array_equal(weights, draw_weights(30, 500, seed=4))


def test_the_interval_of_a_share_is_the_binomials():
    # 40 of 100: the resampled share is binomial, with a deviation of sqrt(.4 * .6 / 100) = 4.9 points.
    own = statistics([1] * 40 + [0] * 60)
    found = estimate(MEAN, own, draw_weights(100, 4000, seed=0), 0.95)
    assert found.value == 40
    assert found.low == pytest.approx(40 - 1.96 * 4.9, abs=1) and found.high == pytest.approx(49.6, abs=1)
    narrow = estimate(MEAN, own, draw_weights(100, 4000, seed=0), 0.5)
    assert found.low < narrow.low < narrow.value < narrow.high < found.high


def test_differences_are_paired():
    random = np.random.default_rng(0)
    theirs = random.random(50)
    weights = draw_weights(50, 1000, seed=1)
    same = estimate_difference(MEAN, statistics(theirs), statistics(theirs), weights, 0.95)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    # Better by a tenth on every example: no resample says otherwise, wide as both intervals are.
    better = estimate_difference(MEAN, statistics(theirs + 0.1), statistics(theirs), weights, 0.95)
    assert better.value == pytest.approx(10) and better.low == pytest.approx(10) == better.high
    alone = estimate(MEAN, statistics(theirs), weights, 0.95)
    assert alone.high - alone.low > 5
