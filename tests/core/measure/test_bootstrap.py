"""Intervals whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from vt_core.measure.bootstrap import (
    draw_weights,
    estimate,
    estimate_difference,
    interval,
    ratio_interval,
)


def mean(sums) -> float:
    return 100 * sums[0] / sums[1]


def terms(shares) -> np.ndarray:
    return np.array([[share, 1.0] for share in shares])


def test_weights_sum_to_the_number_of_examples_and_depend_on_the_seed():
    weights = draw_weights(30, 500, seed=3)
    assert weights.shape == (500, 30) and np.all(weights.sum(axis=1) == 30) and np.all(weights >= 0)
    assert np.array_equal(weights, draw_weights(30, 500, seed=3))
    assert not np.array_equal(weights, draw_weights(30, 500, seed=4))


def test_interval_of_a_share_is_binomial():
    # 40 of 100: the resampled share is binomial, with a deviation of sqrt(.4 * .6 / 100) = 4.9 points.
    found = estimate(mean, terms([1] * 40 + [0] * 60), draw_weights(100, 4000))
    assert found.value == 40
    assert found.low == pytest.approx(40 - 1.96 * 4.9, abs=1) and found.high == pytest.approx(49.6, abs=1)


def test_interval_holds_the_middle_of_the_values():
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))


def test_differences_are_paired():
    random = np.random.default_rng(0)
    theirs = random.random(50)
    weights = draw_weights(50, 1000, seed=1)
    same = estimate_difference(mean, terms(theirs), terms(theirs), weights)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    # A tenth better on every example: every resample says so, however wide the two intervals are.
    better = estimate_difference(mean, terms(theirs + 0.1), terms(theirs), weights)
    assert better.value == pytest.approx(10) and better.low == pytest.approx(10) == better.high
    alone = estimate(mean, terms(theirs), weights)
    assert alone.high - alone.low > 5


def test_ratios_are_paired():
    times = np.random.default_rng(0).random(20) + 0.5
    assert ratio_interval(terms(2 * times), terms(times)) == pytest.approx((2, 2))
    low, high = ratio_interval(terms(times), terms(times[::-1]))
    assert low < 1 < high


def test_ratios_without_data_have_no_interval():
    assert ratio_interval(terms([1.0]), terms([2.0])) is None
    assert ratio_interval(terms([1.0, 2.0]), terms([1.0, 2.0, 3.0])) is None
    assert ratio_interval(terms([1.0, 1.0]), np.zeros((2, 2))) is None
    # Requests of one token have no time per token; the others still have.
    sparse = np.array([[0.0, 0.0], [0.5, 1.0], [0.5, 1.0]])
    assert ratio_interval(sparse, 2 * sparse) == pytest.approx((1, 1))
