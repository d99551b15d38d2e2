"""Counts while they are being counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.counts import Counts
from vt_core.profile.tally import Tally

Tallies = Generator[tuple[int, Tally], None, None]
"""Tallies in the order of the rows, each with the number of its file."""


class Running:
    """Counts that grow in place, and how far in the files they have come."""

    def __init__(self, start: Counts, position: Position) -> None:
        self.position = position
        self._start = start
        self._needed, self._written = start.needed.copy(), start.written.copy()
        self._totals = Counter(examples=0, tokens=0, copied=0, bad_rows=0)
        self._files: Counter[str] = Counter()
        for entry in start.source:
            self._files[entry["file"]] += entry["rows"]

    @property
    def rows(self) -> int:
        """Rows so far, without blank lines."""
        return sum(self._files.values())

    def add(self, file: int, tally: Tally) -> None:
        """Adds the next rows of the files."""
        done = self.position.rows if file == self.position.file else 0
        self.position = Position(file, done + tally.rows)
        for total, ids in ((self._needed, tally.needed), (self._written, tally.written)):
            total += np.bincount(np.asarray(ids), minlength=len(total))
        self._files[Path(tally.file).name] += tally.rows - tally.blank_rows
        for key in self._totals:
            self._totals[key] += getattr(tally, key)

    def counts(self) -> Counts:
        """What has been counted so far."""
        totals = {key: getattr(self._start, key) + value for key, value in self._totals.items()}
        source = tuple({"file": name, "rows": rows} for name, rows in sorted(self._files.items()))
        return replace(
            self._start, needed=self._needed.copy(), written=self._written.copy(), source=source, **totals
        )


def accumulate(
    tallies: Callable[[Running], Tallies],
    start: Counts,
    checkpoint: Checkpoint | None,
    on_rows: Callable[[int], object],
) -> Counts:
    """Adds up the tallies that come after what `checkpoint` holds, or after `start`.

    Saves the checkpoint from time to time, and where it is interrupted.
    """
    running = Running(*((checkpoint.load() if checkpoint is not None else None) or (start, Position())))
    begun = running.position
    try:
        with closing(tallies(running)) as coming:
            for file, tally in coming:
                running.add(file, tally)
                if checkpoint is not None and checkpoint.due:
                    checkpoint.save(running.counts(), running.position)
                on_rows(tally.rows)
    finally:
        if checkpoint is not None and running.position != begun:
            checkpoint.save(running.counts(), running.position)
    return running.counts()
