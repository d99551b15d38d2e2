"""Numbers of a benchmark, computed from its results and from nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import DataError
from vt_core.files.dtypes import item_size
from vt_core.measure.bench import SCHEMA
from vt_core.measure.bench.variants import FULL, STOCK

_RESAMPLES = 2000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Latency:
    """Seconds: mean, median, and what 90 and 99 of 100 requests stay under (interpolated linearly)."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float] | Floats) -> Latency | None:
        if len(seconds) == 0:
            return None
        values = np.asarray(seconds, dtype=np.float64)
        return cls(float(values.mean()), *(float(value) for value in np.percentile(values, (50, 90, 99))))


@dataclass(frozen=True)
class Row:
    """One variant."""

    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.data["variant"])

    @property
    def n(self) -> int:
        """Prompts."""
        return int(self.data["n"])

    @cached_property
    def ttft(self) -> Latency | None:
        """Time to the first token, the building of the head included."""
        return Latency.of(self.data["ttft_s"])

    @cached_property
    def tpot(self) -> Latency | None:
        """Time per token after the first, of the requests that have more than one."""
        after = self._after_first
        return Latency.of(self._decode[after > 0] / after[after > 0])

    @cached_property
    def e2e(self) -> Latency | None:
        """Time of a whole request."""
        return Latency.of(self.data["e2e_s"])

    @property
    def prefill_s(self) -> float:
        """Seconds to the first tokens of all requests."""
        return sum(self.data["ttft_s"])

    @property
    def decode_s(self) -> float:
        """Seconds from the first tokens to the last ones."""
        return float(self._decode.sum())

    @property
    def tokens(self) -> int:
        """Generated tokens of all requests."""
        return sum(self.data["generated_tokens"])

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time after the first, of all requests together."""
        return float(self._after_first.sum() / self.decode_s) if self.decode_s else None

    @property
    def requests_per_s(self) -> float:
        """One at a time."""
        return float(self.n / sum(self.data["e2e_s"]))

    @property
    def peak_bytes(self) -> int:
        """Most resident bytes of the process, loading included."""
        return int(self.data["memory"]["peak_bytes"])

    @property
    def anonymous_bytes(self) -> int | None:
        return self._memory("anonymous_bytes")

    @property
    def above_idle_bytes(self) -> int:
        """Most resident bytes above those of the process with the frameworks imported."""
        return self.peak_bytes - int(self.data["memory"]["idle_bytes"])

    @property
    def allocator_bytes(self) -> int | None:
        """Peak of the device's allocator, where there is one."""
        return self._memory("allocator_bytes")

    @property
    def limit_bytes(self) -> int | None:
        """The smallest memory in which the variant kept its speed, where it was searched for."""
        return None if self.data["limit"] is None else int(self.data["limit"]["limit_bytes"])

    @property
    def limit_prompts(self) -> int:
        """Prompts of each try of that search."""
        return 0 if self.data["limit"] is None else int(self.data["limit"]["prompts"])

    @property
    def resident_bytes(self) -> int:
        """Bytes of the vocabulary's rows on the device."""
        return int(self.data["vocabulary"]["resident_bytes"])

    @property
    def host_bytes(self) -> int:
        """Bytes of tables in host memory."""
        return int(self.data["vocabulary"]["host_bytes"])

    @property
    def static_rows(self) -> int:
        return int(self.data["vocabulary"]["static_rows"])

    @property
    def dynamic_rows(self) -> float:
        """Rows of the prompt and of rescues, mean over the requests."""
        dynamic, learned = self.data.get("dynamic_rows", [0]), self.data.get("learned_rows", [0])
        return (sum(dynamic) + sum(learned)) / len(dynamic)

    @property
    def same_texts(self) -> int | None:
        """Requests with exactly the full head's ids."""
        same = self.data["same_tokens"]
        return None if same is None else sum(common == -1 for common in same)

    @property
    def verified(self) -> bool:
        """Whether tokens were checked with the full head."""
        return bool(self.data["exact"]) and self.name != FULL

    @property
    def misses(self) -> int:
        """Tokens that the full head put in place of others."""
        return sum(self.data.get("rescued", []))

    @property
    def wasted_steps(self) -> int:
        """Steps that were run behind such a token."""
        return sum(self.data.get("rolled_back", []))

    @property
    def verifications(self) -> int:
        return sum(self.data.get("verifications", []))

    @property
    def verify_share(self) -> float:
        """Share of the requests' time that verification took."""
        return sum(self.data.get("verify_s", [])) / sum(self.data["e2e_s"])

    @property
    def miss_rate(self) -> float:
        """Misses a token."""
        return self.misses / self.tokens

    @property
    def _after_first(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.data["generated_tokens"]) - 1

    @property
    def _decode(self) -> Floats:
        return np.asarray(self.data["decode_s"], dtype=np.float64)

    def _memory(self, name: str) -> int | None:
        size = self.data["memory"][name]
        return None if size is None else int(size)


