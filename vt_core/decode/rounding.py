"""Near ties: how far two products of the same numbers may differ, and which rows a choice then depends on.

Verification multiplies tiles of the full head with a block of positions. ``--head full`` multiplies the whole
head with one position. Both add up the same terms, but not always in the same order or the same float type,
so a logit may differ in its last place. A choice that such a difference could change is a near tie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vt_core.decode.sampling import NOISE_SPAN, SamplerSettings, gumbel, scale, total_mass
from vt_core.types import Ids

Floats = npt.NDArray[np.float32]

#: Relative spacing of numbers, which is how far two roundings of nearly equal sums lie apart. In float32 the
#: order of the sum matters more: numpy and MLX differ by up to 1.6e-6 of the largest logit at 896 columns,
#: and the difference grows with the number of columns.
_SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-16}
#: Smaller logits are differences of larger terms, whose rounding they inherit.
_SMALL = 0.25
#: A near tie may concern a row just beyond the next power of two, where numbers are twice as far apart.
_BEYOND = 1 + 2.0**-5
#: A repetition penalty multiplies errors too. Stronger ones than this are not followed.
_STRONGEST = 4.0
#: Most rows that are multiplied again for one position.
_MOST = 512


@dataclass(frozen=True)
class Rounding:
    """How precise the logits of a tile are."""

    dtype: str  #: the run's float type
    units: int = 1  #: units in the last place by which a logit may differ from the whole head's
    offset: float = 0.0  #: largest absolute bias of the head, which is added to rounded products

    def error(self, magnitude: Floats) -> Floats:
        """How far logits of at most this absolute value may be from those of the whole head's product."""
        _, exponent = np.frexp(np.maximum(np.abs(magnitude) + self.offset, _SMALL) * _BEYOND)
        return np.ldexp(np.float32(self.units * _SPACING[self.dtype]), exponent - 1).astype(np.float32)

    def adjusted_error(self, settings: SamplerSettings, magnitude: Floats, adjusted: Floats) -> Floats:
        """The same after penalties and biases: ``magnitude`` is that of the logits, ``adjusted`` that of
        the adjusted ones.
        """
        penalty = settings.repetition_penalty
        error = self.error(magnitude) * min(max(penalty, 1 / penalty), _STRONGEST)
        # Adding a large bias rounds to float32 again.
        return (error + np.abs(adjusted) * 2.0**-22).astype(np.float32)


def decide(
    logits: Floats,
    ids: Ids,
    position: int,
    settings: SamplerSettings,
    error: float,
    total: tuple[float, float] | None = None,
) -> tuple[int, Ids]:
    """The choice among adjusted logits that may each be off by ``error``.

    Args:
        logits: as for :meth:`vt_core.decode.sampling.Sampler.pick`, and so are ``position`` and ``total``.
        ids: full ids of the logits.
        settings: how to choose.
        error: absolute.

    Returns:
        The index of the choice, and an empty array where no error can change it. Otherwise the indices of
        the rows that decide once their logits are known.
    """
    if settings.temperature == 0:
        near = np.flatnonzero(logits >= logits.max() - 2 * error)
        return int(near[0]), near[np.argsort(-logits[near], kind="stable")][:_MOST] if len(
            near
        ) > 1 else near[:0]
    scores = scale(logits, settings.temperature)
    mass = None if total is None else total_mass(logits, settings, total)
    # How far the difference of two scores may be off.
    gap = 2 * error / settings.temperature
    pool, sure = _kept(scores, settings, gap, mass)
    noisy = scores[pool] + gumbel(settings.seed, position, ids[pool])
    best = noisy[sure].max(initial=-np.inf)
    rivals = np.flatnonzero(noisy >= best - gap)
    rivals = rivals[np.argsort(-noisy[rivals], kind="stable")]
    if len(rivals) == 1 and sure[rivals[0]]:
        return int(pool[rivals[0]]), pool[:0]
    decisive = pool[rivals[:_MOST]]
    unsure = scores[decisive[~sure[rivals[:_MOST]]]]
    if len(unsure):
        # Whether a row is kept depends on the heaviest rows and on those that may change places with it.
        heavy = np.argsort(-scores)[: _MOST // 4]
        beside = np.flatnonzero((scores >= unsure.min() - gap) & (scores <= unsure.max() + gap))
        decisive = np.unique(np.concatenate([decisive, heavy, beside[: _MOST // 4]]))
    return int(pool[rivals[0]]), decisive


def _kept(
    scores: Floats, settings: SamplerSettings, gap: float, mass: float | None
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Indices of the rows that top-k, top-p and min-p may keep, and whether each is kept for sure."""
    pool = np.flatnonzero(scores >= -NOISE_SPAN - gap)
    sure = np.ones(len(pool), dtype=bool)
    count = settings.top_k
    if 0 < count < len(scores):
        after, last = np.partition(scores, [-count - 1, -count])[[-count - 1, -count]]
        mass = float(np.exp(scores[scores > last]).sum(dtype=np.float64))
        mass += math.exp(last) * (count - int((scores > last).sum()))
        pool = np.flatnonzero(scores >= last - gap)
        sure = scores[pool] > after + gap
    if settings.top_p < 1:
        if mass is None:
            mass = float(np.exp(scores).sum(dtype=np.float64))
        least, most = _weight_before(scores[pool], gap)
        possible = least < settings.top_p * mass
        pool, sure = pool[possible], (sure & (most < settings.top_p * mass))[possible]
    if settings.min_p > 0:
        cut = math.log(settings.min_p)
        possible = scores[pool] >= cut - gap
        pool, sure = pool[possible], (sure & (scores[pool] >= cut + gap))[possible]
    return pool, sure


def _weight_before(scores: Floats, gap: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The least and the most weight that may come before each row in the order of top-p."""
    ascending = np.sort(scores)
    weights = np.exp(ascending, dtype=np.float64)
    above = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
    # Errors of many rows are independent of each other.
    slack = math.expm1(min(gap, 600.0)) * math.sqrt(float((weights * weights).sum()))
    least = above[np.searchsorted(ascending, scores + np.float32(gap), side="right")]
    most = above[np.searchsorted(ascending, scores - np.float32(gap), side="left")] - np.exp(scores)
    return least - slack, most + slack
