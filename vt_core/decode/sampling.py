"""Choosing the next token from logits, on the host, the same for every backend.

Noise is a function of (seed, position, full id), so a draw means the same token whichever rows the head
holds, and the same seed gives the same text on every backend. Sampling uses the Gumbel-max trick: adding
Gumbel noise to log-probabilities and taking the largest is a draw from them.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import ModelError, OptionError
from vt_core.types import Ids

Floats = npt.NDArray[np.float32]

# 23 bits plus a half: with 24 bits the largest value would round to 1, whose Gumbel value is infinite.
_NOISE_BITS = 23
_LARGEST = -math.log(-math.log1p(-(2.0 ** -(_NOISE_BITS + 1))))
_SMALLEST = -math.log((_NOISE_BITS + 1) * math.log(2))
#: Difference between the largest and the smallest noise. A logit further than this below the largest one, in
#: units of temperature, cannot win.
NOISE_SPAN = _LARGEST - _SMALLEST + 1e-3

#: Share of the probability that :meth:`Sampler.likely_threshold` leaves out.
_RARE = 1e-3
#: Scores are counted in bins of this width to find the most likely ones. Sorting all of them takes ten times
#: as long.
_BIN = 0.125

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

#: Settings of a sampler: whether a value must be whole, whether it fits, and the sentence that says so.
_BOUNDS: dict[str, tuple[bool, Any, str]] = {
    "temperature": (False, lambda v: v == 0 or 1e-6 <= v <= 1e6, "0, or between 0.000001 and 1000000"),
    "top_k": (True, lambda v: 0 <= v < 2**31, "a whole number, 0 or more"),
    "top_p": (False, lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "min_p": (False, lambda v: 0 <= v <= 1, "between 0 and 1"),
    "seed": (True, lambda v: 0 <= v <= _MASK, "a whole number between 0 and 2^64 - 1"),
    "repetition_penalty": (False, lambda v: 1e-6 <= v <= 1e6, "between 0.000001 and 1000000"),
    "presence_penalty": (False, lambda v: abs(v) <= 1e6, "between -1000000 and 1000000"),
    "frequency_penalty": (False, lambda v: abs(v) <= 1e6, "between -1000000 and 1000000"),
}


@dataclass(frozen=True)
class SamplerSettings:
    """How to choose a token.

    Applied in this order: penalties over the prompt and the text so far, logit bias, temperature, top-k,
    top-p, min-p, noise. Python's and numpy's numbers are accepted.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    temperature: float = 0.0  #: 0 is greedy
    top_k: int = 0  #: keep this many of the largest logits; 0 keeps all
    top_p: float = 1.0  #: keep the most likely tokens up to this probability; 1 keeps all
    min_p: float = 0.0  #: drop tokens less likely than this share of the most likely one; 0 keeps all
    seed: int = 0
    #: Divides positive logits of tokens seen so far, multiplies negative ones.
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  #: subtracted from the logits of tokens seen so far
    frequency_penalty: float = 0.0  #: subtracted once for each time that a token was seen
    #: Added to the logits of these full ids.
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, (whole, fits, bounds) in _BOUNDS.items():
            value = getattr(self, name)
            if not _is_number(value, whole) or not fits(value):
                raise OptionError(f"{name} is {_shown(value)}, but it must be {bounds}")
            object.__setattr__(self, name, int(value) if whole else float(value))
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError(
                f"logit_bias is {_shown(self.logit_bias)}, but it must map token ids to numbers"
            )
        for token, value in self.logit_bias.items():
            if not _is_number(token, True):
                raise OptionError(f"logit_bias names token {_shown(token)}, but tokens are whole numbers")
            if not _is_number(value, False) or not abs(value) <= 1e6:
                raise OptionError(
                    f"logit_bias of token {_shown(token)} is {_shown(value)}, but it must be between "
                    "-1000000 and 1000000"
                )
        bias = {int(token): float(value) for token, value in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", MappingProxyType(bias))

    @property
    def plain_greedy(self) -> bool:
        """Whether the choice is the largest logit of the model, which a device can find by itself."""
        return self.temperature == 0 and not self.adjusts

    @property
    def adjusts(self) -> bool:
        """Whether penalties or a bias change logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias)


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Sampler:
    """Chooses the tokens of one request; :meth:`extend` adds to the context that penalties look at."""

    def __init__(self, settings: SamplerSettings, rows: int) -> None:
        """
        Args:
            settings: how to choose.
            rows: number of rows to choose from; full ids are below it.

        Raises:
            OptionError: ``logit_bias`` names an id without a row.
        """
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
        """Whether a choice among all rows depends on the normalizer over all of them."""
        settings = self.settings
        return settings.temperature > 0 and settings.top_p < 1 and settings.top_k == 0

    def extend(self, ids: Ids) -> None:
        """Add full ids to the context."""
        if len(self._counts):
            np.add.at(self._counts, ids, 1)

    def choose(self, logits: Floats, ids: Ids, position: int) -> int:
        """Choose from the logits of some rows.

        Args:
            logits: float32 ``[n]``.
            ids: full ids of the rows, int64 ``[n]``.
            position: index of the token within the request, from 0.

        Returns:
            A full id.
        """
        return self.pick(self.adjust(logits, ids), ids, position)

    def adjust(self, logits: Floats, ids: Ids, pending: Sequence[int] = ()) -> Floats:
        """``logits`` after penalties and bias. ``pending`` ids count as context, but are not added to it."""
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

    def magnitude(self, logits: Floats) -> float:
        """Largest absolute value among the ``logits`` that decide, before they are adjusted."""
        return float(np.abs(logits).max() if self.settings.adjusts else abs(logits.max()))

    def touched(self, pending: Sequence[int] = ()) -> Ids:
        """Sorted full ids whose logits :meth:`adjust` may change."""
        context = np.flatnonzero(self._counts)
        return np.unique(np.concatenate([context, self.biased, np.array(pending, dtype=np.int64)]))

    def threshold(self, logits: Floats, margin: float) -> float:
        """A logit below which no row can be chosen, nor matter for the choice.

        Args:
            logits: adjusted logits of some rows.
            margin: how far the result must stay below what these logits say, because of rounding.
        """
        settings = self.settings
        top = float(logits.max())
        threshold = top - settings.temperature * NOISE_SPAN
        if settings.min_p > 0 and not self.needs_mass:  # top-p comes first, and weighs what min-p drops
            threshold = max(threshold, top + settings.temperature * math.log(settings.min_p))
        if settings.top_k > 0 and settings.top_p < 1:
            # Top-p looks at all of the top k.
            if settings.top_k > len(logits):
                return -math.inf
            threshold = min(threshold, float(np.partition(logits, -settings.top_k)[-settings.top_k]))
        return threshold - margin

    def likely_threshold(self, logits: Floats, margin: float) -> float:
        """A higher threshold, below which a row is unlikely to be chosen; :meth:`suffices` tells whether that
        held. Arguments as for :meth:`threshold`.
        """
        threshold = self.threshold(logits, margin)
        if not self.needs_mass:
            return threshold
        temperature = self.settings.temperature
        floor = float(logits.max()) + _floor(scale(logits, temperature), 1 - _RARE, None) * temperature
        return max(threshold, floor - margin)

    def suffices(self, logits: Floats, total: tuple[float, float]) -> bool:
        """Whether adjusted ``logits``, all those above some threshold, hold everything that top-p keeps of
        all rows. ``total`` as for :meth:`pick`.
        """
        mass = np.exp((logits.astype(np.float64) - total[0]) / self.settings.temperature).sum()
        return bool(mass >= self.settings.top_p * total[1] * (1 + 1e-5))

    def pick(self, logits: Floats, ids: Ids, position: int, total: tuple[float, float] | None = None) -> int:
        """Choose from adjusted logits; ties go to the lowest full id.

        Args:
            logits: of all rows, or with ``total`` of those at or above :meth:`threshold`.
            ids: full ids of the logits.
            position: index of the token within the request.
            total: a logit, and the sum of ``exp((logit - it) / temperature)`` over all rows.

        Returns:
            A full id.

        Raises:
            ModelError: the largest logit is not a finite number.
        """
        settings = self.settings
        top = check_finite(logits.max())
        if settings.temperature == 0:
            return int(ids[logits == top].min())
        mass = None if total is None else total_mass(logits, settings, total)
        kept, scores = _candidates(scale(logits, settings.temperature), ids, settings, mass)
        noisy = scores.astype(np.float64) + gumbel(settings.seed, position, kept)
        return int(kept[noisy == noisy.max()].min())


def check_finite(largest: Any) -> Any:
    """``largest``, the largest logit of a position or of several.

    Raises:
        ModelError: one is not a finite number.
    """
    if not np.isfinite(largest).all():
        raise ModelError(
            "the model gives logits that are not finite numbers; use --dtype float32, and check the model's "
            "files with inspect --verify"
        )
    return largest


def scale(logits: Floats, temperature: float) -> Floats:
    """``(logits - max) / temperature``, which no temperature makes overflow or lose digits."""
    gaps: Floats = (logits - logits.max()) / np.float32(temperature)
    return gaps


def total_mass(logits: Floats, settings: SamplerSettings, total: tuple[float, float]) -> float:
    """The sum of ``total`` (see :meth:`Sampler.pick`) in units of the largest logit's weight."""
    gap = (total[0] - float(logits.max())) / settings.temperature
    # Above 0 only by rounding, which a low temperature magnifies beyond any float.
    return total[1] * math.exp(min(gap, 600.0))


def _candidates(
    scores: Floats, ids: Ids, settings: SamplerSettings, mass: float | None
) -> tuple[Ids, Floats]:
    """Ids and scores that top-k, top-p and min-p keep and that noise can still make the winner.

    ``mass`` is the weight of all rows in units of the largest one, or None where ``scores`` are all rows.
    """
    if 0 < settings.top_k < len(scores):
        threshold = np.partition(scores, -settings.top_k)[-settings.top_k]
        pool = np.flatnonzero(scores >= threshold)
        pool = pool[np.lexsort((ids[pool], -scores[pool]))][: settings.top_k]
        mass = float(np.exp(scores[pool]).sum(dtype=np.float64))
    else:
        floor = -NOISE_SPAN
        if settings.top_p < 1:
            if mass is None:
                mass = float(np.exp(scores).sum(dtype=np.float64))
            floor = max(floor, _floor(scores, settings.top_p, mass))
        pool = np.flatnonzero(scores >= np.float32(floor))
        if settings.top_p < 1:
            pool = pool[np.lexsort((ids[pool], -scores[pool]))]
    scores = scores[pool]
    if mass is not None and settings.top_p < 1:
        weights = np.exp(scores).astype(np.float64)
        keep = np.cumsum(weights) - weights < settings.top_p * mass
        pool, scores = pool[keep], scores[keep]
    if settings.min_p > 0:
        keep = scores >= np.float32(math.log(settings.min_p))
        pool, scores = pool[keep], scores[keep]
    return ids[pool], scores


def _floor(scores: Floats, share: float, mass: float | None) -> float:
    """A score at and above which ``scores`` hold at least this share of a mass, in units of the largest one's
    weight (None: of their own mass); minus infinity where all of them do not.
    """
    near = scores > -NOISE_SPAN
    weights = np.bincount((-scores[near] / np.float32(_BIN)).astype(np.int64), np.exp(scores[near]))
    held = np.cumsum(weights)
    needed = share * (held[-1] if mass is None else mass)
    if held[-1] < needed:
        return -math.inf
    # One bin more than enough, because of rounding.
    return -(int(np.searchsorted(held, needed)) + 2) * _BIN


def gumbel(seed: int, position: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of full ids, float64 ``[n]``. It is counter-based, so it does not depend on what
    else is drawn.
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
