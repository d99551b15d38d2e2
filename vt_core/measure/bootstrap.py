"""Bootstrap intervals over prompts, paired: every variant gets the same resamples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
#: Share of the resampled values that an interval holds.
CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


def draw_weights(n: int, resamples: int = RESAMPLES, seed: int = 0) -> Weights:
    """How often each of ``n`` examples occurs in each resample of ``n``, int64 ``[resamples, n]``."""
    # RandomState yields the same numbers in every version of numpy, so committed reports stay reproducible.
    drawn = np.random.RandomState(seed).randint(0, n, size=(resamples, n))
    weights = np.zeros((resamples, n), np.int64)
    np.add.at(weights, (np.arange(resamples)[:, None], drawn), 1)
    return weights


def interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The middle ``confidence`` of resampled values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def estimate(score: Callable[[Floats], float], sums: Floats, weights: Weights) -> Estimate:
    """A score of all examples and its interval.

    Args:
        score: computes the score from sums ``[k]`` over examples.
        sums: what each example adds, ``[n, k]``.
        weights: from :func:`draw_weights`.
    """
    return Estimate(score(sums.sum(axis=0)), *interval(_scores(score, sums, weights)))


def estimate_difference(
    score: Callable[[Floats], float], ours: Floats, theirs: Floats, weights: Weights
) -> Estimate:
    """Score of ``ours`` minus score of ``theirs``, over the same examples in every resample."""
    value = score(ours.sum(axis=0)) - score(theirs.sum(axis=0))
    resampled = _scores(score, ours, weights) - _scores(score, theirs, weights)
    return Estimate(value, *interval(resampled))


def ratio_interval(ours: Floats, theirs: Floats) -> tuple[float, float] | None:
    """Interval of the ratio of two rates, each a sum over examples divided by another.

    Args:
        ours, theirs: numerator and denominator of each example, ``[n, 2]``, of the same examples.

    Returns:
        None where a single example, or zero rates, allow no interval.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        return None
    weights = draw_weights(len(ours))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [(sums := weights @ each)[:, 0] / sums[:, 1] for each in (ours, theirs)]
        ratios = rates[0] / rates[1]
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) == 0:
        return None
    low, high = interval(ratios)
    return (low, high) if math.isfinite(high) else None


def _scores(score: Callable[[Floats], float], sums: Floats, weights: Weights) -> Floats:
    return np.array([score(resampled) for resampled in weights @ sums])
