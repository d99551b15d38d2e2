"""When to stop decoding on the reduced head and verify the block with the full one.

A block costs ``n`` steps and one read of the full head. In a longer block more positions share that read, but
all steps after a wrong token are wasted. A block ends as soon as one more step is expected to bring fewer
tokens per second than the block brings so far. This is the stopping rule of renewal theory. It needs no
threshold, only the probability that the next token is wrong and the costs of a step and a read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vt_core.decode.costs import Costs

#: Most positions in a block. Verifying more costs more than it saves; a product of 32 takes 1.1 times as long
#: as one of 1.
MAX_BLOCK = 32

#: Misses are counted by confidence, the probability of the reduced head's choice. These are the bounds of the
#: classes.
_CLASSES = (0.2, 0.35, 0.5, 0.7, 0.9, 0.98)
#: Miss rate assumed for each class before anything was measured. With the rank prior 1.6 % of Qwen2.5-Coder's
#: tokens on GSM8K are misses, nearly all of them where the reduced head is unsure.
_PRIOR = (0.20, 0.12, 0.06, 0.03, 0.015, 0.005, 0.002)
#: Weight of that prior, in tokens.
_PRIOR_WEIGHT = 20.0
#: Misses beyond the expected ones that make a request count as twice as hard as others.
_EVENNESS = 2.0
#: The next block may be this many times as long as the last one if all of that was right, and at least this
#: long after a miss. The stopping rule is the real bound: with 2 instead of 8 Gemma 3 took 5 % more time.
_GROWTH = 8


class Course(Protocol):
    """Decides for one request when a block is verified."""

    @property
    def step_s(self) -> float:
        """Seconds of a step, 0 where that is not known."""

    def start_block(self) -> None:
        """The next token begins a block."""

    def push(self, confidences: Sequence[float | None], read: int) -> None:
        """Tokens join the block.

        Args:
            confidences: their probabilities among the active rows; None for a token that the full head need
                not confirm.
            read: tokens of the read that gave them, drafted ones included.
        """

    def is_full(self, company: int, rereads: bool = False) -> bool:
        """Whether to verify the block now.

        Args:
            company: how many requests run.
            rereads: whether the right tokens of a block are read again after a wrong one.
        """

    def learn(self, accepted: int) -> None:
        """The block was verified: of the tokens that the full head had to confirm, the first ``accepted``
        were right, and the next one, if any, wrong.
        """


class Policy(Protocol):
    """Makes a course for each request of a model."""

    def course(self) -> Course:
        """A course for a new request."""


@dataclass
class BlockPolicy:
    """Chooses block lengths for one model, and learns over its requests."""

    max_block: int = MAX_BLOCK  #: most positions in a block
    costs: Costs = field(default_factory=Costs)
    seen: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT] * len(_PRIOR))
    missed: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT * share for share in _PRIOR])

    def course(self) -> BlockCourse:
        return BlockCourse(self)


class BlockCourse:
    """See :class:`Course`. The first token of a request is verified at once, so that it streams at once."""

    def __init__(self, policy: BlockPolicy, limit: int = 1) -> None:
        """
        Args:
            policy: what was learned about the model.
            limit: most positions in the first block.
        """
        self._policy, self._limit = policy, limit
        self._misses_expected = 0.0  #: among the tokens of this request, by their classes
        self._misses = 0  #: of this request so far
        self.start_block()

    @property
    def step_s(self) -> float:
        costs = self._policy.costs
        return costs.step_s if costs.known else 0.0

    def start_block(self) -> None:
        self._right = 1.0  #: probability that every token of the block so far is right
        self._misses_at: list[float] = []  #: probability that each token is the first wrong one
        self._expected = 0.0  #: expected tokens of the block if it ends here, the rescue included
        #: Expected seconds of the reads, since the last token that the full head has to confirm, that a wrong
        #: token wastes.
        self._risked_s = 0.0
        self._confidences: list[float] = []
        self._reads: list[int] = []

    def miss_rate(self, confidence: float) -> float:
        """Probability that a token of this confidence is not the full head's: the rate of all requests, times
        how this request compares with them.
        """
        at = bisect_right(_CLASSES, confidence)
        here = (self._misses + _EVENNESS) / (self._misses_expected + _EVENNESS)
        return min(1.0, here * self._policy.missed[at] / self._policy.seen[at])

    def push(self, confidences: Sequence[float | None], read: int) -> None:
        costs = self._policy.costs
        if any(confidence is not None for confidence in confidences):
            self._risked_s = 0.0
        elif not self._confidences:
            # These tokens stream at once. So the answer has begun, and later ones may wait.
            self._limit = max(self._limit, _GROWTH)
        elif costs.known:
            self._risked_s += (1 - self._right) * costs.reads.seconds(read)
        for confidence in confidences:
            self._expected += self._right
            self._misses_at.append(0.0 if confidence is None else self._right * self.miss_rate(confidence))
            self._right -= self._misses_at[-1]
            if confidence is not None:
                self._confidences.append(confidence)
        self._reads.append(read)

    def is_full(self, company: int, rereads: bool = False) -> bool:
        count, costs = len(self._confidences), self._policy.costs
        if count >= self._limit:
            return True
        if not costs.known:
            return False
        if self._risked_s:
            # Nobody knows how many tokens come before the next one that shares the verification. Waiting
            # until the expected waste is worth one costs at most twice what foresight would.
            return self._risked_s > costs.verify_s(count * company) / company
        # All requests take part in a round and in a check. The others read a token a round. The next read is
        # taken to cost and bring what those of the block did.
        seconds = costs.reads.seconds
        reads_s = sum(seconds(read + company - 1) for read in self._reads)
        tokens = len(self._misses_at) / len(self._reads)
        spent = reads_s + costs.verify_s(count * company)
        more = reads_s / len(self._reads) + tokens * company * costs.position_s
        if rereads:
            # A wrong token costs a read of those before it, except where it is the last: nothing was read
            # after it. One more token ends that exception for the last one.
            *earlier, last = (p * costs.reread_s(at) for at, p in enumerate(self._misses_at, 1))
            spent, more = spent + sum(earlier), more + last
        return self._right * tokens * spent < self._expected * more

    def learn(self, accepted: int) -> None:
        policy = self._policy
        for index, confidence in enumerate(self._confidences[: accepted + 1]):
            at = bisect_right(_CLASSES, confidence)
            self._misses_expected += policy.missed[at] / policy.seen[at]
            self._misses += index == accepted
            policy.seen[at] += 1
            policy.missed[at] += index == accepted
        count = len(self._confidences)
        hit = accepted == count
        self._limit = min(_GROWTH * count if hit else max(_GROWTH, accepted), policy.max_block)
