"""Products of hidden states with int8 rows of the head, in whole numbers on a CPU.

A hidden state is rounded to whole numbers of 14 bits with one scale per position, and each number is written
as two digits of base 128, from -64 to 64. Digits times int8 rows are summed in whole numbers, so a logit is
the same to the bit on every processor, for one position or many, for some rows or all. No near ties exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

#: Largest number of a hidden state: 64 times the base, so that two digits hold it.
_LARGEST = 8191
_BASE = 128
#: Columns whose products with digits, at most 127 * 64 each, a float32 sum holds without rounding.
_EXACT_COLUMNS = 2048
#: Rows that are widened at once where whole numbers are summed as floats.
_FLOAT_ROWS = 1024
#: Up to this many positions are multiplied by what is fastest for one.
_FEW = 4
_MANY = 16
#: Rows with which exactness is tested, and speed.
_PROBES, _TIMED_ROWS = (1, 17, 256), 1024

#: Sums ``[m, n]`` of ``digits [m, columns]`` times ``rows [n, columns]``, both int8.
Sums = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Digits(NamedTuple):
    """Hidden states as whole numbers."""

    numbers: torch.Tensor  #: ``[2k, columns]`` int8, the digits of the higher place first
    #: the unit of each position, float32 ``[k]``; not a number where a state is not finite
    steps: torch.Tensor


def product(states: Digits, rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Logits ``[k, n]`` float32 of hidden states and quantized rows.

    Args:
        states: of :func:`to_digits`.
        rows: ``[n, columns]`` int8.
        scales: float32 ``[n]``.
    """
    count = len(states.steps)
    sums = _fastest(rows.shape[1], count <= _FEW)(states.numbers, rows).float()
    # Each operation rounds element by element; 128 times a number is exact.
    return sums[count:].add_(sums[:count], alpha=_BASE).mul_(scales).mul_(states.steps[:, None])


def to_digits(hidden: torch.Tensor) -> Digits:
    """Round hidden states ``[k, columns]``, in any float type, to whole numbers."""
    wide = hidden.float()
    largest = wide.abs().amax(dim=1)
    steps = (largest * (1 / _LARGEST)).clamp_min_(torch.finfo(torch.float32).tiny)
    numbers = (wide / steps[:, None]).round_()
    high = (numbers * (1 / _BASE)).round_()
    digits = torch.cat([high, numbers.sub_(high, alpha=_BASE)]).to(torch.int8)
    return Digits(digits, torch.where(largest.isfinite(), steps, torch.nan))


def choose_sums(columns: int) -> None:
    """Find out how rows of so many columns are multiplied best, which takes some hundredths of a second."""
    for few in (True, False):
        _fastest(columns, few)


def _states_first(digits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(digits, rows.T)


def _rows_first(digits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(rows, digits.T.contiguous()).T


def _as_floats(digits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(len(digits), len(rows), dtype=torch.float64)  # of more columns than float32 can hold
    for start in range(0, rows.shape[1], _EXACT_COLUMNS):
        columns = slice(start, start + _EXACT_COLUMNS)
        wide = digits[:, columns].float()
        for first in range(0, len(rows), _FLOAT_ROWS):
            some = slice(first, first + _FLOAT_ROWS)
            sums[:, some] += wide @ rows[some, columns].float().T
    return sums


@lru_cache
def _fastest(columns: int, few: bool) -> Sums:
    """The fastest way to multiply rows of so many columns that is exact on this processor.

    Without VNNI instructions oneDNN adds pairs of products in 16 bits. With digits of at most 64 these do not
    overflow, but only if the rows come first.
    """
    rows, digits = probe(_TIMED_ROWS, columns, 2 if few else 2 * _MANY)
    exact = [sums for sums in (_states_first, _rows_first) if is_exact(sums, columns)]
    return min((_as_floats, *exact), key=lambda sums: _seconds(sums, digits, rows))


def is_exact(sums: Sums, columns: int) -> bool:
    """Whether sums of the largest numbers are right, for few rows and many, one position and several."""
    for count in _PROBES:
        for positions in (1, 3, _MANY):
            rows, digits = probe(count, columns, 2 * positions)
            try:
                if not torch.equal(sums(digits, rows).double(), _as_floats(digits, rows)):
                    return False
            except RuntimeError:  # not on this platform
                return False
    return True


def probe(count: int, columns: int, digits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and digits, most of them as large as possible."""
    made = torch.Generator().manual_seed(columns)
    signs = torch.randint(0, 4, (count + digits, columns), generator=made, dtype=torch.int8).clamp_(max=1)
    signs[::2] = 1
    return signs[:count] * 127, signs[count:] * 64


def _seconds(sums: Sums, digits: torch.Tensor, rows: torch.Tensor) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        sums(digits, rows)
        times.append(time.perf_counter() - start)
    return min(times)
