"""The active rows of one approximate request, among those of all requests."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from vt_core.types import Ids
from vt_core.vocab.active import ActiveVocabulary


class OwnRows:
    """The active rows of an approximate request: those of other requests must not change its text."""

    def __init__(self, vocabulary: ActiveVocabulary, needed: Collection[int]) -> None:
        """
        Args:
            vocabulary: all active rows.
            needed: full ids that this request made active; they may become more.
        """
        self._vocabulary, self._needed = vocabulary, needed
        self._kept = self._vocabulary.ids[: self._vocabulary.kept_size].copy()
        self._state: tuple[int, int] | None = None  #: active and needed ids that the places are for
        self._places: Ids | None = None

    @property
    def is_all(self) -> bool:
        """Whether there are no other active rows."""
        # Another request may have made active what this one needs.
        state = self._vocabulary.version, len(self._needed)
        if self._state != state:
            self._state = state
            dynamic = np.array(list(self._needed), dtype=np.int64)
            own = np.isin(self._vocabulary.ids, np.concatenate([self._kept, dynamic]))
            self._places = None if own.all() else np.flatnonzero(own)
        return self._places is None

    def select(self, ids: Ids, logits: npt.NDArray[np.float32]) -> tuple[Ids, npt.NDArray[np.float32]]:
        """The request's own ids and logits among those of all active rows."""
        if self.is_all or self._places is None:
            return ids, logits
        places = self._places[self._places < len(ids)]
        return ids[places], logits[places]

    def prefix(self, ids: list[int]) -> list[int]:
        """The first of some ids, as long as they are active for this request."""
        return list(takewhile(lambda token: token in self._kept_ids or token in self._needed, ids))

    @cached_property
    def _kept_ids(self) -> frozenset[int]:
        return frozenset(self._kept.tolist())
