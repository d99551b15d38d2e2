"""Choosing the next token from logits, on the host, the same for every backend.

Noise is a function of (seed, position, full id), so that one draw means the same token whichever rows the
head holds, and the same seed gives the same text on every backend. Gumbel-max: adding Gumbel noise to
log-probabilities and taking the largest is a draw from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from vt_core.errors import OptionError
from vt_core.vocabulary import Ids

Floats = npt.NDArray[np.float32]

# 23 bits and a half: with 24 bits the largest value would round to 1 in float32, whose Gumbel value is
# infinite.
_NOISE_BITS = 23
_LARGEST = -math.log(-math.log1p(-(2.0 ** -(_NOISE_BITS + 1))))
_SMALLEST = -math.log((_NOISE_BITS + 1) * math.log(2))
#: A logit that lies further than this (in units of temperature) under the largest can't win: noise spans no
#: more.
NOISE_SPAN = _LARGEST - _SMALLEST + 1e-3

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class SamplerSettings:
    """How to choose. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off.

    Applied in this order: penalties over prompt and text so far, logit bias, temperature, top-k, top-p,
    min-p, noise.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, value, fits, bounds in (
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("seed", self.seed, 0 <= self.seed <= _MASK, "between 0 and 2^64 - 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"),
        ):
            if not (math.isfinite(value) and fits):
                raise OptionError(f"{name} is {value}, but it must be {bounds}")
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not math.isfinite(value):
                raise OptionError(f"{name}_penalty is {value}, but it must be a finite number")

    @property
    def plain_greedy(self) -> bool:
        """Whether the choice is the plain largest logit, which a device can find by itself."""
        return self.temperature == 0 and not self.adjusts

    @property
    def adjusts(self) -> bool:
        """Whether penalties or a bias change logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias)


class Sampler:
    """Chooses tokens of one request; :meth:`extend` tells it the context that penalties look at."""

    def __init__(self, settings: SamplerSettings, rows: int) -> None:
        """``rows``: V, the rows of the model's table."""
        self.settings = settings
        self._counts = np.zeros(rows if settings.adjusts else 0, dtype=np.int32)
        bias = settings.logit_bias
        outside = [token for token in bias if not 0 <= token < rows]
        if outside:
            raise OptionError(f"logit_bias names token id {outside[0]}, but the model has {rows} rows")
        self._bias_ids = np.array(sorted(bias), dtype=np.int64)
        self._bias = np.array([bias[token] for token in sorted(bias)], dtype=np.float32)

    def extend(self, ids: Ids) -> None:
        """Add full ids to the context."""
        if len(self._counts):
            np.add.at(self._counts, ids, 1)

    def choose(self, logits: Floats, ids: Ids, position: int) -> int:
        """Full id chosen from ``logits`` (float32 ``[n]``) of the rows with full ids ``ids`` (int64 ``[n]``).

        ``position`` is the index of the token to be chosen within the request, from 0.
        """
        settings = self.settings
        if settings.adjusts:
            logits = self._adjust(logits, ids)
        if settings.temperature == 0:
            return int(ids[logits == logits.max()].min())
        scaled = logits / np.float32(settings.temperature)
        kept, scores = _candidates(scaled, ids, settings)
        noisy = scores.astype(np.float64) + gumbel(settings.seed, position, kept)
        return int(kept[noisy == noisy.max()].min())

    def _adjust(self, logits: Floats, ids: Ids) -> Floats:
        settings = self.settings
        counts = self._counts[ids]
        seen = counts > 0
        logits = logits.copy()
        repetition = np.float32(settings.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / repetition, logits[seen] * repetition)
        logits[seen] -= np.float32(settings.presence_penalty)
        logits -= np.float32(settings.frequency_penalty) * counts.astype(np.float32)
        if len(self._bias_ids):
            at = np.searchsorted(self._bias_ids, ids)
            at[at == len(self._bias_ids)] = 0
            biased = self._bias_ids[at] == ids
            logits[biased] += self._bias[at[biased]]
        return logits


def _candidates(scaled: Floats, ids: Ids, settings: SamplerSettings) -> tuple[Ids, Floats]:
    """Ids and scores that top-k, top-p and min-p keep and that noise can still make the winner, best
    first.
    """
    total = None
    if 0 < settings.top_k < len(scaled):
        threshold = np.partition(scaled, len(scaled) - settings.top_k)[len(scaled) - settings.top_k]
        pool = np.flatnonzero(scaled >= threshold)
        pool = pool[np.lexsort((ids[pool], -scaled[pool]))][: settings.top_k]
        top = scaled[pool[0]]
    else:
        top = scaled.max()
        if settings.top_p < 1:
            total = np.exp(scaled - top).sum(dtype=np.float64)
        pool = np.flatnonzero(scaled >= top - np.float32(NOISE_SPAN))
        pool = pool[np.lexsort((ids[pool], -scaled[pool]))]
    scores = scaled[pool]
    if settings.top_p < 1:
        weights = np.exp(scores - top).astype(np.float64)
        before = np.cumsum(weights) - weights
        keep = before < settings.top_p * (weights.sum() if total is None else total)
        pool, scores = pool[keep], scores[keep]
    if settings.min_p > 0:
        keep = scores >= top + np.float32(math.log(settings.min_p))
        pool, scores = pool[keep], scores[keep]
    return ids[pool], scores


def gumbel(seed: int, position: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of full ids, float64 ``[n]``: counter-based, so independent of what else is
    drawn.
    """
    key = _mix_int(_mix_int(seed) + (position + 1) * _GOLDEN)
    bits = _mix(ids.astype(np.uint64) * np.uint64(_GOLDEN) ^ np.uint64(key)) >> np.uint64(64 - _NOISE_BITS)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-_NOISE_BITS
    return -np.log(-np.log(uniform))


# The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
