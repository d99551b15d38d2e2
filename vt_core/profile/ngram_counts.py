"""Occurrences of n-grams in the outputs of a corpus, and the n-gram table that is made of them."""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.files.json_files import MOST, Fields
from vt_core.types import Ids
from vt_core.vocab.ngrams import BEGIN, END, MAX_CONTEXT, SEED, U64, Section, extend_hashes, make_section

#: Most different n-grams that are counted, to bound memory to about 500 MB. Beyond it, the longest contexts
#: are given up.
MAX_NGRAMS = 8_000_000
#: Most entries of a table: 16 MB.
MAX_ENTRIES = 1_000_000
#: Occurrences from which an n-gram joins a table (TASC-spec).
MIN_COUNT = 5

#: How counts files hold an n-gram: hash of the context, token after it, occurrences.
_FIELDS = (("hashes", "<u8"), ("tokens", "<u4"), ("counts", "<i8"))
_FILE_BYTES = 20

#: How record batches hold an n-gram: the length of its context in a byte, and this.
_RECORD = np.dtype([("hash", "<u8"), ("token", "<u4")])
RECORD_BYTES = 1 + _RECORD.itemsize


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Counts of the n-grams of one length, sorted by hash and token; no pair twice."""

    hashes: U64  #: of the context, uint64 ``[n]``
    tokens: npt.NDArray[np.uint32]  #: the token after it, ``[n]``
    counts: Ids  #: occurrences, at least 1, int64 ``[n]``

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """Counts of n-grams by the length of their contexts, from 1 on.

    Merging is associative and commutative, also where :data:`MAX_NGRAMS` gives up the longest contexts:
    counts only grow, so what is given up early would be given up in the end.
    """

    orders: tuple[Occurrences, ...] = ()

    @classmethod
    def empty(cls, longest: int) -> NgramCounts:
        """Counts of no output, of contexts up to `longest` tokens. Merged with others, it changes nothing."""
        return cls(tuple(_count(np.zeros(0, np.uint64), np.zeros(0, np.uint32)) for _ in range(longest)))

    @classmethod
    def of(cls, text: npt.NDArray[np.uint32], longest: int) -> NgramCounts:
        """Counts of outputs, one after the other: `BEGIN`, full ids, and `END` if the output is complete."""
        begins = np.flatnonzero(text == BEGIN)
        place = np.arange(len(text)) - np.repeat(begins, np.diff(begins, append=len(text)))
        hashes = np.full(len(text), SEED, np.uint64)
        orders = []
        for order in range(1, longest + 1):
            hashes[order:] = extend_hashes(hashes[order:], text[:-order])
            inside = place >= order  # the context does not reach beyond BEGIN
            orders.append(_count(hashes[inside], text[inside]))
        return cls(tuple(orders))._bounded()

    @classmethod
    def from_records(cls, records: npt.NDArray[np.uint8], counts: Ids, longest: int) -> NgramCounts:
        """Counts of n-grams in any order, also twice. `records` are those of :meth:`records`."""
        orders, rest = records[:, 0], np.ascontiguousarray(records[:, 1:]).view(_RECORD)[:, 0]
        of_order = [orders == order for order in range(1, longest + 1)]
        parts = (_count(rest["hash"][one], rest["token"][one], counts[one]) for one in of_order)
        return cls(tuple(parts))._bounded()

    def records(self) -> tuple[npt.NDArray[np.uint8], Ids]:
        """Each n-gram as :data:`RECORD_BYTES` bytes, ``[n, RECORD_BYTES]``, and its count."""
        parts, counts = [np.zeros((0, RECORD_BYTES), np.uint8)], [np.zeros(0, np.int64)]
        for order, part in enumerate(self.orders, 1):
            rest = np.empty(len(part), _RECORD)
            rest["hash"], rest["token"] = part.hashes, part.tokens
            first = np.full((len(part), 1), order, np.uint8)
            parts.append(np.hstack([first, rest[:, None].view(np.uint8)]))
            counts.append(part.counts)
        return np.concatenate(parts), np.concatenate(counts)

    @property
    def longest(self) -> int:
        """Tokens of the longest contexts."""
        return len(self.orders)

    def __len__(self) -> int:
        return sum(map(len, self.orders))

    def merge(self, other: NgramCounts) -> NgramCounts:
        """Counts of both, of the contexts that both counted."""
        return NgramCounts(
            tuple(
                _count(*(np.concatenate(pair) for pair in zip(_arrays(a), _arrays(b), strict=True)))
                for a, b in zip(self.orders, other.orders, strict=False)
            )
        )._bounded()

    def times(self, weight: int) -> NgramCounts:
        """Counts of the same outputs, each repeated `weight` times."""
        return NgramCounts(
            tuple(Occurrences(part.hashes, part.tokens, part.counts * weight) for part in self.orders)
        )

    def sections(
        self, rows: int, min_count: int = MIN_COUNT, max_entries: int = MAX_ENTRIES
    ) -> tuple[Section, ...]:
        """Entries of a table: the most frequent token of each context, the lowest id of equal ones.

        Args:
            rows: V. N-grams with ids from there on are left out.
            min_count: the entries' least number of occurrences.
            max_entries: most entries; the rarest ones of the longest contexts are left out first.
        """
        sections: list[Section] = []
        for part in self.orders:
            starts = np.flatnonzero(_differs_from_last(part.hashes))
            totals = np.add.reduceat(part.counts, starts) if len(part) else part.counts
            usable = (part.tokens < rows) | (part.tokens == END)
            # Sorted by context, then from the most frequent token on.
            order = np.lexsort((part.tokens, np.where(usable, -part.counts, 0), part.hashes))
            best = order[starts]
            kept = usable[best] & (part.counts[best] >= min_count)
            best, totals = best[kept], totals[kept]
            room = max_entries - sum(map(len, sections))
            if len(best) > room:
                most = np.sort(np.lexsort((part.hashes[best], -part.counts[best]))[:room])
                best, totals = best[most], totals[most]
            sections.append(make_section(part.hashes[best], part.tokens[best], part.counts[best], totals))
        while sections and not len(sections[-1]):
            sections.pop()
        return tuple(sections)

    def values(self) -> list[dict[str, Any]]:
        """What a counts file holds: for each context length the number of n-grams, and their arrays."""
        return [{"ngrams": len(part), "data": _pack(part)} for part in self.orders]

    @classmethod
    def from_fields(cls, fields: Fields, key: str) -> NgramCounts:
        """Counts from a field of a counts file. Raises the error of `fields`."""
        parts = fields.entries(key)
        if len(parts) > MAX_CONTEXT:
            raise fields.fault(key, f"has {len(parts)} context lengths, more than {MAX_CONTEXT}")
        return cls(tuple(map(_unpack, parts)))._bounded()

    def _bounded(self) -> NgramCounts:
        kept = self
        while len(kept) > MAX_NGRAMS:
            kept = NgramCounts(kept.orders[:-1])
        return kept


class NgramAccumulator:
    """Adds up many counts. Those of similar size are merged, so that no n-gram is merged very often."""

    def __init__(self, start: NgramCounts) -> None:
        self._parts = [start]

    @property
    def longest(self) -> int:
        """Tokens of the longest contexts that every part so far has."""
        return min(part.longest for part in self._parts)

    def add(self, counts: NgramCounts) -> None:
        self._parts.append(counts)
        while len(self._parts) > 1 and len(self._parts[-2]) < 2 * len(self._parts[-1]):
            self._merge_last()

    def total(self) -> NgramCounts:
        """All counts so far."""
        while len(self._parts) > 1:
            self._merge_last()
        return self._parts[0]

    def _merge_last(self) -> None:
        last = self._parts.pop()
        self._parts[-1] = self._parts[-1].merge(last)


def _arrays(part: Occurrences) -> tuple[npt.NDArray[Any], ...]:
    return part.hashes, part.tokens, part.counts


def _count(
    hashes: U64, tokens: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64] | None = None
) -> Occurrences:
    """Sorted n-grams, each once, from n-grams with their counts, which are 1 if none are given."""
    order = np.lexsort((tokens, hashes))
    hashes, tokens = hashes[order], tokens[order]
    starts = np.flatnonzero(_differs_from_last(hashes) | _differs_from_last(tokens))
    if counts is None:
        counts = np.diff(starts, append=len(hashes))
    elif len(starts):
        counts = np.add.reduceat(counts[order], starts)
    return Occurrences(hashes[starts], tokens[starts], counts)


def _differs_from_last(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value differs from the one before it; True for the first."""
    differs = np.ones(len(values), bool)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _pack(part: Occurrences) -> str:
    content = b"".join(getattr(part, name).astype(dtype).tobytes() for name, dtype in _FIELDS)
    return base64.b64encode(zlib.compress(content, 1)).decode()


def _unpack(fields: Fields) -> Occurrences:
    size = fields.whole("ngrams", MAX_NGRAMS)
    try:
        packed = base64.b64decode(fields.text("data"), validate=True)
        content = zlib.decompressobj().decompress(packed, size * _FILE_BYTES + 1)
    except (binascii.Error, zlib.error, ValueError) as fault:
        raise fields.fault("data", f"cannot be unpacked ({fault})") from fault
    if len(content) != size * _FILE_BYTES:
        raise fields.fault("data", f"does not hold {size} n-grams")
    arrays, at = [], 0
    for _, dtype in _FIELDS:
        arrays.append(np.frombuffer(content, dtype, size, at))
        at += arrays[-1].nbytes
    part = Occurrences(*arrays)
    later = part.hashes[1:] > part.hashes[:-1]
    same = part.hashes[1:] == part.hashes[:-1]
    if not np.all(later | (same & (part.tokens[1:] > part.tokens[:-1]))):
        raise fields.fault("data", "is not sorted, or holds an n-gram twice")
    if size and not 0 < part.counts.min() <= part.counts.max() <= MOST // MAX_NGRAMS:
        raise fields.fault("data", "holds a count out of range")
    return part
