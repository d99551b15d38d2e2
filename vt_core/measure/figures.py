"""Figures of a benchmark, computed from its results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.files.dtypes import item_size
from vt_core.measure.bootstrap import Floats, ratio_interval
from vt_core.measure.variants import FULL, STOCK, undrafted


@dataclass(frozen=True)
class Latency:
    """Mean and percentiles (linearly interpolated), in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float] | Floats) -> Latency | None:
        """Latency of some requests; None without any."""
        if len(seconds) == 0:
            return None
        values = np.asarray(seconds, dtype=np.float64)
        return cls(float(values.mean()), *(float(value) for value in np.percentile(values, (50, 90, 99))))


@dataclass(frozen=True)
class DraftLength:
    """Reads whose drafts have one length."""

    length: int
    #: Number of reads, by the number of their drafted tokens that were right.
    accepted: Sequence[int]
    seconds: float

    @property
    def reads(self) -> int:
        """Number of reads."""
        return sum(self.accepted)

    @property
    def tokens(self) -> int:
        """Tokens that these reads gave."""
        return sum(count * (1 + right) for right, count in enumerate(self.accepted))

    @property
    def tokens_per_s(self) -> float:
        """Tokens divided by the seconds of the reads, verification not included."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Row:
    """The figures of one variant."""

    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.data["variant"])

    @property
    def n(self) -> int:
        """Number of prompts."""
        return int(self.data["n"])

    @cached_property
    def ttft(self) -> Latency | None:
        """Time to the first token, including construction of the head."""
        return Latency.of(self.data["ttft_s"])

    @cached_property
    def tpot(self) -> Latency | None:
        """Time per token after the first, of the requests with more than one token."""
        after = self._after_first
        return Latency.of(self._decode[after > 0] / after[after > 0])

    @cached_property
    def e2e(self) -> Latency | None:
        """Time of a whole request."""
        return Latency.of(self.data["e2e_s"])

    @property
    def prefill_s(self) -> float:
        """Seconds to the first token, summed over the requests."""
        return sum(self.data["ttft_s"])

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last, summed over the requests."""
        return float(self._decode.sum())

    @property
    def tokens(self) -> int:
        """Generated tokens of all requests."""
        return sum(self.data["generated_tokens"])

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first divided by the time after the first, over all requests."""
        return float(self._after_first.sum() / self.decode_s) if self.decode_s else None

    @property
    def characters_per_s(self) -> float | None:
        """Characters of all texts divided by the time of the requests: what compares models whose tokens
        differ. None for results of older versions.
        """
        characters = self.data.get("characters")
        return None if characters is None else float(sum(characters) / sum(self.data["e2e_s"]))

    @property
    def requests_per_s(self) -> float:
        """Requests per second, one at a time."""
        return float(self.n / sum(self.data["e2e_s"]))

    @property
    def ttft_terms(self) -> Floats:
        """Numerator and denominator of the mean TTFT, for each request, ``[n, 2]``."""
        return self._mean_terms(self.data["ttft_s"])

    @property
    def e2e_terms(self) -> Floats:
        """Numerator and denominator of the mean request time, ``[n, 2]``."""
        return self._mean_terms(self.data["e2e_s"])

    @property
    def tpot_terms(self) -> Floats:
        """Numerator and denominator of the mean TPOT, ``[n, 2]``; zeros for requests of one token."""
        after = self._after_first
        return np.stack([self._decode / np.maximum(after, 1) * (after > 0), after > 0], axis=1)

    @property
    def speed_terms(self) -> Floats:
        """Numerator and denominator of tokens/s, ``[n, 2]``."""
        return np.stack([self._after_first, self._decode], axis=1)

    @property
    def peak_bytes(self) -> int:
        """Peak resident bytes of the process, loading included."""
        return int(self.data["memory"]["peak_bytes"])

    @property
    def anonymous_bytes(self) -> int | None:
        """Peak of anonymous memory."""
        return self._memory("anonymous_bytes")

    @property
    def above_idle_bytes(self) -> int:
        """Peak resident bytes minus those of the process after importing the frameworks."""
        return self.peak_bytes - int(self.data["memory"]["idle_bytes"])

    @property
    def allocator_bytes(self) -> int | None:
        """Peak of the device's allocator, where there is one."""
        return self._memory("allocator_bytes")

    @property
    def limit_bytes(self) -> int | None:
        """Smallest memory in which the variant kept its speed, where it was searched."""
        return None if self.data["limit"] is None else int(self.data["limit"]["limit_bytes"])

    @property
    def limit_prompts(self) -> int:
        """Number of prompts of each run of that search."""
        return 0 if self.data["limit"] is None else int(self.data["limit"]["prompts"])

    @property
    def resident_bytes(self) -> int:
        """Bytes of vocabulary rows on the device."""
        return int(self.data["vocabulary"]["resident_bytes"])

    @property
    def host_bytes(self) -> int:
        """Bytes of tables in host memory."""
        return int(self.data["vocabulary"]["host_bytes"])

    @property
    def static_rows(self) -> int:
        """Static rows of the head."""
        return int(self.data["vocabulary"]["static_rows"])

    @property
    def dynamic_rows(self) -> float:
        """Rows of prompts and rescues, mean over the requests."""
        dynamic, learned = self.data.get("dynamic_rows", [0]), self.data.get("learned_rows", [0])
        return (sum(dynamic) + sum(learned)) / len(dynamic)

    @property
    def same_texts(self) -> int | None:
        """Number of requests with exactly the ids of the full head."""
        same = self.data["same_tokens"]
        return None if same is None else sum(common == -1 for common in same)

    @property
    def verified(self) -> bool:
        """Whether a reduced head was checked with the full head."""
        return bool(self.data["exact"]) and self.data["head"] != FULL

    @property
    def misses(self) -> int:
        """Tokens that the full head replaced."""
        return sum(self.data.get("rescued", []))

    @property
    def wasted_steps(self) -> int:
        """Steps that were rolled back because they followed a replaced token."""
        return sum(self.data.get("rolled_back", []))

    @property
    def verifications(self) -> int:
        """Number of scans of the full head."""
        return sum(self.data.get("verifications", []))

    @property
    def verify_share(self) -> float:
        """Share of the requests' time spent on verification."""
        return sum(self.data.get("verify_s", [])) / sum(self.data["e2e_s"])

    @property
    def miss_rate(self) -> float:
        """Misses per token."""
        return self.misses / self.tokens

    @property
    def reads(self) -> int:
        """Reads of the model after the prompts."""
        return sum(self.data.get("reads", []))

    @property
    def tokens_per_read(self) -> float | None:
        """Tokens after the first, per read."""
        return float(self._after_first.sum()) / self.reads if self.reads else None

    @property
    def drafted(self) -> int:
        """Drafted tokens that were read."""
        return sum(self.data.get("drafted", []))

    @property
    def accepted(self) -> int:
        """Drafted tokens that were right."""
        return sum(self.data.get("accepted", []))

    @property
    def draft_s(self) -> float:
        """Seconds spent on drafting."""
        return sum(self.data.get("draft_s", []))

    @cached_property
    def draft_lengths(self) -> list[DraftLength]:
        """Reads by length of their drafts, without drafts included."""
        return [DraftLength(*each) for each in self.data.get("draft_lengths", [])]

    def acceptance(self, position: int) -> float | None:
        """Share of the drafted tokens at a position, from 1, that were right, where all before them were."""
        reached = accepted = 0
        for each in self.draft_lengths:
            if each.length >= position:
                reached += sum(each.accepted[position - 1 :])
                accepted += sum(each.accepted[position:])
        return accepted / reached if reached else None

    @property
    def _after_first(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.data["generated_tokens"]) - 1

    @property
    def _decode(self) -> Floats:
        return np.asarray(self.data["decode_s"], dtype=np.float64)

    def _mean_terms(self, values: Sequence[float]) -> Floats:
        return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)

    def _memory(self, name: str) -> int | None:
        size = self.data["memory"][name]
        return None if size is None else int(size)


