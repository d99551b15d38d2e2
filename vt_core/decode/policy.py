"""When to stop decoding on the reduced head and ask the full one.

Decoding a block costs ``n`` steps and one reading of the full head. The longer the block, the more positions
share that reading; but everything behind a wrong token is wasted. A block is ended as soon as one more step
is expected to bring fewer tokens per second than the block brings by now: the stopping rule of renewal
theory, which needs no threshold, only how likely the next token is wrong and what a step and a reading cost.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from vt_core.decode.costs import Costs

#: positions; verification of more costs more than it shares (product of 32: 1.1 times that of 1)
MAX_BLOCK = 32

#: Bounds of the classes of confidence (probability of the reduced head's choice) that misses are counted in,
#: and what is believed of them before anything was seen: of Qwen2.5-Coder's tokens on GSM8K with the rank
#: prior 1.6 % are misses, nearly all of them where the reduced head was unsure.
_CLASSES = (0.2, 0.35, 0.5, 0.7, 0.9, 0.98)
_BELIEVED = (0.20, 0.12, 0.06, 0.03, 0.015, 0.005, 0.002)
_BELIEF = 20.0  #: weight of that belief, in tokens
#: Misses that a request must have, beyond those expected, to count as twice as hard as others.
_EVENNESS = 2.0
#: How much longer than the last block, all right, the next one may be; and how long after a miss at least.
#: What really bounds a block is the rule above: with 2 instead of 8 Gemma 3 spent 5 % more time.
_GROWTH = 8


@dataclass
class BlockPolicy:
    """Block lengths for one model, learning over its requests."""

    max_block: int = MAX_BLOCK
    costs: Costs = field(default_factory=Costs)
    _seen: list[float] = field(default_factory=lambda: [_BELIEF] * len(_BELIEVED))
    _missed: list[float] = field(default_factory=lambda: [_BELIEF * share for share in _BELIEVED])
    limit: int = 1  #: positions that the next block may have
    _expected: float = 0.0  #: misses among the tokens of this request, by their classes
    _found: int = 0  #: misses that there were

    def begin(self) -> None:
        """A request begins: its first token is verified, and so streamed, at once."""
        self.limit = 1
        self._expected, self._found = 0.0, 0

    def block(self) -> Block:
        """Start a block."""
        return Block(self)

    def miss_rate(self, confidence: float) -> float:
        """How likely a token of this confidence is not the full head's: as often as in all requests, times
        how much more, or less, often than that this request has missed.
        """
        at = bisect_right(_CLASSES, confidence)
        here = (self._found + _EVENNESS) / (self._expected + _EVENNESS)
        return min(1.0, here * self._missed[at] / self._seen[at])

    def learn(self, confidences: list[float], accepted: int) -> None:
        """A block was verified: its first ``accepted`` tokens were right, the next one, if any, was wrong."""
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
        self._expected = 0.0  #: tokens that the block brings if it ends here, the rescue included
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
