"""The generation loop of one request: it asks for reads and checks, and yields verified full ids.

One loop serves every head. An exact request decodes a block of tokens on the reduced head, then has the block
verified with the full head. An approximate request, or one on the full head, skips verification. The loop
does not run the model: the scheduler does, for all live requests at once (:mod:`vt_core.decode.scheduler`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vt_core.decode.blocks import Block, Draft, Verified, accepted_prefix
from vt_core.decode.constraints.constraint import Constraint
from vt_core.decode.constraints.guide import Guide
from vt_core.decode.costs import Costs
from vt_core.decode.decoder import Decoder
from vt_core.decode.drafting import MAX_DRAFT, Drafted, Drafter, best_length
from vt_core.decode.metrics import Clock
from vt_core.decode.policy import Course, Policy
from vt_core.decode.sampling import Sampler
from vt_core.decode.types import Read, Slot, Steps
from vt_core.types import Ids


@dataclass
class Checks:
    """Counts and times of verification in one request."""

    verifications: int = 0  #: times that the full head was read for this request
    drafted: int = 0  #: positions verified
    settled: int = 0  #: near ties among them, which needed another product of a few rows
    rescued: list[int] = field(default_factory=list)  #: full ids that replaced wrong tokens
    rolled_back: int = 0  #: steps thrown away after a wrong token; a step queued ahead is not counted
    verify_s: float = 0.0  #: seconds spent on verification
    rescue_s: float = 0.0  #: seconds spent on rewinding caches and reading rescued rows
    rolled_back_s: float = 0.0  #: seconds spent on steps that were thrown away


@dataclass
class DraftLength:
    """Reads whose drafts have one length."""

    accepted: list[int]  #: number of reads, by the number of their drafted tokens that were accepted
    seconds: float = 0.0  #: seconds of these reads, the choice of their tokens included


@dataclass
class Drafts:
    """Counts and times of drafting in one request."""

    reads: int = 0  #: reads of the body after the prompt
    drafted: int = 0  #: drafted tokens that were read
    accepted: int = 0  #: of these, tokens that the reduced head chose as well
    draft_s: float = 0.0  #: seconds spent on drafting
    lengths: dict[int, DraftLength] = field(default_factory=dict)  #: reads by length of the draft, 0 included

    def add(self, drafted: int, accepted: int, seconds: float) -> None:
        """Note a read."""
        self.reads += 1
        self.drafted += drafted
        self.accepted += accepted
        length = self.lengths.setdefault(drafted, DraftLength([0] * (drafted + 1)))
        length.accepted[accepted] += 1
        length.seconds += seconds


@dataclass(slots=True)
class Prefill:
    """Asks for a prompt to be read; answered with the steps of its last position."""

    slot: Slot[Any]
    ids: Ids


@dataclass(slots=True)
class Follow:
    """Asks for a turn before steps that are queued already are used; answered with them."""

    steps: Steps[Any]


@dataclass(slots=True)
class Check:
    """Asks for a block to be verified; answered with what the full head chooses."""

    block: Block[Any]


#: What a request may ask the scheduler for. A ``Read`` is answered with its steps, or with None: then the
#: block is to be verified first, because another request reads the full head now. ``list[int]`` are verified
#: ids; the answer is None.
Ask: TypeAlias = "Prefill | Read[Any] | Follow | Check | list[int]"


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
            loop = _Loop(self, slot)
            if self.dynamic:
                literals = np.empty(0, dtype=np.int64) if self.literals is None else self.literals
                self.activate(np.concatenate([prompt, self.sampler.biased, literals]))
            # At least one token is read, for its logits.
            self.reused = decoder.cut(slot, common_prefix(slot.ids, prompt[:-1]))
            loop.begin = len(prompt)
            if self.drafter is not None:
                self.drafter.begin(prompt.tolist())
            steps = yield Prefill(slot, prompt[self.reused :])
            yield from loop.run(steps)
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


class _Loop:
    """Decodes the answer of a request, block by block.

    A block is the tokens that were decoded on the reduced head and are not verified yet. Without a policy,
    tokens are final at once, and a block is one read.
    """

    def __init__(self, request: Request, slot: Slot[Any]) -> None:
        self._request, self._slot = request, slot
        self._decoder, self._sampler, self._guide = request.decoder, request.sampler, request.guide
        self.begin = 0  #: tokens of the prompt
        self._done = 0  #: tokens that are final
        self._course: Course | None = None if request.policy is None else request.policy.course()
        self._own = None if self._course is not None or request.decoder.head.name == "full" else _Own(request)
        self._drafted: list[int] = []  #: of the read whose positions are chosen next
        self._read_at: float | None = None  #: time at which that read began; None: the prompt's
        self._settled = 0  #: tokens of the slot that cannot be taken back
        self._start_block()

    def _start_block(self) -> None:
        self._tokens: list[int] = []
        self._drafts: list[Draft] = []
        self._hidden: list[Any] = []
        self._ahead: Steps[Any] | None = None
        self._drafts_may_pay = self._expect_drafts()
        if self._course is not None:
            self._course.start_block()

    def run(self, steps: Steps[Any]) -> Generator[Ask, Any, None]:
        """Decode from the steps of the prompt on."""
        request = self._request
        self._settled = len(self._slot.text)
        while True:
            ended = yield from self._decode(steps)
            rescue = None
            ids = self._tokens
            if self._course is not None and self._drafts:
                verified = yield Check(Block(self._hidden, self._drafts, self._sampler))
                ids, rescue = self._accept(verified)
                ended = self._ends(self._done + len(ids), ids[-1])
            self._done += len(ids)
            started = 0.0 if rescue is None else request.clock()
            if rescue is not None and (not ended or request.slot is not None):
                self._drop_wrong()
            if request.drafter is not None:
                request.drafter.extend(ids)  # also after the last block: the end of a text is learned too
            yield ids
            if ended:
                return
            self._sampler.extend(np.array(ids))
            ahead = self._ahead
            self._start_block()
            self._decoder.settle(self._slot)
            self._settled = len(self._slot.text)
            if rescue is not None:
                request.activate([rescue])
                request.checks.rescue_s += request.clock() - started
            if ahead is not None:
                steps = yield from self._follow(ahead)
            else:
                answer = yield from self._read(ids[-1])
                while answer is None:  # nothing to verify yet
                    answer = yield from self._read(ids[-1])
                steps = answer

    def _decode(self, steps: Steps[Any]) -> Generator[Ask, Any, bool]:
        """Decode a block from the steps that choose its first tokens. True where the answer ends there."""
        while True:
            ended = self._choose(steps)
            # Without drafts all tokens are final.
            if ended or self._course is None or not self._drafts:
                return ended
            if self._course.is_full(self._request.company(), self._slot.rereads):
                return False
            if not self._slot.can_rewind:
                return False
            if self._ahead is not None:
                steps = yield from self._follow(self._ahead)
                continue
            answer = yield from self._read(self._tokens[-1])
            if answer is None:
                return False
            steps = answer

    def _follow(self, ahead: Steps[Any]) -> Generator[Ask, Any, Steps[Any]]:
        """Use the step that was queued ahead."""
        self._ahead, self._drafted = None, []
        self._read_at = self._request.clock()
        steps = yield Follow(ahead)
        return steps

    def _read(self, token: int) -> Generator[Ask, Any, Steps[Any] | None]:
        """Read the last token, and a draft of what follows."""
        # It may have been chosen among the rows of another request, which can end before this read.
        self._request.activate([token])
        self._drafted = self._draft()
        self._read_at = self._request.clock()
        steps = yield Read(self._slot, [token, *self._drafted])
        return steps

    def _draft(self) -> list[int]:
        """As many proposed tokens as pay, all of them active; maybe none."""
        request = self._request
        if request.drafter is None and self._guide is None:
            return []
        if request.costs is None or not request.costs.reads.known:
            return []
        started = request.clock()
        most = min(MAX_DRAFT, request.max_tokens - self._done - len(self._tokens) - 1)
        drafted = self._proposed(most) if self._slot.can_rewind else None
        ids: list[int] = []
        if drafted:
            seconds, others = request.costs.reads.seconds, request.company() - 1
            undone = len(self._slot.text) - self._settled if self._slot.rereads else 0
            undo_s = request.costs.reread_s(undone) if undone else 0.0
            count = best_length(drafted.rates, lambda tokens: seconds(tokens + others), undo_s)
            ids = drafted.ids[:count]
            if self._own is not None:
                ids = self._own.prefix(ids)
            elif ids:
                request.activate(ids)
        request.drafts.draft_s += request.clock() - started
        return ids

    def _expect_drafts(self) -> bool:
        """Whether drafts as good as the latest would pay; a step queued ahead leaves no room for one."""
        drafter, costs = self._request.drafter, self._request.costs
        if drafter is None or costs is None or not costs.reads.known:
            return False
        return best_length([drafter.recent] * MAX_DRAFT, costs.reads.seconds) > 0

    def _proposed(self, most: int) -> Drafted | None:
        """Tokens that the grammar forces, or that the drafter proposes and the grammar can take."""
        drafter, guide = self._request.drafter, self._guide
        if guide is not None and self._request.drafts_forced and (forced := guide.constraint.forced()[:most]):
            return Drafted(forced, [1.0] * len(forced))
        drafted = None if drafter is None else drafter.draft(most, self._tokens)
        if guide is None or drafted is None:
            return drafted
        ids = guide.constraint.prefix(drafted.ids)
        return Drafted(ids, drafted.rates[: len(ids)])

    def _choose(self, steps: Steps[Any]) -> bool:
        """Choose the tokens of the positions of a read on the reduced head, as far as its draft was right.
        True where the answer ends with the last of them.
        """
        request, decoder = self._request, self._decoder
        first = len(self._tokens)
        if self._may_follow(self._done + first):
            # Queue the next step before this token is known, so that the device does not wait for the host.
            self._ahead = decoder.follow(self._slot, steps)
        plain = self._sampler.settings.plain_greedy and (self._own is None or self._own.is_all)
        confidences: list[float | None] = []
        choices: Iterable[int]
        if self._guide is not None:
            plain, choices = False, self._guided(steps, self._guide, confidences)
        else:
            choices = decoder.poll(steps) if plain else self._choices(decoder.logits(steps))
        ended = False
        for token, draft in zip(choices, [*self._drafted, None], strict=True):
            if plain:
                self._drafts.append(Draft(self._done + len(self._tokens), tuple(self._tokens)))
            self._tokens.append(token)
            ended = self._ends(self._done + len(self._tokens), token)
            if ended or token != draft:
                break
        count = len(self._tokens) - first
        read, wrong = len(self._drafted) + 1, len(self._drafted) + 1 - count
        if self._read_at is not None:
            request.drafts.add(read - 1, count - 1, request.clock() - self._read_at)
        if self._course is not None:
            if self._guide is None:
                self._hidden.append(steps.hidden[:count] if wrong else steps.hidden)
                confidences = [*decoder.confidence(steps)[:count]]
            self._course.push(confidences, read)
        if wrong:
            decoder.rewind(self._slot, wrong)
        return ended

    def _choices(self, logits: npt.NDArray[np.float32]) -> Iterator[int]:
        """The choices of successive positions, as long as each is added to the block."""
        # Another request may have made more rows active since these logits were computed.
        ids = self._decoder.head.vocabulary.ids[: logits.shape[1]]
        for row in logits:
            own_ids, own = (ids, row) if self._own is None else self._own.select(ids, row)
            position, pending = self._done + len(self._tokens), tuple(self._tokens)
            adjusted = self._sampler.adjust(own, own_ids, pending)
            self._drafts.append(Draft(position, pending, adjusted, self._sampler.magnitude(own)))
            yield self._sampler.pick(adjusted, own_ids, position)

    def _guided(self, steps: Steps[Any], guide: Guide, confidences: list[float | None]) -> Iterator[int]:
        """As :meth:`_choices`, among the tokens that the grammar allows. Only positions that the full head
        has to confirm are drafts, with their hidden states and ``confidences``.
        """
        guide.prepare()  # while the device computes the logits
        logits = self._decoder.logits(steps)
        ids = self._decoder.head.vocabulary.ids[: logits.shape[1]]
        # Rows that are gathered on the way join the head only for later reads.
        rows = [(ids, row) if self._own is None else self._own.select(ids, row) for row in logits]
        for at, (own_ids, own) in enumerate(rows):
            position, hidden = self._done + len(self._tokens), steps.hidden[at : at + 1]
            choice = guide.choose(position, tuple(self._tokens), own, own_ids, hidden)
            if choice.draft is not None:
                self._drafts.append(choice.draft)
                self._hidden.append(hidden)
            confidences.append(choice.confidence)
            yield choice.token

    def _may_follow(self, position: int) -> bool:
        request = self._request
        return (
            self._decoder.can_follow
            and request.sampler.settings.plain_greedy
            and position + 1 < request.max_tokens
            and (self._course is None or self._slot.can_rewind)
            and not self._drafts_may_pay
            and self._guide is None
            and request.company() == 1
        )

    def _ends(self, count: int, token: int) -> bool:
        """Whether an answer of ``count`` tokens ends with ``token``."""
        if count == self._request.max_tokens or token in self._request.eos_ids:
            return True
        return self._guide is not None and self._guide.constraint.finished

    def _accept(self, verified: Verified) -> tuple[list[int], int | None]:
        """The ids that are right, ending with the rescued id if there is one; and the rescued id or None."""
        assert self._course is not None
        checks = self._request.checks
        choices = list(self._tokens)
        for draft, choice in zip(self._drafts, verified.choices, strict=True):
            choices[draft.position - self._done] = choice
        accepted, rescue = accepted_prefix(self._tokens, choices)
        self._course.learn(sum(draft.position - self._done < accepted for draft in self._drafts))
        checks.verifications += 1
        checks.drafted += len(self._drafts)
        checks.settled += verified.settled
        if rescue is None:
            return self._tokens, None
        if self._guide is not None:
            self._guide.replace(len(self._tokens) - accepted, rescue)
        wasted = len(self._tokens) - 1 - accepted
        checks.rescued.append(rescue)
        checks.rolled_back += wasted
        checks.rolled_back_s += wasted * self._course.step_s
        return [*self._tokens[:accepted], rescue], rescue

    def _drop_wrong(self) -> None:
        """Take back the tokens that were read after the last right one; the last of :attr:`_done` is new."""
        # Drop steps in flight first: they hold the head's buffer, and writing to a held buffer copies it.
        self._ahead = None
        self._hidden.clear()
        slot, request = self._slot, self._request
        right = self.begin + self._done - 1
        wrong = len(slot.text) - right
        started = request.clock()
        self._decoder.rewind(slot, wrong)
        again = right - self._settled
        if slot.rereads and wrong and again and request.costs is not None and request.costs.reads.known:
            request.costs.add_reread(again, request.clock() - started)


class _Own:
    """The active rows of an approximate request: those of other requests must not change its text."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._vocabulary = request.decoder.head.vocabulary
        self._kept = self._vocabulary.ids[: self._vocabulary.kept_size].copy()
        self._state: tuple[int, int] | None = None  #: active and needed ids that the places are for
        self._places: Ids | None = None

    @property
    def is_all(self) -> bool:
        """Whether there are no other active rows."""
        # Another request may have made active what this one needs.
        state = self._vocabulary.version, len(self._request.needed)
        if self._state != state:
            self._state = state
            dynamic = np.array(list(self._request.needed), dtype=np.int64)
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
        needed = self._request.needed
        return list(takewhile(lambda token: token in self._kept_ids or token in needed, ids))

    @cached_property
    def _kept_ids(self) -> frozenset[int]:
        return frozenset(self._kept.tolist())
