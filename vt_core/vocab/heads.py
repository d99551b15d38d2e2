"""Layouts of the reduced head in device memory: four strategies over the row operations of a backend.

A strategy decides which rows each device matrix has and when they are read. `RowOps` moves them. All
strategies give the same logits. ``prealloc`` is the paper's final form (VocabTailor, appendix A), ``split``
and ``rebuild`` are its alternatives, and ``full`` is the original head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vt_core.errors import OptionError
from vt_core.types import Ids
from vt_core.vocab.active import ActiveVocabulary

#: A backend's parallel device arrays: weights ``[n, hidden]``, full ids ``[n]``, maybe bias ``[n]``.
Rows = TypeVar("Rows")
Array = TypeVar("Array")  #: an array of the backend


class RowOps(Protocol[Rows, Array]):
    """Device operations on bundles of rows. Each backend implements them in its ``rows.py``."""

    def read(self, ids: Ids, spare: int = 0) -> Rows:
        """Rows of the head table for full ids, on the device, in the run's dtype, and room for ``spare`` more
        after them, which may have any values.
        """

    def reserve(self, rows: Rows, capacity: int) -> Rows:
        """A new bundle of ``capacity`` rows that begins with ``rows``. The other rows may have any values."""

    def write(self, buffer: Rows, start: int, rows: Rows) -> Rows:
        """``buffer`` with ``rows`` at ``start``; written in place if the device can."""

    def first(self, rows: Rows, count: int) -> Rows:
        """The first ``count`` rows, without a copy."""

    def concatenate(self, first: Rows, second: Rows) -> Rows:
        """A new bundle: ``first``, then ``second``."""

    def product(self, hidden: Array, rows: Rows) -> Array:
        """Logits ``[k, n]`` of ``hidden [k, hidden]``, rounded to the run's dtype as by the stock head."""

    def join(self, logits: list[Array]) -> Array:
        """Logits of several pieces side by side."""

    def nbytes(self, rows: Rows) -> int:
        """Bytes of a bundle on the device."""


class Head(ABC, Generic[Rows, Array]):
    """The rows of an `ActiveVocabulary` on the device.

    After every public method, even one that raised, the pieces hold exactly the rows of ``vocabulary.ids``,
    in order.
    """

    #: Name of the strategy in options and results.
    name: str
    #: Rows for which there is room after the static ones at first.
    SPARE = 0

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
        """Replace the static set. Its rows are read once for all requests, where they stay: a copy would
        need their memory twice. A failure changes nothing.
        """
        static = np.unique(np.fromiter(ids, dtype=np.int64))
        rows = self.ops.read(static, self.SPARE)
        self.vocabulary.set_static(static)
        self._place_static(rows)

    def add(self, ids: Iterable[int]) -> int:
        """Make ``ids`` active for this request.

        Returns:
            How many rows were read. If that fails, only static and learned rows stay.
        """
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
        """Replace the learned ids: keep ``ids`` after the static rows for all requests. Dynamic rows go."""
        self.vocabulary.forget_learned()
        self._cut()
        self.add(ids)
        self.vocabulary.keep_dynamic()

    def truncate(self) -> None:
        """Keep only static and learned rows. Reads nothing."""
        self.vocabulary.truncate()
        self._cut()

    def locate(self, local: int) -> tuple[Rows, int]:
        """The piece with a local id, and the row within it.

        Raises:
            IndexError: the id is not active.
        """
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
    def _place_static(self, rows: Rows) -> None:
        """Take over the static rows, and the room for :attr:`SPARE` more after them."""

    @abstractmethod
    def _append(self, start: int, rows: Rows) -> None: ...

    @abstractmethod
    def _cut(self) -> None: ...


class PreallocHead(Head[Rows, Array]):
    """One buffer: static rows stay, and dynamic rows are written after them. It grows geometrically.

    Only the slice of active rows is multiplied, so that no spare row can be chosen.
    """

    name = "prealloc"
    #: Prompts of the paper's five tasks need 14 to 105 rows (table 7).
    SPARE = 256

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
        self._buffer = rows

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
    """A static matrix that stays, and another of learned and dynamic rows. Their products are joined."""

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


class _OneMatrixHead(Head[Rows, Array]):
    """All active rows in one matrix, without spare capacity."""

    _whole: Rows

    @property
    def pieces(self) -> list[Rows]:
        return [self._whole]

    @property
    def nbytes(self) -> int:
        return self.ops.nbytes(self._whole)

    def _place_static(self, rows: Rows) -> None:
        self._whole = rows


class RebuildHead(_OneMatrixHead[Rows, Array]):
    """A new matrix of all active rows whenever some are added. The paper's naive form, for comparison."""

    name = "rebuild"

    def _append(self, start: int, rows: Rows) -> None:
        self._whole = self.ops.concatenate(self._whole, rows)

    def _cut(self) -> None:
        self._whole = self.ops.first(self._whole, self.vocabulary.kept_size)


class FullHead(_OneMatrixHead[Rows, Array]):
    """The original head, the reference: every row is static, and local ids equal full ids."""

    name = "full"

    def set_static(self, ids: Iterable[int]) -> None:
        """Load every row, whatever ``ids`` are. Later calls do nothing."""
        if self.vocabulary.size == 0:
            super().set_static(range(self.vocabulary.rows))

    def _append(self, start: int, rows: Rows) -> None:
        raise AssertionError("every id is active in a full head")

    def _cut(self) -> None:
        pass


#: The strategies by name.
HEADS: dict[str, type[Head[Any, Any]]] = {
    head.name: head for head in (PreallocHead, SplitHead, RebuildHead, FullHead)
}


def head_class(name: str) -> type[Head[Any, Any]]:
    """The strategy of that name.

    Raises:
        OptionError: the name is unknown.
    """
    if name not in HEADS:
        raise OptionError(f"unknown head {name!r}: choose one of {', '.join(HEADS)}")
    return HEADS[name]
