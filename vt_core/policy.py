"""When to stop decoding on the reduced head and ask the full one.

Decoding a block costs ``n`` steps and one reading of the full head. The longer the block, the more positions
share that reading; but everything behind a wrong token is wasted. A block is ended as soon as one more step
is expected to bring fewer tokens per second than the block brings by now: the stopping rule of renewal
theory, which needs no threshold, only how likely the next token is wrong and what a step and a reading cost.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

#: positions; verification of more costs more than it shares (product of 32: 1.1 times that of 1)
MAX_BLOCK = 32

#: Bounds of the classes of confidence (probability of the reduced head's choice) that misses are counted in,
#: and what is believed of them before anything was seen: of Qwen2.5-Coder's tokens on GSM8K with the rank
#: prior 1.6 % are misses, nearly all of them where the reduced head was unsure.
_CLASSES = (0.2, 0.35, 0.5, 0.7, 0.9, 0.98)
_BELIEVED = (0.20, 0.12, 0.06, 0.03, 0.015, 0.005, 0.002)
_BELIEF = 8.0  #: weight of that belief, in tokens
_RATE = 0.2  #: share of a new measurement in a remembered cost


@dataclass
class BlockPolicy:
    """Block lengths for one model, learning over its requests. Costs in seconds of the caller's clock."""

    max_block: int = MAX_BLOCK
    step_s: float | None = None
    verify_s: float | None = None
    _seen: list[float] = field(default_factory=lambda: [_BELIEF] * len(_BELIEVED))
    _missed: list[float] = field(default_factory=lambda: [_BELIEF * share for share in _BELIEVED])
    limit: int = 1  #: positions that the next block may have

    def begin(self) -> None:
        """A request begins: its first token is verified, and so streamed, at once."""
        self.limit = 1

    def block(self) -> Block:
        """Start a block."""
        return Block(self)

    def miss_rate(self, confidence: float) -> float:
        """How likely a token of this confidence is not the full head's."""
        at = bisect_right(_CLASSES, confidence)
        return self._missed[at] / self._seen[at]

    def learn(self, confidences: list[float], accepted: int) -> None:
        """A block was verified: its first ``accepted`` tokens were right, the next one, if any, was wrong."""
        for index, confidence in enumerate(confidences[: accepted + 1]):
            at = bisect_right(_CLASSES, confidence)
            self._seen[at] += 1
            self._missed[at] += index == accepted
        hit = accepted == len(confidences)
        self.limit = min(2 * len(confidences), self.max_block) if hit else max(1, accepted)

    def measured(self, *, step_s: float | None = None, verify_s: float | None = None) -> None:
        """A step, or a verification, took so long."""
        if step_s is not None:
            self.step_s = _smooth(self.step_s, step_s)
        if verify_s is not None:
            self.verify_s = _smooth(self.verify_s, verify_s)


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
        if policy.step_s is None or policy.verify_s is None:
            return False
        spent = n * policy.step_s + policy.verify_s
        return self._right * spent < self._expected * policy.step_s


def _smooth(old: float | None, new: float) -> float:
    # The first measurement holds what runs only once (allocation, page cache), so it must not be kept for
    # long.
    return new if old is None else old + _RATE * (new - old)
