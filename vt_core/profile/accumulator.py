"""Adds up the counts of chunks, with checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.chunk_counts import ChunkCounts
from vt_core.profile.counts import Counts

#: Counts of chunks in the order of the rows, each with the index of its file.
CountedChunks = Generator[tuple[int, ChunkCounts], None, None]


class CountAccumulator:
    """Counts that grow in place, and the position in the files that they have reached."""

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

    def add(self, file: int, chunk: ChunkCounts) -> None:
        """Add the next chunk of the file with index `file`."""
        done = self.position.rows if file == self.position.file else 0
        self.position = Position(file, done + chunk.rows)
        for total, ids in ((self._needed, chunk.needed), (self._written, chunk.written)):
            total += np.bincount(np.asarray(ids), minlength=len(total))
        self._files[Path(chunk.file).name] += chunk.rows - chunk.blank_rows
        for key in self._totals:
            self._totals[key] += getattr(chunk, key)

    def counts(self) -> Counts:
        """A copy of the counts so far."""
        totals = {key: getattr(self._start, key) + value for key, value in self._totals.items()}
        source = tuple({"file": name, "rows": rows} for name, rows in sorted(self._files.items()))
        return replace(
            self._start, needed=self._needed.copy(), written=self._written.copy(), source=source, **totals
        )


def accumulate(
    count_after: Callable[[CountAccumulator], CountedChunks],
    start: Counts,
    checkpoint: Checkpoint | None,
    on_rows: Callable[[int], object],
) -> Counts:
    """Add up the counts of all chunks, from the state in `checkpoint` if there is one, else from `start`.

    Saves the checkpoint at intervals, and once more when counting ends or is interrupted.

    Args:
        count_after: counts the chunks after the accumulator's position.
        start: counts to add to.
        checkpoint: where to save and resume; None for neither.
        on_rows: called with the number of rows of each chunk.
    """
    saved = checkpoint.load() if checkpoint is not None else None
    total = CountAccumulator(*(saved or (start, Position())))
    begun = total.position
    try:
        with closing(count_after(total)) as chunks:
            for file, chunk in chunks:
                total.add(file, chunk)
                if checkpoint is not None and checkpoint.due:
                    checkpoint.save(total.counts(), total.position)
                on_rows(chunk.rows)
    finally:
        if checkpoint is not None and total.position != begun:
            checkpoint.save(total.counts(), total.position)
    return total.counts()
