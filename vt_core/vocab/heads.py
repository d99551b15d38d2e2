"""How the reduced head is held: four strategies over the row operations of a backend.

A strategy decides which rows stand in which device matrix and when they are read; :class:`RowOps` does it on
the device. Every strategy gives the same logits. ``prealloc`` is the paper's final form (VocabTailor,
appendix A), ``split`` and ``rebuild`` are its alternatives, ``full`` is the original head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vt_core.errors import OptionError
from vt_core.vocab.active import ActiveVocabulary, Ids

#: A backend's parallel device arrays: weights ``[n, hidden]``, full ids ``[n]``, maybe bias ``[n]``.
Rows = TypeVar("Rows")
Array = TypeVar("Array")  #: an array of the backend


class RowOps(Protocol[Rows, Array]):
    """Device operations on bundles of rows; each backend has one implementation, in its ``rows.py``."""

    def read(self, ids: Ids) -> Rows:
        """Rows of the head table for full ids, on the device, in the run's dtype."""

    def reserve(self, rows: Rows, capacity: int) -> Rows:
        """A new bundle with room for ``capacity`` rows that begins with ``rows``; the rest is never looked
        at.
        """

    def write(self, buffer: Rows, start: int, rows: Rows) -> Rows:
        """``buffer`` with ``rows`` at ``start``, in place where the device can."""

    def first(self, rows: Rows, count: int) -> Rows:
        """The first ``count`` rows, without a copy."""

    def concatenate(self, first: Rows, second: Rows) -> Rows:
        """A new bundle: ``first`` and then ``second``."""

    def product(self, hidden: Array, rows: Rows) -> Array:
        """Logits ``[k, n]`` of ``hidden [k, hidden]``, rounded to the run's dtype as the stock framework's
        head does.
        """

    def join(self, logits: list[Array]) -> Array:
        """Logits of several pieces side by side."""

    def nbytes(self, rows: Rows) -> int:
        """Bytes that a bundle takes on the device."""


class Head(ABC, Generic[Rows, Array]):
    """The rows of an :class:`ActiveVocabulary` on the device.

    After every public method the pieces, in order, hold exactly the rows of ``vocabulary.ids``; also after
    one that raised.
    """

    name: str

    def __init__(self, ops: RowOps[Rows, Array], rows: int) -> None:
        self.ops = ops
        self.vocabulary = ActiveVocabulary(rows)

    @property
    @abstractmethod
    def pieces(self) -> list[Rows]:
        """Bundles that together hold the active rows in local order."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held on the device, spare capacity included."""

    def set_static(self, ids: Iterable[int]) -> None:
        """Replace the static set; reads its rows once for all requests. Fails with what was there before, or
        with no row.
        """
        static = np.unique(np.fromiter(ids, dtype=np.int64))
        rows = self.ops.read(static)
        self.vocabulary.set_static(static)
        try:
            self._place_static(rows)
        except BaseException:
            self.vocabulary.set_static([])
            self._place_static(self.ops.first(rows, 0))
            raise

    def add(self, ids: Iterable[int]) -> int:
        """Make ``ids`` active for this request; returns how many rows had to be read."""
        size = self.vocabulary.size
        new = self.vocabulary.add(ids)
        if len(new) == 0:
            return 0
        try:
            self._append(size, self.ops.read(new))
        except BaseException:
            self.truncate()
            raise
        return len(new)

    def set_learned(self, ids: Iterable[int]) -> None:
        """Keep ``ids`` behind the static rows for all requests, in place of those learned before."""
        self.vocabulary.forget_learned()
        self._cut()
        self.add(ids)
        self.vocabulary.keep_dynamic()

    def truncate(self) -> None:
        """End a request: only static and learned rows stay. Reads nothing."""
        self.vocabulary.truncate()
        self._cut()

    def locate(self, local: int) -> tuple[Rows, int]:
        """The piece that holds a local id, and the row within it."""
        for piece, count in zip(self.pieces, self._counts(), strict=True):
            if local < count:
                return piece, local
            local -= count
        raise IndexError(local)

    def logits(self, hidden: Array) -> Array:
        """Logits of the active rows in local order, ``[k, size]`` for ``hidden [k, hidden]``."""
        products = [self.ops.product(hidden, piece) for piece in self.pieces]
        return products[0] if len(products) == 1 else self.ops.join(products)

    def _counts(self) -> list[int]:
        return [self.vocabulary.size]

    @abstractmethod
    def _place_static(self, rows: Rows) -> None: ...

    @abstractmethod
    def _append(self, start: int, rows: Rows) -> None: ...

    @abstractmethod
    def _cut(self) -> None: ...