class Figures:
    """The rows of some results and their ratios to one of them, the base."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.rows = [Row(row) for row in results["rows"]]
        self.minimum = int(results["settings"]["minimum"])
        self.random_weights = results["model"]["weights"] != "real"

    @cached_property
    def base(self) -> Row:
        """The row that ratios refer to: the stock framework, else the full head, else the first."""
        by_name = {row.name: row for row in self.rows}
        return by_name.get(STOCK) or by_name.get(FULL) or self.rows[0]

    @property
    def drafting(self) -> list[Row]:
        """The rows of variants that draft."""
        return [row for row in self.rows if undrafted(row.name)]

    def row(self, name: str) -> Row | None:
        """The row of a variant, if it was measured."""
        return next((row for row in self.rows if row.name == name), None)

    def suffices(self, row: Row) -> bool:
        """Whether a row and the base have at least the minimum number of prompts."""
        return min(row.n, self.base.n) >= self.minimum

    def ratio(self, row: Row, figure: Callable[[Row], float | None]) -> float | None:
        """Ratio of a row's figure to the base's; None where either is missing."""
        own, base = figure(row), figure(self.base)
        return own / base if own is not None and base else None

    def interval(self, row: Row, terms: Callable[[Row], Floats]) -> tuple[float, float] | None:
        """Interval of a ratio of rates, such as :attr:`Row.speed_terms`, with prompts resampled in pairs."""
        return ratio_interval(terms(row), terms(self.base))

    def peak(self, row: Row) -> int:
        """Peak bytes of the device's allocator, where there is one, else of the process."""
        return row.peak_bytes if row.allocator_bytes is None else row.allocator_bytes

    def memory_parts(self, row: Row) -> dict[str, int]:
        """Components of the peak in bytes: those of known size, and the rest (caches, activations, tiles).

        Weights that are mapped from a file and partly untouched can make the known ones exceed the peak.
        """
        model = self.results["model"]
        parts = {"vocabulary": row.resident_bytes}
        quantized = model["quantized"] or self.results["settings"].get("quantize")
        if not quantized:  # packed weights may be held packed or unpacked, so their size is unknown
            widened = item_size(row.data["dtype"]) / item_size(model["stored_dtype"])
            parts = {"weights": int(model["body_bytes"] * widened), **parts}
        if row.allocator_bytes is None:
            parts = {"frameworks": int(row.data["memory"]["idle_bytes"]), **parts}
            if row.host_bytes:
                parts["tables in host memory"] = row.host_bytes
        return parts | {"rest": max(0, self.peak(row) - sum(parts.values()))}
