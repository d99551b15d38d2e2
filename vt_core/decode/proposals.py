"""How many tokens that the drafter proposes, or the grammar forces, one request reads at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vt_core.decode.drafting import MAX_DRAFT, Drafted, best_length
from vt_core.decode.own_rows import OwnRows
from vt_core.decode.types import Slot

if TYPE_CHECKING:
    from vt_core.decode.request import Request


class Proposals:
    """Chooses the drafts of one request by what reads cost."""

    def __init__(self, request: Request, slot: Slot[Any], own: OwnRows | None) -> None:
        """
        Args:
            request: has the drafter, the grammar and the costs.
            slot: reads the drafts.
            own: the rows that the drafts of an approximate request must be among. None: those of other
                drafts join the head.
        """
        self._request, self._slot, self._own = request, slot, own
        self._drafter, self._guide = request.drafter, request.guide

    def may_pay(self) -> bool:
        """Whether drafts as good as the latest would pay; a step queued ahead leaves no room for one."""
        costs = self._request.costs
        if self._drafter is None:
            return False
        if self._request.draft_tokens is not None:
            return True
        if costs is None or not costs.reads.known:
            return False
        return best_length([self._drafter.recent] * MAX_DRAFT, costs.reads.seconds) > 0

    def draft(self, pending: list[int], done: int, settled: int) -> list[int]:
        """As many proposed tokens as pay, all of them active; maybe none.

        Args:
            pending: tokens of the answer that are not final yet.
            done: how many tokens before them are final.
            settled: tokens of the slot that cannot be taken back.
        """
        request = self._request
        if self._drafter is None and self._guide is None:
            return []
        known = request.costs is not None and request.costs.reads.known
        if not known and request.draft_tokens is None:
            return []
        started = request.clock()
        most = min(MAX_DRAFT, request.max_tokens - done - len(pending) - 1)
        drafted = self._proposed(pending, most) if self._slot.can_rewind else Drafted([], [])
        ids = drafted.ids
        if ids and request.draft_tokens is None:
            ids = ids[: self._best_length(drafted.rates, settled)]
        if self._own is not None:
            ids = self._own.prefix(ids)
        elif ids:
            request.activate(ids)
        request.drafts.draft_s += request.clock() - started
        return ids

    def _best_length(self, rates: list[float], settled: int) -> int:
        costs, others = self._request.costs, self._request.company() - 1
        assert costs is not None, "without costs nothing is drafted"
        undone = len(self._slot.text) - settled if self._slot.rereads else 0
        undo_s = costs.reread_s(undone) if undone else 0.0
        return best_length(rates, lambda tokens: costs.reads.seconds(tokens + others), undo_s)

    def _proposed(self, pending: list[int], most: int) -> Drafted:
        """Tokens that the grammar forces, and then those that the drafter proposes, as far as the grammar can
        take them.
        """
        guide, drafter = self._guide, self._drafter
        forced: list[int] = []
        if guide is not None and self._request.drafts_forced:
            forced = guide.constraint.forced()[:most]
        if drafter is None or len(forced) == most:
            return Drafted(forced, [1.0] * len(forced))
        limit = self._request.draft_tokens or MAX_DRAFT
        guessed = drafter.draft(min(limit, most - len(forced)), [*pending, *forced])
        if guide is None:
            return guessed
        ids = [*forced, *guessed.ids]
        if guessed.ids:
            ids = guide.constraint.prefix(ids)
        return Drafted(ids, [*[1.0] * len(forced), *guessed.rates][: len(ids)])
