"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from vt_core.errors import OptionError


class StopMatcher:
    """Passes text on until a stop string appears. Holds back text that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Prepare to match.

        Raises:
            OptionError: a stop string is empty.
        """
        if any(stop == "" for stop in stops):
            raise OptionError("a stop string is empty; give at least one character, or leave it out")
        self._stops = stops
        self._held = ""
        self.stopped = False  #: whether a stop string has appeared

    def push(self, text: str) -> str:
        """Add text and return what can be shown now: everything before the first stop string."""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Return the text that is still held back, when the answer ends without a stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
