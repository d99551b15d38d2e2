"""Rescued ids that later requests begin with."""

from __future__ import annotations

from collections.abc import Iterable

LIMIT = 1024  #: learned rows; an eighth of the rank prior's


class Learned:
    """Ids that the full head had to put in, the least recently used first; never more than ``limit``."""

    def __init__(self, ids: Iterable[int] = (), limit: int = LIMIT) -> None:
        self._limit = limit
        self._ids: dict[int, None] = dict.fromkeys(ids)

    @property
    def ids(self) -> list[int]:
        return list(self._ids)

    def update(self, rescued: Iterable[int], used: Iterable[int]) -> bool:
        """A request has used some ids and had others rescued; True when the set of learned ids has
        changed.
        """
        before = set(self._ids)
        for token in [*(token for token in used if token in self._ids), *rescued]:
            self._ids.pop(token, None)
            self._ids[token] = None
        while len(self._ids) > self._limit:
            del self._ids[next(iter(self._ids))]
        return set(self._ids) != before
