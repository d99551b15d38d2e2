"""How often drafted tokens are right, learned over the requests of a model and a task."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

#: Bounds of the classes of a corpus share.
_SHARES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
#: Most repetitions that the class of a context n-gram tells apart.
MAX_RUN = 3
#: Weight of the prior, in tokens.
_PRIOR_WEIGHT = 4.0
#: Weight at which a class forgets half of what it saw, so that it follows a change of the texts.
_MEMORY = 1000.0
#: Tokens that `Acceptance.recent` looks back on.
_RECENT = 32


class Kind(NamedTuple):
    """A class of drafted tokens. Tokens of one class are about equally often right."""

    source: str  #: "corpus", "context" or "both", where they agree
    order: int  #: tokens of the longest context that matched
    level: int  #: class of the corpus share; for "context", times in a row that the token followed


def corpus_kind(order: int, share: float) -> Kind:
    return Kind("corpus", order, bisect_right(_SHARES, share))


def context_kind(order: int, run: int) -> Kind:
    return Kind("context", order, min(run, MAX_RUN))


def both_kind(order: int, share: float) -> Kind:
    return Kind("both", order, bisect_right(_SHARES, share))


class Acceptance:
    """Learned rates: one object for each model and set of tables. Each class has a Beta prior."""

    def __init__(self) -> None:
        self._seen: dict[Kind, tuple[float, float]] = {}
        #: The full id that ended the last text, if one did. Models have several such ids, each of which ends
        #: texts of another kind, such as answers of a chat.
        self.end_id: int | None = None
        #: Share of the last tokens, about `_RECENT` of them, that a draft would have begun with. A loop that
        #: must choose before the text is known between drafting and queueing a step ahead can ask it.
        self.recent = 0.5

    def rate(self, kind: Kind) -> float:
        """Probability that the next token of this class is right."""
        right, seen = self._seen.get(kind) or _prior(kind)
        return right / seen

    def learn(self, kind: Kind | None, right: bool) -> None:
        """Note whether a token of this class was right, drafted or not; None where there was no proposal."""
        self.recent += (right - self.recent) / _RECENT
        if kind is None:
            return
        before, seen = self._seen.get(kind) or _prior(kind)
        if seen >= _MEMORY:
            before, seen = before / 2, seen / 2
        self._seen[kind] = before + right, seen + 1


def _prior(kind: Kind) -> tuple[float, float]:
    """Assumed right tokens, and their number."""
    if kind.source == "context":
        rate = (0.15, 0.3, 0.45)[kind.level - 1] + 0.05 * min(kind.order, 4)
    else:
        rate = (0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9)[kind.level] + 0.05 * (kind.source == "both")
    return rate * _PRIOR_WEIGHT, _PRIOR_WEIGHT
