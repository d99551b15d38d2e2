"""One request: what it was asked for, what it keeps active on the head, and what it counts.

A request does not run the model. It asks for reads and checks, and the scheduler runs them for all live
requests at once (:mod:`vt_core.decode.scheduler`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vt_core.decode.asks import Ask, Prefill
from vt_core.decode.constraints.constraint import Constraint
from vt_core.decode.constraints.guide import Guide
from vt_core.decode.costs import Costs
from vt_core.decode.counts import Checks, Drafts
from vt_core.decode.decoder import Decoder
from vt_core.decode.drafting import Drafter
from vt_core.decode.loop import Loop
from vt_core.decode.metrics import Clock
from vt_core.decode.policy import Policy
from vt_core.decode.sampling import Sampler
from vt_core.decode.types import Slot
from vt_core.types import Ids


@dataclass
class Request:
    """One request. When it ends, also by an error or because the caller stops early, its caches are dropped,
    or kept in the caller's slot.
    """

    decoder: Decoder[Any, Any]  #: model body and head
    sampler: Sampler  #: chooses tokens; belongs to this request
    max_tokens: int  #: most tokens to generate
    eos_ids: Collection[int]  #: full ids that end the answer
    policy: Policy | None = None  #: block lengths of an exact request; None skips verification
    clock: Clock = time.perf_counter  #: clock of the measurements
    dynamic: bool = True  #: whether the rows of the prompt's tokens join the head
    #: Caches of the caller's, to go on from and to keep: afterwards they hold the text as far as it was read.
    #: None: caches of the request's own.
    slot: Slot[Any] | None = None
    drafter: Drafter | None = None  #: proposes tokens to read at once
    costs: Costs | None = None  #: what reads cost; the drafter's lengths depend on it
    draft_tokens: int | None = None  #: tokens to draft for each read; None takes as many as pay
    together: bool = True  #: whether the body may run once for this request and others
    reused: int = 0  #: tokens of the prompt that the slot held already
    checks: Checks = field(default_factory=Checks)  #: what verification did so far
    drafts: Drafts = field(default_factory=Drafts)  #: what drafting did so far
    constraint: Constraint | None = None  #: the grammar that the answer follows
    literals: Ids | None = None  #: full ids that the grammar's literal texts are written with
    guide: Guide | None = None  #: what the grammar did so far
    drafts_forced: bool = True  #: whether runs of tokens that the grammar forces are read at once
    #: Full ids that this request needs active, besides the static ones.
    needed: dict[int, None] = field(default_factory=dict)
    dynamic_rows: int = 0  #: of these, rows that only requests made active, at the end of the request
    head_bytes: int = 0  #: bytes of the head on the device, at the end of the request
    #: How many requests run, this one included. The scheduler sets it.
    company: Callable[[], int] = lambda: 1

    def asks(self, prompt: Ids) -> Generator[Ask, Any, None]:
        """Ask for reads and checks, and yield up to ``max_tokens`` full ids in lists, as they are final. An
        id of ``eos_ids`` ends the answer and is part of it.

        Args:
            prompt: full ids, int64 ``[n]``.
        """
        self.sampler.extend(prompt)
        decoder = self.decoder
        slot = decoder.open() if self.slot is None else self.slot
        slot.takes_back_steps = self.policy is not None
        slot.wants_confidence = self.policy is not None and self.constraint is None
        keep = False
        if self.constraint is not None:
            exact = self.policy is not None
            self.guide = Guide(self.constraint, decoder, self.sampler, self.activate, exact)
        try:
            loop = Loop(self, slot)
            if self.dynamic:
                literals = np.empty(0, dtype=np.int64) if self.literals is None else self.literals
                self.activate(np.concatenate([prompt, self.sampler.biased, literals]))
            # At least one token is read, for its logits.
            self.reused = decoder.cut(slot, common_prefix(slot.ids, prompt[:-1]))
            if self.drafter is not None:
                self.drafter.begin(prompt.tolist())
            steps = yield Prefill(slot, prompt[self.reused :])
            yield from loop.run(steps, len(prompt))
            keep = self.slot is not None
        except GeneratorExit:
            keep = self.slot is not None
            raise
        finally:
            vocabulary = decoder.head.vocabulary
            self.dynamic_rows = int((vocabulary.local(self.needed) >= vocabulary.kept_size).sum())
            self.head_bytes = decoder.head.nbytes
            # After a failure a layer may have read a token that another has not: empty the caches.
            if not keep:
                decoder.close(slot)

    def activate(self, ids: Ids | Sequence[int]) -> None:
        """Make full ids active, and keep them active until this request ends."""
        vocabulary = self.decoder.head.vocabulary
        self.decoder.head.add(ids)
        wanted = np.array(ids, dtype=np.int64)
        self.needed.update(dict.fromkeys(wanted[vocabulary.local(wanted) >= vocabulary.static_size].tolist()))


def common_prefix(first: Sequence[int], second: Ids) -> int:
    """The number of ids that two texts have in common at their beginning."""
    length = min(len(first), len(second))
    different = np.flatnonzero(np.array(first[:length], dtype=np.int64) != second[:length])
    return int(different[0]) if len(different) else length
