"""Choosing the next token from logits, on the host, the same for every backend.

Noise is a function of (seed, position, full id), so that one draw means the same token whichever rows the
head holds, and the same seed gives the same text on every backend. Gumbel-max: adding Gumbel noise to
log-probabilities and taking the largest is a draw from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from vt_core.errors import OptionError
from vt_core.vocab.active import Ids

Floats = npt.NDArray[np.float32]

# 23 bits and a half: with 24 bits the largest value would round to 1 in float32, whose Gumbel value is
# infinite.
_NOISE_BITS = 23
_LARGEST = -math.log(-math.log1p(-(2.0 ** -(_NOISE_BITS + 1))))
_SMALLEST = -math.log((_NOISE_BITS + 1) * math.log(2))
#: A logit that lies further than this (in units of temperature) under the largest can't win: noise spans no
#: more.
NOISE_SPAN = _LARGEST - _SMALLEST + 1e-3

#: Mass that :meth:`Sampler.likely_threshold` leaves under it. More than ``1 - top_p`` would have to come from
#: elsewhere before that matters.
_RARE = 1e-3
#: Scores are counted in classes of this width where the most likely ones are looked for: sorting them all
#: takes ten times as long.
_CLASS = 0.125

#: How far the same logit may differ, relatively, between two products: two units in the last place of
#: bfloat16.
_ROUNDING = 2.0**-6

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
        for name, fits, bounds in (
            ("temperature", lambda v: v == 0 or 1e-6 <= v <= 1e6, "0, or between 0.000001 and 1000000"),
            ("top_k", lambda v: 0 <= v < 2**31, "0 or more"),
            ("top_p", lambda v: 0 < v <= 1, "above 0 and at most 1"),
            ("min_p", lambda v: 0 <= v <= 1, "between 0 and 1"),
            ("seed", lambda v: 0 <= v <= _MASK, "between 0 and 2^64 - 1"),
            ("repetition_penalty", lambda v: 1e-6 <= v <= 1e6, "above 0"),
            ("presence_penalty", lambda v: abs(v) <= 1e6, "a number of reasonable size"),
            ("frequency_penalty", lambda v: abs(v) <= 1e6, "a number of reasonable size"),
        ):
            value = getattr(self, name)
            whole = name in ("top_k", "seed")
            if not isinstance(value, int if whole else (int, float)) or not fits(value):
                raise OptionError(f"{name} is {value}, but it must be {bounds}")
        for token, value in self.logit_bias.items():
            if not abs(value) <= 1e6:
                raise OptionError(
                    f"logit_bias of token {token} is {value}, but it must be a number of reasonable size"
                )

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
        """``rows``: how many rows can be chosen from; full ids are below it."""
        self.settings = settings
        self.rows = rows
        self._counts = np.zeros(rows if settings.adjusts else 0, dtype=np.int32)
        bias = settings.logit_bias
        outside = [token for token in bias if not 0 <= token < rows]
        if outside:
            raise OptionError(f"logit_bias names token id {outside[0]}, but the model has {rows} rows")
        self.biased = np.array(sorted(bias), dtype=np.int64)  #: full ids that have a bias
        self._bias = np.array([bias[token] for token in sorted(bias)], dtype=np.float32)

    @property
    def needs_mass(self) -> bool:
        """Whether a choice among all rows must know the normalizer over all of them."""
        settings = self.settings
        return settings.temperature > 0 and settings.top_p < 1 and settings.top_k == 0

    def extend(self, ids: Ids) -> None:
        """Add full ids to the context."""
        if len(self._counts):
            np.add.at(self._counts, ids, 1)

    def choose(self, logits: Floats, ids: Ids, position: int) -> int:
        """Full id chosen from ``logits`` (float32 ``[n]``) of the rows with full ids ``ids`` (int64 ``[n]``).

        ``position`` is the index of the token to be chosen within the request, from 0.
        """
        return self.pick(self.adjust(logits, ids), ids, position)

    def adjust(self, logits: Floats, ids: Ids, pending: Sequence[int] = ()) -> Floats:
        """``logits`` after penalties and bias. ``pending`` ids count as context, though not (yet) added to
        it.
        """
        settings = self.settings
        if not settings.adjusts:
            return logits
        counts = self._counts[ids]
        for token in pending:
            counts += ids == token
        seen = counts > 0
        logits = logits.copy()
        repetition = np.float32(settings.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / repetition, logits[seen] * repetition)
        logits[seen] -= np.float32(settings.presence_penalty)
        logits -= np.float32(settings.frequency_penalty) * counts.astype(np.float32)
        if len(self.biased):
            at = np.searchsorted(self.biased, ids)
            at[at == len(self.biased)] = 0
            biased = self.biased[at] == ids
            logits[biased] += self._bias[at[biased]]
        return logits

    def touched(self, pending: Sequence[int] = ()) -> Ids:
        """Sorted full ids whose logits :meth:`adjust` may change."""
        context = np.flatnonzero(self._counts)
        return np.unique(np.concatenate([context, self.biased, np.array(pending, dtype=np.int64)]))

    def threshold(self, logits: Floats) -> float:
        """A logit under which no row can be chosen, nor matter for the choice, given adjusted ``logits`` of
        some rows.
        """
        settings = self.settings
        top = float(logits.max())
        threshold = top - settings.temperature * NOISE_SPAN
        if settings.min_p > 0:
            threshold = max(threshold, top + settings.temperature * math.log(settings.min_p))
        if settings.top_k > 0 and settings.top_p < 1:
            # Top-p looks at all of the top k.
            if settings.top_k > len(logits):
                return -math.inf
            threshold = min(threshold, float(np.partition(logits, -settings.top_k)[-settings.top_k]))
        return threshold - _margin(top)

    def likely_threshold(self, logits: Floats) -> float:
        """A higher threshold, under which most likely no row can be chosen: :meth:`suffices` tells whether
        that was so.
        """
        threshold = self.threshold(logits)
        if not self.needs_mass:
            return threshold
        temperature = self.settings.temperature
        scaled = logits / np.float32(temperature)
        floor = _floor(scaled, 1 - _RARE, None) * temperature
        return max(threshold, floor - _margin(float(logits.max())))

    def suffices(self, logits: Floats, total: tuple[float, float]) -> bool:
        """Whether adjusted ``logits``, all those above some threshold, hold all that top-p keeps of all rows.
        ``total`` as for :meth:`pick`.
        """
        temperature = self.settings.temperature
        mass = np.exp((logits.astype(np.float64) - total[0]) / temperature).sum()
        return bool(mass >= self.settings.top_p * total[1] * (1 + 1e-5))

    def pick(self, logits: Floats, ids: Ids, position: int, total: tuple[float, float] | None = None) -> int:
        """Full id chosen from adjusted ``logits``.

        Without ``total`` these are all rows. With it they are those at or above :meth:`threshold`, and it is
        a logit and the sum of ``exp((logit - it) / temperature)`` over all rows.
        """
        settings = self.settings
        if settings.temperature == 0:
            return int(ids[logits == logits.max()].min())
        scaled = logits / np.float32(settings.temperature)
        if total is not None:
            total = (total[0] / settings.temperature, total[1])
        kept, scores = _candidates(scaled, ids, settings, total)
        noisy = scores.astype(np.float64) + gumbel(settings.seed, position, kept)
        return int(kept[noisy == noisy.max()].min())


def _candidates(
    scaled: Floats, ids: Ids, settings: SamplerSettings, total: tuple[float, float] | None
) -> tuple[Ids, Floats]:
    """Ids and scores that top-k, top-p and min-p keep and that noise can still make the winner."""
    top = scaled.max()
    if 0 < settings.top_k < len(scaled):
        threshold = np.partition(scaled, -settings.top_k)[-settings.top_k]
        pool = np.flatnonzero(scaled >= threshold)
        pool = pool[np.lexsort((ids[pool], -scaled[pool]))][: settings.top_k]
        mass = np.exp(scaled[pool] - top).sum(dtype=np.float64)
    else:
        mass = None if total is None else total[1] * math.exp(total[0] - float(top))
        floor = top - np.float32(NOISE_SPAN)
        if settings.top_p < 1:
            if mass is None:
                mass = np.exp(scaled - top).sum(dtype=np.float64)
            floor = max(floor, _floor(scaled, settings.top_p, mass))
        pool = np.flatnonzero(scaled >= floor)
        if settings.top_p < 1:
            pool = pool[np.lexsort((ids[pool], -scaled[pool]))]
    scores = scaled[pool]
    if settings.top_p < 1:
        weights = np.exp(scores - top).astype(np.float64)
        keep = np.cumsum(weights) - weights < settings.top_p * mass
        pool, scores = pool[keep], scores[keep]
    if settings.min_p > 0:
        keep = scores >= top + np.float32(math.log(settings.min_p))
        pool, scores = pool[keep], scores[keep]
    return ids[pool], scores


def _floor(scaled: Floats, share: float, mass: float | None) -> float:
    """A score at and above which the scores hold at least this share of a mass, in units of the largest one
    (None: of their own); minus infinity where all of them do not.
    """
    gaps = scaled.max() - scaled
    near = gaps < NOISE_SPAN
    weights = np.bincount((gaps[near] / np.float32(_CLASS)).astype(np.int64), np.exp(-gaps[near]))
    held = np.cumsum(weights)
    needed = share * (held[-1] if mass is None else mass)
    if held[-1] < needed:
        return -math.inf
    # One class more than enough, for what rounding may move.
    return float(scaled.max()) - (int(np.searchsorted(held, needed)) + 2) * _CLASS


def _margin(top: float) -> float:
    return _ROUNDING * max(1.0, abs(top))


def gumbel(seed: int, position: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of full ids, float64 ``[n]``: counter-based, so independent of what else is
    drawn.
    """
    key = _mix_int(_mix_int(seed) + (position + 1) * _GOLDEN)
    bits = _mix(ids.astype(np.uint64) * np.uint64(_GOLDEN) ^ np.uint64(key)) >> np.uint64(64 - _NOISE_BITS)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-_NOISE_BITS
    return -np.log(-np.log(uniform))


# The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
