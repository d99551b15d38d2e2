"""The loop: a prompt of full ids in, full ids out.

The same for every head, exact and approximate. An exact request decodes blocks on the reduced head and has
each checked by the full one; an approximate request, or one on the full head, believes every token at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vt_core.decode.decoder import Decoder
from vt_core.decode.metrics import Clock
from vt_core.decode.policy import Block, BlockPolicy
from vt_core.decode.sampling import Sampler
from vt_core.decode.types import Step
from vt_core.decode.verification import Draft, accepted_prefix
from vt_core.vocab.active import Ids


@dataclass
class Checks:
    """What verification did in one request. Times in seconds."""

    verifications: int = 0
    drafted: int = 0  #: positions that were checked
    settled: int = 0  #: of these, near ties, which took another product of a few rows
    rescued: list[int] = field(default_factory=list)  #: full ids that the full head put in place of others
    rolled_back: int = 0  #: steps that were run behind a wrong token (one queued ahead is not counted)
    verify_s: float = 0.0
    rescue_s: float = 0.0  #: taking tokens back and reading the rescued row
    rolled_back_s: float = 0.0  #: in steps that were rolled back


@dataclass
class Request:
    """One request. However it ends, also when the caller stops listening, the decoder is left as it was
    before.

    ``policy`` decides the blocks of an exact request; None believes every token. Without ``dynamic`` the
    prompt brings no rows.
    """

    decoder: Decoder[Any]
    sampler: Sampler
    max_tokens: int
    eos_ids: Collection[int]
    policy: BlockPolicy | None = None
    clock: Clock = time.perf_counter
    dynamic: bool = True
    checks: Checks = field(default_factory=Checks)

    def run(self, prompt: Ids) -> Generator[int, None, None]:
        """Generate up to ``max_tokens`` full ids; an id of ``eos_ids`` is the last one yielded.

        The ids of the prompt are made active for this request, where that is wanted.
        """
        self.sampler.extend(prompt)
        self.decoder.begin(confidence=self.policy is not None)
        try:
            if self.policy is not None:
                self.policy.begin()
            if self.dynamic:
                self.decoder.head.add(np.concatenate([prompt, self.sampler.biased]))
            step = self.decoder.prefill(prompt)
            done = 0
            while True:
                started = self.clock() if done and self.policy is not None else None
                block = _Block(self, done)
                block.draft(step, started)
                ids, rescue = block.check()
                yield from ids
                done += len(ids)
                if done == self.max_tokens or ids[-1] in self.eos_ids:
                    return
                self.sampler.extend(np.array(ids))
                step = block.resume(rescue)
        finally:
            self.decoder.end()


class _Block:
    """Tokens that were decoded on the reduced head since the last check, and the steps that chose them."""

    def __init__(self, request: Request, done: int) -> None:
        self._request = request
        self._decoder = request.decoder
        self._done = done
        self._steps: list[Step[Any]] = []
        self._drafts: list[Draft] = []
        self._tokens: list[int] = []
        self._ahead: Step[Any] | None = None
        self._accepted = 0
        self._step_s = 0.0  #: of a block behind the first
        self._course: Block | None = None if request.policy is None else request.policy.block()

    def draft(self, step: Step[Any], started: float | None) -> None:
        """Decode from ``step`` until the policy wants a check or the text ends."""
        request, decoder = self._request, self._decoder
        while True:
            more = self._done + len(self._tokens) + 1 < request.max_tokens
            follows = decoder.can_follow and request.sampler.settings.plain_greedy
            if self._course is not None and not decoder.can_rewind:
                follows = False
            # Queued before this token is known, so that the device does not wait for the host.
            self._ahead = decoder.follow(step) if follows and more else None
            token = self._choose(step)
            ended = not more or token in request.eos_ids
            if self._course is None or self._course.push(decoder.confidence(step)) or ended:
                break
            if not decoder.can_rewind:
                break
            step = decoder.step(token) if self._ahead is None else self._ahead
        if request.policy is not None and started is not None:
            self._step_s = (request.clock() - started) / len(self._tokens)
            request.policy.costs.add_step(self._step_s)

    def check(self) -> tuple[list[int], int | None]:
        """The ids that stand, a rescue included, and the rescue."""
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
        """The step after the ids that stand."""
        decoder = self._decoder
        read = len(self._tokens) - 1 + (self._ahead is not None)
        if rescue is None:
            decoder.rewind(0)
            return decoder.step(self._tokens[-1]) if self._ahead is None else self._ahead
        started = self._request.clock()
        # Dropped first: a step in flight holds the head's buffer, and writing into that would copy it whole.
        self._ahead = None
        self._steps.clear()
        decoder.rewind(read - self._accepted)
        decoder.head.add([rescue])
        self._request.checks.rescue_s += self._request.clock() - started
        return decoder.step(rescue)

    def _choose(self, step: Step[Any]) -> int:
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
