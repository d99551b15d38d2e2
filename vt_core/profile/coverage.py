"""How much of held-out outputs a static set of any size would cover."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.vocab.active import Ids

SIZES = (0, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536)
"""Sizes in a coverage table."""

MISS_RATES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Miss rates for which a report gives the size."""

Shares = npt.NDArray[np.float64]


class Coverage:
    """Coverage of output tokens by their input, always active ids, and the first ids of a ranking.

    A token that is not in its example's input is covered iff the static set reaches the token's rank. So the
    ranks of such tokens, and the last rank in each example, say everything, whatever the size.
    """

    def __init__(self, ranking: Ids, size: int, always: Ids) -> None:
        """`ranking` are ids below `size`, best first; `always` are active whatever the static set is."""
        self.limit = len(ranking)
        """Largest size that the ranking can fill."""
        self.tokens = 0
        self.copied = 0
        """Tokens that stand in their example's input."""
        self.examples = 0
        self._rank = np.full(size, self.limit + 1, np.int64)
        self._rank[ranking] = np.arange(1, self.limit + 1)
        self._rank[always] = 0
        self._tokens_at = np.zeros(self.limit + 2, np.int64)
        self._examples_at = np.zeros(self.limit + 2, np.int64)

    def add(self, missing: Sequence[Sequence[int]], tokens: int) -> None:
        """Some examples: the output tokens of each that are not in its input; `tokens` counts them all."""
        lengths = np.fromiter(map(len, missing), np.int64, len(missing))
        ranks = self._rank[np.fromiter(chain.from_iterable(missing), np.int64, int(lengths.sum()))]
        last = np.zeros(len(missing), np.int64)
        np.maximum.at(last, np.repeat(np.arange(len(missing)), lengths), ranks)
        self._tokens_at += np.bincount(ranks, minlength=self.limit + 2)
        self._examples_at += np.bincount(last, minlength=self.limit + 2)
        self.tokens += tokens
        self.copied += tokens - len(ranks)
        self.examples += len(missing)

    def token_curve(self) -> Shares:
        """Share of output tokens covered at each size from 0 to `limit`, float64 [limit + 1]."""
        covered = self.copied + np.cumsum(self._tokens_at)[:-1]
        return covered / self.tokens if self.tokens else np.ones(self.limit + 1)

    def example_curve(self) -> Shares:
        """Share of examples covered whole at each size, float64 [limit + 1]."""
        covered = np.cumsum(self._examples_at)[:-1]
        return covered / self.examples if self.examples else np.ones(self.limit + 1)

    def size_at(self, miss_rate: float) -> int | None:
        """The smallest size at which at most this share of output tokens is missing; None where none is."""
        enough = np.flatnonzero(1 - self.token_curve() <= miss_rate + 1e-12)
        return int(enough[0]) if len(enough) else None

    def knee(self) -> int:
        """The size after which rows bring the least: where the curve stands highest above its chord."""
        curve = self.token_curve()
        last = int(np.argmax(curve))
        if last == 0:
            return 0
        rise = (curve[: last + 1] - curve[0]) / (curve[last] - curve[0])
        return int(np.argmax(rise - np.arange(last + 1) / last))

    def report(
        self, extra_sizes: Sequence[int] = (), extra_miss_rates: Sequence[float] = ()
    ) -> dict[str, Any]:
        """Figures for a file: a table over sizes, the knee, and the sizes at some miss rates."""
        tokens, examples = self.token_curve(), self.example_curve()
        knee = self.knee()
        rates = sorted({*MISS_RATES, *extra_miss_rates}, reverse=True)
        sizes = sorted({size for size in (*SIZES, *extra_sizes, knee, self.limit) if size <= self.limit})
        return {
            "curve": [
                {
                    "rows": size,
                    "token_coverage": float(tokens[size]),
                    "example_coverage": float(examples[size]),
                }
                for size in sizes
            ],
            "knee": knee,
            "rows_at_miss_rate": {str(rate): self.size_at(rate) for rate in rates},
        }