class Figures:
    """The rows of some results, and their ratios to one of them."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        """Raises DataError for results of another schema."""
        if results.get("schema") != SCHEMA:
            raise DataError(
                f"the results have the schema {results.get('schema')!r}, and this vt reads {SCHEMA}; "
                "measure again"
            )
        self.results = results
        self.rows = [Row(row) for row in results["rows"]]
        self.minimum = int(results["settings"]["minimum"])
        self.random_weights = results["model"]["weights"] != "real"

    @cached_property
    def base(self) -> Row:
        """What ratios are to: the stock framework, else the full head, else the first variant."""
        by_name = {row.name: row for row in self.rows}
        return by_name.get(STOCK) or by_name.get(FULL) or self.rows[0]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def suffices(self, row: Row) -> bool:
        """Whether a row, and what it is compared with, have the prompts that a claim needs."""
        return min(row.n, self.base.n) >= self.minimum

    def ratio(self, row: Row, figure: Callable[[Row], float | None]) -> float | None:
        """A figure of a row to the base's; None where either has none."""
        own, base = figure(row), figure(self.base)
        return own / base if own is not None and base else None

    def peak(self, row: Row) -> int:
        """Peak bytes of the device's allocator, where all rows have one, else of the process."""
        return row.peak_bytes if row.allocator_bytes is None else row.allocator_bytes

    def memory_parts(self, row: Row) -> dict[str, int]:
        """What the peak is made of, in bytes: sizes that are known, and the rest (caches, activations, tiles,
        copies).

        Weights that are mapped from a file and not all touched can make the known ones add up to more.
        """
        model = self.results["model"]
        parts = {"vocabulary": row.resident_bytes}
        quantized = model["quantized"] or self.results["settings"].get("quantize")
        if not quantized:  # what is packed may be held as it is or unpacked, and in part either way
            widened = item_size(row.data["dtype"]) / item_size(model["stored_dtype"])
            parts = {"weights": int(model["body_bytes"] * widened), **parts}
        if row.allocator_bytes is None:
            parts = {"frameworks": int(row.data["memory"]["idle_bytes"]), **parts}
            if row.host_bytes:
                parts["tables in host memory"] = row.host_bytes
        return parts | {"rest": max(0, self.peak(row) - sum(parts.values()))}

    def speed_interval(self, row: Row) -> tuple[float, float] | None:
        """Between which values 95 of 100 ratios of tokens/s lie when prompts are drawn again, in pairs."""
        if row.n != self.base.n or row.tokens_per_s is None or self.base.tokens_per_s is None:
            return None
        # RandomState's numbers are the same in every version of numpy.
        drawn = np.random.RandomState(0).randint(0, row.n, size=(_RESAMPLES, row.n))

        def speeds(one: Row) -> Floats:
            seconds = one._decode[drawn].sum(axis=1)
            return one._after_first[drawn].sum(axis=1) / np.maximum(seconds, 1e-9)

        own, base = speeds(row), speeds(self.base)
        ratios = own[base > 0] / base[base > 0]
        if len(ratios) == 0:
            return None
        low, high = np.percentile(ratios, (2.5, 97.5))
        return float(low), float(high)
