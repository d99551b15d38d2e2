"""Choosing the n-grams that become tokens, by the rule of TASC-ft (arXiv 2602.24174).

The rule, repeated until there are enough: of the n-grams of the outputs, take the unused one with the largest
`frequency * (n - 1)`, the tokens that it saves. Reject it if its prefix collision is too large, else replace
it in the outputs by a new token and count again. Counts are kept up to date as trainers of byte-pair encoding
do: a merge changes only the n-grams that touch it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Separates texts in a corpus of ids.
SEPARATOR = -1
MOST_PARTS = 4  #: so that an n-gram of 16-bit symbols fits into one 64-bit key
_SYMBOLS = 1 << 16
#: N-grams whose counts are kept at first, for each token that is wanted, and at least.
_KEPT_PER_ROW, _KEPT = 100, 20_000
#: An n-gram that occurs once is not typical of a task.
_LEAST = 2

Symbols = npt.NDArray[np.uint16]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class NGram:
    """An n-gram that became a token."""

    id: int  #: of the new token
    parts: tuple[int, ...]  #: what it stands for, without merged tokens
    frequency: int  #: occurrences in the outputs when it was chosen
    collision: float  #: see `_Corpus.collision`


@dataclass(frozen=True)
class Point:
    """The outputs with the first so many merged tokens."""

    rows: int
    tokens: int
    entropy: float  #: Rényi-2 entropy of a token, bits


@dataclass(frozen=True)
class Selection:
    """Outcome of `select_ngrams`."""

    ngrams: tuple[NGram, ...]
    curve: tuple[Point, ...]  #: without any, then at the sizes that were asked for, then with all
    collided: int  #: n-grams that were rejected for their collision
    refused: int  #: n-grams that the tokenizer cannot hold


def select_ngrams(
    ids: npt.NDArray[np.int32],
    rows: int,
    *,
    first_id: int,
    token_bytes: Sequence[bytes | None],
    known: Mapping[int, tuple[int, ...]],
    accepts: Callable[[tuple[int, ...]], bool],
    n_max: int = MOST_PARTS,
    max_collision: float = 1.0,
    sizes: Sequence[int] = (),
    on_ngram: Callable[[], object] = lambda: None,
) -> Selection:
    """Choose up to `rows` n-grams.

    Args:
        ids: the outputs, `SEPARATOR` after each, int32 ``[n]``.
        rows: how many to choose; fewer if no n-gram occurs twice any more.
        first_id: id of the first new token; the others follow.
        token_bytes: bytes of each id below `first_id`; None for ids that no n-gram may contain.
        known: parts of the merged tokens that occur in `ids` already.
        accepts: whether the tokenizer can hold a token of these parts, which it then will.
        n_max: most tokens of an n-gram, 2 to `MOST_PARTS`; they may be merged tokens.
        max_collision: largest collision.
        sizes: sizes for points of the curve.
        on_ngram: called after each chosen n-gram.
    """
    corpus = _Corpus(ids, rows, n_max, token_bytes, known)
    chosen: list[NGram] = []
    curve = [corpus.point(0)]
    used: set[int] = set()
    collided = refused = 0
    kept = max(_KEPT, _KEPT_PER_ROW * rows)
    complete = False
    while len(chosen) < rows and not complete:
        complete = corpus.count(kept, used)
        kept *= 8
        while len(chosen) < rows and (symbols := corpus.pop(used)) is not None:
            used.add(corpus.key(symbols))
            parts = tuple(part for symbol in symbols for part in corpus.parts[symbol])
            collision = corpus.collision(symbols)
            if collision > max_collision:
                collided += 1
                continue
            if not accepts(parts):
                refused += 1
                continue
            frequency = corpus.frequency(symbols)
            corpus.merge(symbols, first_id + len(chosen))
            chosen.append(NGram(first_id + len(chosen), parts, frequency, collision))
            if len(chosen) in sizes and len(chosen) < rows:
                curve.append(corpus.point(len(chosen)))
            on_ngram()
    if chosen:
        curve.append(corpus.point(len(chosen)))
    return Selection(tuple(chosen), tuple(curve), collided, refused)


class _Corpus:
    """The outputs as symbols of 16 bits, 0 where no n-gram goes across, and the counts of their n-grams.

    Ids become symbols by frequency. A corpus with more distinct ids than symbols leaves the rarest ids out.
    An n-gram's key holds its symbols, 16 bits each, the last one lowest.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        rows: int,
        n_max: int,
        token_bytes: Sequence[bytes | None],
        known: Mapping[int, tuple[int, ...]],
    ) -> None:
        self._n_max = n_max
        found, counts = np.unique(ids[ids != SEPARATOR], return_counts=True)
        usable = np.array([token_bytes[id] is not None for id in found], bool)
        order = np.argsort(-counts[usable], kind="stable")[: _SYMBOLS - 1 - rows]
        symbol_of = np.zeros(len(token_bytes), np.uint16)
        symbol_of[found[usable][order]] = np.arange(1, len(order) + 1)
        self._symbols: Symbols = np.where(ids == SEPARATOR, 0, symbol_of[ids]).astype(np.uint16)
        #: id of each symbol
        self.ids = [SEPARATOR, *found[usable][order].tolist()]
        #: parts of each symbol
        self.parts: list[tuple[int, ...]] = [known.get(id, (id,)) for id in self.ids]
        self._bytes = [b"", *(token_bytes[id] or b"" for id in self.ids[1:])]
        #: bytes of the first part of each symbol, which decide over collisions
        self._first = [b"", *(token_bytes[parts[0]] or b"" for parts in self.parts[1:])]
        #: counts of the ids without a symbol
        self._others = counts[symbol_of[found] == 0]
        self._counts: dict[int, int] = {}
        self._heap: list[tuple[int, int, tuple[int, ...], int]] = []
        self._floor = 0

    def point(self, rows: int) -> Point:
        """The state of the outputs now."""
        counts = np.concatenate([np.bincount(self._symbols, minlength=1)[1:], self._others])
        return Point(rows, int(counts.sum()), renyi2(counts))

    def count(self, kept: int, used: set[int]) -> bool:
        """Count all n-grams anew, and keep those with the best scores.

        The others' counts only fall, so none of them can be the best before the kept ones have fallen below
        their scores.

        Returns:
            Whether all n-grams that occur twice are kept.
        """
        keys, counts, scores = [], [], []
        for n in range(2, self._n_max + 1):
            starts = np.arange(max(0, len(self._symbols) - n + 1))
            found, times = np.unique(self._keys(starts, n), return_counts=True)
            often = times >= _LEAST
            keys.append(found[often])
            counts.append(times[often])
            scores.append(times[often] * (n - 1))
        all_keys, all_counts = np.concatenate(keys), np.concatenate(counts)
        all_scores = np.concatenate(scores)
        complete = len(all_keys) <= kept
        self._floor = 0 if complete else int(np.partition(all_scores, -kept)[-kept])
        best = all_scores >= self._floor
        self._counts = dict(zip(all_keys[best].tolist(), all_counts[best].tolist(), strict=True))
        self._heap = [self._entry(key, count) for key, count in self._counts.items() if key not in used]
        heapq.heapify(self._heap)
        return complete

    def pop(self, used: set[int]) -> tuple[int, ...] | None:
        """Take the best n-gram, as symbols; None if none of those that are kept is the best."""
        while self._heap:
            _, minus_count, _, key = heapq.heappop(self._heap)
            count = self._counts.get(key, 0)
            if key in used:
                continue
            if count == -minus_count:
                return self._unpack(key)
            self._push(key, count)
        return None

    def frequency(self, symbols: tuple[int, ...]) -> int:
        return self._counts[self.key(symbols)]

    def collision(self, symbols: tuple[int, ...]) -> float:
        """The share of the occurrences of the n-gram without its last token that a longer token follows which
        begins like that last one: " in therapy" for " in the". Of a merged token, its first part counts.
        """
        head, last = symbols[:-1], self._bytes[symbols[-1]]
        after = self._places(head) + len(head)
        following = self._symbols[after[after < len(self._symbols)]]
        longer = [first.startswith(last) and len(first) > len(last) for first in self._first]
        return float(np.array(longer)[following].sum() / max(1, len(after)))

    def merge(self, symbols: tuple[int, ...], id: int) -> None:
        """Replace an n-gram by a new symbol, from left to right, and bring the counts up to date."""
        n, new = len(symbols), len(self.ids)
        places = _apart(self._places(symbols), n)
        for m in range(2, self._n_max + 1):
            for key, count in self._around(places, 1 - m, n, m):
                if key in self._counts:
                    self._counts[key] -= count
        self.ids.append(id)
        self.parts.append(tuple(part for symbol in symbols for part in self.parts[symbol]))
        self._bytes.append(b"".join(self._bytes[symbol] for symbol in symbols))
        self._first.append(self._first[symbols[0]])
        keep = np.ones(len(self._symbols), bool)
        for offset in range(1, n):
            keep[places + offset] = False
        self._symbols[places] = new
        self._symbols = self._symbols[keep]
        places = places - np.arange(len(places)) * (n - 1)
        for m in range(2, self._n_max + 1):
            for key, count in self._around(places, 1 - m, 1, m):
                self._counts[key] = count
                self._push(key, count)

    def key(self, symbols: tuple[int, ...]) -> int:
        key = 0
        for symbol in symbols:
            key = key << 16 | symbol
        return key

    def _unpack(self, key: int) -> tuple[int, ...]:
        symbols: list[int] = []
        while key:
            symbols.insert(0, key % _SYMBOLS)
            key //= _SYMBOLS
        return tuple(symbols)

    def _entry(self, key: int, count: int) -> tuple[int, int, tuple[int, ...], int]:
        """The heap's entry of an n-gram: best score first, then highest count, then lowest ids."""
        symbols = self._unpack(key)
        return -count * (len(symbols) - 1), -count, tuple(self.ids[symbol] for symbol in symbols), key

    def _push(self, key: int, count: int) -> None:
        entry = self._entry(key, count)
        if count >= _LEAST and -entry[0] >= self._floor:
            heapq.heappush(self._heap, entry)

    def _places(self, symbols: tuple[int, ...]) -> npt.NDArray[np.intp]:
        """Where an n-gram starts, occurrences that overlap included."""
        count = max(0, len(self._symbols) - len(symbols) + 1)
        fits = self._symbols[:count] == symbols[0]
        for offset, symbol in enumerate(symbols[1:], 1):
            fits &= self._symbols[offset : offset + count] == symbol
        return np.flatnonzero(fits)

    def _keys(self, starts: npt.NDArray[np.intp], n: int) -> Keys:
        """Keys of the n-grams that start there; those across a separator are left out."""
        keys = np.zeros(len(starts), np.uint64)
        whole = np.ones(len(starts), bool)
        for offset in range(n):
            symbols = self._symbols[starts + offset]
            whole &= symbols != 0
            keys = keys << np.uint64(16) | symbols.astype(np.uint64)
        return keys[whole]

    def _around(self, places: npt.NDArray[np.intp], low: int, high: int, n: int) -> list[tuple[int, int]]:
        """Keys and counts of the n-grams that start from `low` up to `high` away from some places."""
        starts = np.unique(places[:, None] + np.arange(low, high))
        starts = starts[(starts >= 0) & (starts <= len(self._symbols) - n)]
        keys, counts = np.unique(self._keys(starts, n), return_counts=True)
        return list(zip(keys.tolist(), counts.tolist(), strict=True))


def _apart(places: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.intp]:
    """Places of an n-gram without those that overlap an earlier one."""
    if not np.any(np.diff(places) < n):
        return places
    chosen, end = [], 0
    for place in places.tolist():
        if place >= end:
            chosen.append(place)
            end = place + n
    return np.array(chosen, np.intp)


def renyi2(counts: npt.NDArray[np.int64]) -> float:
    """Rényi entropy of order 2 of a distribution, bits: `-log2(sum p²)`. 0 without any count."""
    if not counts.any():
        return 0.0
    shares = counts / counts.sum()
    return float(-np.log2((shares**2).sum()))