class PreallocHead(Head[Rows, Array]):
    """One buffer: static rows stay, dynamic rows are written behind them; it grows geometrically.

    Spare rows lie behind the slice that is multiplied, so that nothing can choose them.
    """

    name = "prealloc"
    SPARE = 256  #: first spare rows; the prompts of the five tasks bring 14 to 105 (paper, table 7)

    _buffer: Rows
    _capacity = 0

    @property
    def pieces(self) -> list[Rows]:
        return [self.ops.first(self._buffer, self.vocabulary.size)]

    @property
    def nbytes(self) -> int:
        return self.ops.nbytes(self._buffer)

    def _place_static(self, rows: Rows) -> None:
        self._capacity = self.vocabulary.size + self.SPARE
        self._buffer = self.ops.reserve(rows, self._capacity)

    def _append(self, start: int, rows: Rows) -> None:
        size = self.vocabulary.size
        if size > self._capacity:
            spare = 2 * (size - self.vocabulary.kept_size)
            self._capacity = self.vocabulary.kept_size + max(spare, self.SPARE)
            self._buffer = self.ops.reserve(self.ops.first(self._buffer, start), self._capacity)
        self._buffer = self.ops.write(self._buffer, start, rows)

    def _cut(self) -> None:
        pass


class SplitHead(Head[Rows, Array]):
    """The static matrix stays, another is made of learned and dynamic rows; two products, joined."""

    name = "split"

    _static: Rows
    _rest: Rows | None = None

    @property
    def pieces(self) -> list[Rows]:
        return [self._static] if self._rest is None else [self._static, self._rest]

    @property
    def nbytes(self) -> int:
        return sum(self.ops.nbytes(piece) for piece in self.pieces)

    def _counts(self) -> list[int]:
        static = self.vocabulary.static_size
        return [static] if self._rest is None else [static, self.vocabulary.size - static]

    def _place_static(self, rows: Rows) -> None:
        self._static, self._rest = rows, None

    def _append(self, start: int, rows: Rows) -> None:
        self._rest = rows if self._rest is None else self.ops.concatenate(self._rest, rows)

    def _cut(self) -> None:
        learned = self.vocabulary.learned_size
        self._rest = self.ops.first(self._rest, learned) if self._rest is not None and learned else None


class RebuildHead(Head[Rows, Array]):
    """A new matrix of all active rows whenever some are added: the paper's naive form, for comparison."""

    name = "rebuild"

    _whole: Rows

    @property
    def pieces(self) -> list[Rows]:
        return [self._whole]

    @property
    def nbytes(self) -> int:
        return self.ops.nbytes(self._whole)

    def _place_static(self, rows: Rows) -> None:
        self._whole = rows

    def _append(self, start: int, rows: Rows) -> None:
        self._whole = self.ops.concatenate(self._whole, rows)

    def _cut(self) -> None:
        self._whole = self.ops.first(self._whole, self.vocabulary.kept_size)


class FullHead(Head[Rows, Array]):
    """The original head, whole: every row is static, local and full ids are the same. The reference."""

    name = "full"

    _whole: Rows

    @property
    def pieces(self) -> list[Rows]:
        return [self._whole]

    @property
    def nbytes(self) -> int:
        return self.ops.nbytes(self._whole)

    def set_static(self, ids: Iterable[int]) -> None:
        """Load every row, whatever ``ids`` says; later calls do nothing."""
        if self.vocabulary.size == 0:
            super().set_static(range(self.vocabulary.rows))

    def _place_static(self, rows: Rows) -> None:
        self._whole = rows

    def _append(self, start: int, rows: Rows) -> None:
        raise AssertionError("every id is active in a full head")

    def _cut(self) -> None:
        pass


HEADS: dict[str, type[Head[Any, Any]]] = {
    head.name: head for head in (PreallocHead, SplitHead, RebuildHead, FullHead)
}


def head_class(name: str) -> type[Head[Any, Any]]:
    """The strategy of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in HEADS:
        raise OptionError(f"unknown head {name!r}: choose one of {', '.join(HEADS)}")
    return HEADS[name]
