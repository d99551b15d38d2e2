"""The generation loop: a prompt of full ids in, generated full ids out.

One loop serves every head. An exact request decodes a block of tokens on the reduced head, then verifies the
block with the full head. An approximate request, or one on the full head, skips verification.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vt_core.decode.decoder import Decoder
from vt_core.decode.metrics import Clock
from vt_core.decode.policy import Block, BlockPolicy
from vt_core.decode.sampling import Sampler
from vt_core.decode.types import Slot, Step
from vt_core.decode.verification import Draft, accepted_prefix
from vt_core.vocab.active import Ids


@dataclass
class Checks:
    """Counts and times of verification in one request."""

    verifications: int = 0  #: times that the full head was read
    drafted: int = 0  #: positions verified
    settled: int = 0  #: near ties among them, which needed another product of a few rows
    rescued: list[int] = field(default_factory=list)  #: full ids that replaced wrong tokens
    rolled_back: int = 0  #: steps thrown away after a wrong token; a step queued ahead is not counted
    verify_s: float = 0.0  #: seconds spent on verification
    rescue_s: float = 0.0  #: seconds spent on rewinding caches and reading rescued rows
    rolled_back_s: float = 0.0  #: seconds spent on steps that were thrown away


@dataclass
class Request:
    """One request. When it ends, also by an error or because the caller stops early, the decoder is as it was
    before.
    """

    decoder: Decoder[Any, Any]  #: model body and head
    sampler: Sampler  #: chooses tokens; belongs to this request
    max_tokens: int  #: most tokens to generate
    eos_ids: Collection[int]  #: full ids that end the answer
    policy: BlockPolicy | None = None  #: block lengths of an exact request; None skips verification
    clock: Clock = time.perf_counter  #: clock of the measurements
    dynamic: bool = True  #: whether the rows of the prompt's tokens join the head
    #: Caches of the caller's, to go on from and to keep: afterwards they hold the text as far as it was read.
    #: None: caches of the request's own.
    slot: Slot[Any] | None = None
    reused: int = 0  #: tokens of the prompt that the slot held already
    checks: Checks = field(default_factory=Checks)  #: what verification did so far

    def run(self, prompt: Ids) -> Generator[int, None, None]:
        """Yield up to ``max_tokens`` full ids. An id of ``eos_ids`` is yielded and ends the answer.

        Args:
            prompt: full ids, int64 ``[n]``.
        """
        self.sampler.extend(prompt)
        decoder = self.decoder
        slot = decoder.open() if self.slot is None else self.slot
        slot.wants_confidence = self.policy is not None
        keep = False
        try:
            if self.policy is not None:
                self.policy.begin()
            if self.dynamic:
                decoder.head.add(np.concatenate([prompt, self.sampler.biased]))
            # At least one token is read, for its logits.
            self.reused = decoder.cut(slot, common_prefix(slot.ids, prompt[:-1]))
            step = decoder.prefill(slot, prompt[self.reused :])
            done = 0
            while True:
                started = self.clock() if done and self.policy is not None else None
                block = _Block(self, slot, done)
                block.draft(step, started)
                ids, rescue = block.check()
                done += len(ids)
                ended = done == self.max_tokens or ids[-1] in self.eos_ids
                if ended and self.slot is not None:
                    block.drop_wrong(rescue)
                yield from ids
                if ended:
                    keep = self.slot is not None
                    return
                self.sampler.extend(np.array(ids))
                step = block.resume(rescue)
        except GeneratorExit:
            keep = self.slot is not None
            raise
        finally:
            # After a failure a layer may have read a token that another has not: empty the caches.
            if not keep:
                decoder.close(slot)
            decoder.truncate_head()


def common_prefix(first: Sequence[int], second: Ids) -> int:
    """The number of ids that two texts have in common at their beginning."""
    length = min(len(first), len(second))
    different = np.flatnonzero(np.array(first[:length], dtype=np.int64) != second[:length])
    return int(different[0]) if len(different) else length


class _Block:
    """Tokens that were decoded on the reduced head and are not verified yet, with their steps."""

    def __init__(self, request: Request, slot: Slot[Any], done: int) -> None:
        self._request, self._slot = request, slot
        self._decoder = request.decoder
        self._done = done
        self._steps: list[Step[Any]] = []
        self._drafts: list[Draft] = []
        self._tokens: list[int] = []
        self._ahead: Step[Any] | None = None
        self._accepted = 0
        self._step_s = 0.0  #: seconds per step; measured from the second block on
        self._course: Block | None = None if request.policy is None else request.policy.block()

    def draft(self, step: Step[Any], started: float | None) -> None:
        """Decode from ``step`` on until the policy asks for verification or the answer ends.

        Args:
            step: the step that chooses the block's first token.
            started: when the block began, in seconds of the clock; None for the first block.
        """
        request, decoder, slot = self._request, self._decoder, self._slot
        while True:
            more = self._done + len(self._tokens) + 1 < request.max_tokens
            follows = decoder.can_follow and request.sampler.settings.plain_greedy
            if self._course is not None and not slot.can_rewind:
                follows = False
            # Queue the next step before this token is known, so that the device does not wait for the host.
            self._ahead = decoder.follow(slot, step) if follows and more else None
            token = self._choose(step)
            ended = not more or token in request.eos_ids
            if self._course is None or self._course.push(decoder.confidence(step)) or ended:
                break
            if not slot.can_rewind:
                break
            step = decoder.step(slot, token) if self._ahead is None else self._ahead
        if request.policy is not None and started is not None:
            self._step_s = (request.clock() - started) / len(self._tokens)
            request.policy.costs.add_step(self._step_s)

    def check(self) -> tuple[list[int], int | None]:
        """Verify the block.

        Returns:
            The verified ids, ending with the rescued id if there is one; and the rescued id or None.
        """
        request = self._request
        if request.policy is None or self._course is None:
            return self._tokens, None
        started = request.clock()
        checked, settled = self._decoder.verify(self._steps, self._drafts, request.sampler)
        spent = request.clock() - started
        accepted, rescue = accepted_prefix(self._tokens, checked)
        self._accepted = accepted
        request.policy.costs.add_verification(len(self._tokens), spent)
        request.policy.learn(self._course.confidences, accepted)
        checks = request.checks
        checks.verifications += 1
        checks.drafted += len(self._tokens)
        checks.settled += settled
        checks.verify_s += spent
        if rescue is None:
            return self._tokens, None
        checks.rescued.append(rescue)
        wasted = len(self._tokens) - 1 - accepted
        checks.rolled_back += wasted
        checks.rolled_back_s += wasted * self._step_s
        return [*self._tokens[:accepted], rescue], rescue

    def resume(self, rescue: int | None) -> Step[Any]:
        """Return the step after the verified ids. After a rescue, take back the wrong steps first."""
        decoder, slot = self._decoder, self._slot
        if rescue is None:
            decoder.rewind(slot, 0)
            return decoder.step(slot, self._tokens[-1]) if self._ahead is None else self._ahead
        started = self._request.clock()
        self.drop_wrong(rescue)
        decoder.head.add([rescue])
        self._request.checks.rescue_s += self._request.clock() - started
        return decoder.step(slot, rescue)

    def drop_wrong(self, rescue: int | None) -> None:
        """Take back the tokens that were read after the last accepted one, if there was a rescue."""
        if rescue is None:
            return
        read = len(self._tokens) - 1 + (self._ahead is not None)
        # Drop steps in flight first: they hold the head's buffer, and writing to a held buffer copies it.
        self._ahead = None
        self._steps.clear()
        self._decoder.rewind(self._slot, read - self._accepted)

    def _choose(self, step: Step[Any]) -> int:
        """Choose the token of a step on the reduced head and add it to the block."""
        request, decoder = self._request, self._decoder
        position = self._done + len(self._tokens)
        pending = tuple(self._tokens)
        draft = Draft(position, pending)
        if request.sampler.settings.plain_greedy:
            token = decoder.poll(step)
        else:
            ids = decoder.head.vocabulary.ids
            logits = decoder.logits(step)
            adjusted = request.sampler.adjust(logits, ids, pending)
            draft = Draft(position, pending, adjusted, request.sampler.magnitude(logits))
            token = request.sampler.pick(adjusted, ids, position)
        self._steps.append(step)
        self._drafts.append(draft)
        self._tokens.append(token)
        return token
