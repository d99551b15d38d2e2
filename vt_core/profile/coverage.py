"""The share of held-out outputs that a static set covers, for every size of the set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.types import Ids

#: Sizes in a coverage table.
SIZES = (0, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536)

#: Miss rates for which a report gives the size.
MISS_RATES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)

Shares = npt.NDArray[np.float64]


class Coverage:
    """Coverage of output tokens by their input, by ids that are always active, and by a ranking of ids.

    The static set of size n is the first n ids of the ranking. A token that is not in the input of its
    example is covered if and only if its rank is at most n. So two histograms give the coverage for every n:
    the ranks of these tokens, and the highest rank in each example.
    """

    def __init__(self, ranking: Ids, size: int, always: Ids) -> None:
        """`ranking`: ids below `size`, best first. `always`: ids that are active with any static set."""
        #: The largest size of the static set.
        self.limit = len(ranking)
        #: Output tokens of all examples.
        self.tokens = 0
        #: Output tokens that also occur in the input of their example.
        self.copied = 0
        self.examples = 0
        self._rank = np.full(size, self.limit + 1, np.int64)
        self._rank[ranking] = np.arange(1, self.limit + 1)
        self._rank[always] = 0
        self._tokens_at = np.zeros(self.limit + 2, np.int64)
        self._examples_at = np.zeros(self.limit + 2, np.int64)

    def add(self, missing: Sequence[Sequence[int]], tokens: int) -> None:
        """Add examples.

        Args:
            missing: the output tokens of each example that are not in its input.
            tokens: the number of all output tokens of these examples.
        """
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
        """The share of output tokens that is covered, at each size up to `limit`, float64 `[limit + 1]`."""
        covered = self.copied + np.cumsum(self._tokens_at)[:-1]
        return covered / self.tokens if self.tokens else np.ones(self.limit + 1)

    def example_curve(self) -> Shares:
        """The share of examples that is covered completely, at each size, float64 `[limit + 1]`."""
        covered = np.cumsum(self._examples_at)[:-1]
        return covered / self.examples if self.examples else np.ones(self.limit + 1)

    def size_at(self, miss_rate: float) -> int | None:
        """The smallest size at which at most this share of output tokens is missing, or None."""
        enough = np.flatnonzero(1 - self.token_curve() <= miss_rate + 1e-12)
        return int(enough[0]) if len(enough) else None

    def knee(self) -> int:
        """The knee of the token curve: the size at which it is highest above its chord."""
        curve = self.token_curve()
        last = int(np.argmax(curve))
        if last == 0:
            return 0
        rise = (curve[: last + 1] - curve[0]) / (curve[last] - curve[0])
        return int(np.argmax(rise - np.arange(last + 1) / last))

    def report(
        self, extra_sizes: Sequence[int] = (), extra_miss_rates: Sequence[float] = ()
    ) -> dict[str, Any]:
        """JSON values: coverage at several sizes, the knee, and the sizes at several miss rates."""
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
