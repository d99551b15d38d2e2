"""When to stop decoding on the reduced head and verify the block with the full one.

A block costs ``n`` steps and one read of the full head. In a longer block more positions share that read, but
all steps after a wrong token are wasted. A block ends as soon as one more step is expected to bring fewer
tokens per second than the block brings so far. This is the stopping rule of renewal theory. It needs no
threshold, only the probability that the next token is wrong and the costs of a step and a read.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

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


@dataclass
class BlockPolicy:
    """Chooses block lengths for one model, and learns over its requests."""

    max_block: int = MAX_BLOCK
    costs: Costs = field(default_factory=Costs)
    _seen: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT] * len(_PRIOR))
    _missed: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT * share for share in _PRIOR])
    limit: int = 1  #: most positions in the next block
    _expected: float = 0.0  #: misses to expect among the tokens of this request, by their classes
    _found: int = 0  #: misses of this request so far

    def begin(self) -> None:
        """Start a request. Its first token is verified at once, so that it streams at once."""
        self.limit = 1
        self._expected, self._found = 0.0, 0

    def block(self) -> Block:
        """Start a block."""
        return Block(self)

    def miss_rate(self, confidence: float) -> float:
        """Probability that a token of this confidence is not the full head's: the rate of all requests, times
        how this request compares with them.
        """
        at = bisect_right(_CLASSES, confidence)
        here = (self._found + _EVENNESS) / (self._expected + _EVENNESS)
        return min(1.0, here * self._missed[at] / self._seen[at])

    def learn(self, confidences: list[float], accepted: int) -> None:
        """Note a verified block: its first ``accepted`` tokens were right, the next one, if any, wrong."""
        for index, confidence in enumerate(confidences[: accepted + 1]):
            at = bisect_right(_CLASSES, confidence)
            self._expected += self._missed[at] / self._seen[at]
            self._found += index == accepted
            self._seen[at] += 1
            self._missed[at] += index == accepted
        hit = accepted == len(confidences)
        self.limit = min(_GROWTH * len(confidences) if hit else max(_GROWTH, accepted), self.max_block)


class Block:
    """Decides after each token whether the block goes on."""

    def __init__(self, policy: BlockPolicy) -> None:
        self._policy = policy
        self._right = 1.0  #: probability that every token so far is right
        self._expected = 0.0  #: expected tokens of the block if it ends here, the rescue included
        self.confidences: list[float] = []

    def push(self, confidence: float) -> bool:
        """Note a token; True when the block should be verified now."""
        policy = self._policy
        self._expected += self._right
        self._right *= 1 - policy.miss_rate(confidence)
        self.confidences.append(confidence)
        n = len(self.confidences)
        if n >= policy.limit:
            return True
        costs = policy.costs
        if not costs.known:
            return False
        spent = n * costs.step_s + costs.verify_s(n)
        return self._right * spent < self._expected * (costs.step_s + costs.position_s)
