"""The active vocabulary: which full ids the head holds now, and the map between full and local ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vt_core.errors import VocabularyError
from vt_core.types import Ids


class ActiveVocabulary:
    """Ordered full ids ``[static | learned | dynamic]`` without duplicates.

    The local id of a full id is its position. Static ids are sorted; learned and dynamic ids keep the order
    in which they were added. A request adds dynamic ids, and `truncate` removes them.
    """

    def __init__(self, rows: int) -> None:
        """An empty vocabulary.

        Args:
            rows: V, the rows of the model's table. Only ids below it can be active.
        """
        self.rows = rows  #: V
        self.static_size = 0  #: static ids
        self.learned_size = 0  #: learned ids
        self.size = 0  #: active ids
        self.version = 0  #: grows whenever the active ids change
        self._local = np.full(rows, -1, dtype=np.int32)
        self._ids = np.empty(0, dtype=np.int64)

    @property
    def ids(self) -> Ids:
        """Full ids in local order, int64 ``[size]``."""
        return self._ids[: self.size]

    @property
    def kept_size(self) -> int:
        """Number of ids that outlive a request: static and learned ones."""
        return self.static_size + self.learned_size

    @property
    def dynamic_size(self) -> int:
        """Number of ids of the current request."""
        return self.size - self.kept_size

    def set_static(self, ids: Iterable[int]) -> Ids:
        """Replace all ids by a new static set.

        Returns:
            The static ids, sorted.

        Raises:
            VocabularyError: an id is negative or has no row.
        """
        static = np.unique(_as_ids(ids))
        self._check(static)
        self._local.fill(-1)
        self._ids = static
        self._local[static] = np.arange(len(static), dtype=np.int32)
        self.static_size = self.size = len(static)
        self.learned_size = 0
        self.version += 1
        return static

    def add(self, ids: Iterable[int]) -> Ids:
        """Append the ids that are not active yet to the dynamic part.

        Returns:
            The appended ids in their order.

        Raises:
            VocabularyError: an id is negative or has no row; nothing is appended.
        """
        wanted = _as_ids(ids)
        self._check(wanted)
        absent = wanted[self._local[wanted] < 0]
        _, first = np.unique(absent, return_index=True)
        new = absent[np.sort(first)]
        self._reserve(self.size + len(new))
        self._ids[self.size : self.size + len(new)] = new
        self._local[new] = np.arange(self.size, self.size + len(new), dtype=np.int32)
        self.size += len(new)
        self.version += bool(len(new))
        return new

    def keep_dynamic(self) -> None:
        """Turn the dynamic ids into learned ones."""
        self.learned_size = self.size - self.static_size

    def forget_learned(self) -> None:
        """Remove the learned and the dynamic ids."""
        self.learned_size = 0
        self.truncate()

    def truncate(self) -> None:
        """Remove the dynamic ids."""
        self._local[self._ids[self.kept_size : self.size]] = -1
        self.version += self.size > self.kept_size
        self.size = self.kept_size

    def local(self, ids: Iterable[int]) -> npt.NDArray[np.int32]:
        """Local ids of full ids, int32; -1 where an id is not active."""
        return self._local[_as_ids(ids)]

    def __contains__(self, full_id: int) -> bool:
        return 0 <= full_id < self.rows and self._local[full_id] >= 0

    def _reserve(self, size: int) -> None:
        if size > len(self._ids):
            grown = np.empty(max(size, 2 * len(self._ids), 256), dtype=np.int64)
            grown[: self.size] = self.ids
            self._ids = grown

    def _check(self, ids: Ids) -> None:
        bad = ids[(ids < 0) | (ids >= self.rows)]
        if len(bad):
            raise VocabularyError(
                f"token id {bad[0]} has no row in the model's table of {self.rows} rows; "
                "use a vocabulary that was made for this model"
            )


def _as_ids(ids: Iterable[int]) -> Ids:
    array = ids if isinstance(ids, np.ndarray) else np.array(list(ids), dtype=np.int64)
    return array.astype(np.int64, copy=False).reshape(-1)
