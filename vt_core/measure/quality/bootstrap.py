"""Confidence intervals by the bootstrap over examples, paired where two variants answered the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vt_core.measure.quality.scores import Metric, Statistics

Weights = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


def draw_weights(n: int, resamples: int, seed: int) -> Weights:
    """How often each of `n` examples stands in each resample of `n`, int64 [resamples, n]."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def estimate(metric: Metric, statistics: Statistics, weights: Weights, confidence: float) -> Estimate:
    """The score of all examples, and the middle `confidence` of its resamples."""
    return _estimate(metric.score(statistics.sum(axis=0)), _scores(metric, statistics, weights), confidence)


def estimate_difference(
    metric: Metric, ours: Statistics, theirs: Statistics, weights: Weights, confidence: float
) -> Estimate:
    """Score of `ours` less that of `theirs`, both of the same examples in every resample."""
    value = metric.score(ours.sum(axis=0)) - metric.score(theirs.sum(axis=0))
    resampled = _scores(metric, ours, weights) - _scores(metric, theirs, weights)
    return _estimate(value, resampled, confidence)


def _scores(metric: Metric, statistics: Statistics, weights: Weights) -> npt.NDArray[np.float64]:
    return np.array([metric.score(sums) for sums in weights @ statistics])


def _estimate(value: float, resampled: npt.NDArray[np.float64], confidence: float) -> Estimate:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high))
