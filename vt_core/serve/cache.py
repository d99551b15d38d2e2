"""Prompt cache: the caches of answered requests, for later prompts that begin alike."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from vt_core.decode.types import Slot
from vt_core.errors import BackendError
from vt_core.model import Model
from vt_core.types import Ids

#: Shortest common beginning that is worth a copy, in tokens.
LEAST = 16


@dataclass(eq=False)
class _Kept:
    slot: Slot[Any]
    ids: Ids
    nbytes: int


class PromptCache:
    """Slots of one model, least recently used first. Threads may use it."""

    def __init__(self, model: Model, limit: int) -> None:
        """
        Args:
            model: the model.
            limit: most bytes of all slots; 0 keeps none.
        """
        self._model, self._limit = model, limit
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(kept.nbytes for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, ids: Ids) -> Slot[Any] | None:
        """A slot for a prompt, which holds as much of its beginning as any; None where nothing is kept.

        A slot that would lose more than half of its text is copied, so that several conversations can go on
        from one system prompt.
        """
        if not self._limit:
            return None
        with self._lock:
            shared = [_common(kept.ids, ids[:-1]) for kept in self._kept]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or not shared[best]:
                return self._model.decoder.open()
            kept, length = self._kept[best], shared[best]
            if 2 * length >= len(kept.ids):
                return self._kept.pop(best).slot
            if length < LEAST:
                return self._model.decoder.open()
            self._kept.append(self._kept.pop(best))
            # Still locked: nobody else may take it while it is copied.
            return self._model.copy_slot(kept.slot)

    def put(self, slot: Slot[Any]) -> None:
        """Keep the slot of a request that has ended, and drop the least recently used ones beyond the
        limit.
        """
        with suppress(BackendError):  # the model is closed
            ids, nbytes = self._model.inspect_slot(slot)
            if not len(ids) or nbytes > self._limit:
                return
            with self._lock:
                self._kept.append(_Kept(slot, ids, nbytes))
                total = self.nbytes
                while total > self._limit:
                    total -= self._kept.pop(0).nbytes

    def clear(self) -> None:
        """Drop all slots."""
        with self._lock:
            self._kept.clear()


def _common(first: Ids, second: Ids) -> int:
    """Tokens that two texts have in common at their beginning."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
