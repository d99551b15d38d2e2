"""The loop that decodes an answer, block by block.

One loop serves every head. An exact request decodes a block of tokens on the reduced head, then has the block
verified with the full head. An approximate request, or one on the full head, skips verification.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vt_core.decode.asks import Ask, Check, Follow
from vt_core.decode.blocks import Block, Draft, Verified, accepted_prefix
from vt_core.decode.constraints.guide import Guide
from vt_core.decode.own_rows import OwnRows
from vt_core.decode.policy import Course
from vt_core.decode.proposals import Proposals
from vt_core.decode.types import Read, Slot, Steps

if TYPE_CHECKING:
    from vt_core.decode.request import Request


class Loop:
    """Decodes the answer of a request, block by block.

    A block is the tokens that were decoded on the reduced head and are not verified yet. Without a policy,
    tokens are final at once, and a block is one read.
    """

    def __init__(self, request: Request, slot: Slot[Any]) -> None:
        self._request, self._slot = request, slot
        self._decoder, self._sampler, self._guide = request.decoder, request.sampler, request.guide
        self._done = 0  #: tokens that are final
        self._course: Course | None = None if request.policy is None else request.policy.course()
        vocabulary = request.decoder.head.vocabulary
        shares_rows = self._course is None and request.decoder.head.name != "full"
        self._own = OwnRows(vocabulary, request.needed) if shares_rows else None
        self._proposals = Proposals(request, slot, self._own)
        self._drafted: list[int] = []  #: of the read whose positions are chosen next
        self._read_at: float | None = None  #: time at which that read began; None: the prompt's
        self._settled = 0  #: tokens of the slot that cannot be taken back
        self._start_block()

    def _start_block(self) -> None:
        self._tokens: list[int] = []
        self._drafts: list[Draft] = []
        self._hidden: list[Any] = []
        self._ahead: Steps[Any] | None = None
        self._drafts_may_pay = self._proposals.may_pay()
        if self._course is not None:
            self._course.start_block()

    def run(self, steps: Steps[Any], prompt_tokens: int) -> Generator[Ask, Any, None]:
        """Decode from the steps of a prompt on, which has ``prompt_tokens`` tokens."""
        request = self._request
        self._settled = len(self._slot.text)
        while True:
            ended = yield from self._decode(steps)
            ids, rescue = self._tokens, None
            if self._course is not None and self._drafts:
                verified = yield Check(Block(self._hidden, self._drafts, self._sampler))
                ids, rescue = self._accept(verified)
                ended = self._ends(self._done + len(ids), ids[-1])
            self._done += len(ids)
            started = 0.0 if rescue is None else request.clock()
            if rescue is not None and (not ended or request.slot is not None):
                self._drop_wrong(prompt_tokens + self._done - 1)
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
            steps = yield from self._begin(ids[-1], ahead)

    def _begin(self, token: int, ahead: Steps[Any] | None) -> Generator[Ask, Any, Steps[Any]]:
        """The first steps of a block: those queued ahead, or else those after the last token."""
        if ahead is not None:
            steps = yield from self._follow(ahead)
            return steps
        answer = None
        while answer is None:  # nothing to verify yet
            answer = yield from self._read(token)
        return answer

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
        self._drafted = self._proposals.draft(self._tokens, self._done, self._settled)
        self._read_at = self._request.clock()
        steps = yield Read(self._slot, [token, *self._drafted])
        return steps

    def _choose(self, steps: Steps[Any]) -> bool:
        """Choose the tokens of the positions of a read on the reduced head, as far as its draft was right.
        True where the answer ends with the last of them.
        """
        decoder, first = self._decoder, len(self._tokens)
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
        self._end_read(steps, len(self._tokens) - first, confidences)
        return ended

    def _end_read(self, steps: Steps[Any], count: int, confidences: list[float | None]) -> None:
        """Note a read of which the first ``count`` positions gave tokens, and take back the others."""
        read = len(self._drafted) + 1
        if self._read_at is not None:
            self._request.drafts.add(read - 1, count - 1, self._request.clock() - self._read_at)
        if self._course is not None:
            if self._guide is None:
                self._hidden.append(steps.hidden[:count] if count < read else steps.hidden)
                confidences = [*self._decoder.confidence(steps)[:count]]
            self._course.push(confidences, read)
        if count < read:
            self._decoder.rewind(self._slot, read - count)

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

    def _drop_wrong(self, right: int) -> None:
        """Take back the tokens that were read after the first ``right`` ones of the text."""
        # Drop steps in flight first: they hold the head's buffer, and writing to a held buffer copies it.
        self._ahead = None
        self._hidden.clear()
        slot, request = self._slot, self._request
        wrong = len(slot.text) - right
        started = request.clock()
        self._decoder.rewind(slot, wrong)
        again = right - self._settled
        if slot.rereads and wrong and again and request.costs is not None and request.costs.reads.known:
            request.costs.add_reread(again, request.clock() - started)
