"""What one request counts: its checks and its drafts."""

from __future__ import annotations

from dataclasses import dataclass, field


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
