"""Adds up the counts of chunks, with checkpoints."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vt_core.errors import DataError
from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.counts import Counts
from vt_core.profile.ngram_counts import RECORD_BYTES, NgramAccumulator, NgramCounts

if TYPE_CHECKING:
    import pyarrow

#: Chunks in the order of the rows: the index of the file, the rows with blank lines, and the counts.
CountedChunks = Generator[tuple[int, int, Iterable["pyarrow.RecordBatch"]], None, None]


class CountAccumulator:
    """Counts that grow in place, and the position in the files that they have reached."""

    def __init__(self, start: Counts, position: Position | None = None) -> None:
        self.position = position or Position()
        self._start = start
        self._needed, self._written = start.needed.copy(), start.written.copy()
        self._ngrams = NgramAccumulator(start.ngrams)
        self._totals: Counter[str] = Counter()
        self._files: Counter[str] = Counter()
        for entry in start.source:
            self._files[entry["file"]] += entry["rows"]

    @property
    def rows(self) -> int:
        """Rows so far, without blank lines."""
        return sum(self._files.values())

    def advance(self, file: int, rows: int) -> None:
        """Move the position by the next `rows` rows of the file with index `file`, blank lines included."""
        done = self.position.rows if file == self.position.file else 0
        self.position = Position(file, done + rows)

    def add(self, counts: pyarrow.RecordBatch) -> None:
        """Add counts, as `count_batches` yields them. Raises DataError for an error among them."""
        counts = self._add_ngrams(counts)
        kinds, keys = counts.column("kind").to_pylist(), counts.column("key").to_pylist()
        needed, written = (counts.column(name).to_numpy() for name in ("needed", "written"))
        ids = [index for index, kind in enumerate(kinds) if kind == "ids"]
        at = np.frombuffer(b"".join(map(keys.__getitem__, ids)), "<i4")
        np.add.at(self._needed, at, needed[ids])
        np.add.at(self._written, at, written[ids])
        for kind, key, value in zip(kinds, keys, written.tolist(), strict=True):
            if kind == "error":
                raise DataError(os.fsdecode(key))
            if kind == "total":
                self._totals[key.decode()] += value
            elif kind == "file":
                self._files[Path(os.fsdecode(key)).name] += value

    def _add_ngrams(self, counts: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
        """Add the n-grams among some counts, and return the other ones."""
        import pyarrow.compute as pc

        found = pc.equal(counts.column("kind"), "ngrams")
        ngrams = counts.filter(found)
        if ngrams.num_rows == 0:
            return counts
        records = np.frombuffer(b"".join(ngrams.column("key").to_pylist()), np.uint8)
        self._ngrams.add(
            NgramCounts.from_records(
                records.reshape(-1, RECORD_BYTES), ngrams.column("written").to_numpy(), self._ngrams.longest
            )
        )
        return counts.filter(pc.invert(found))

    def counts(self) -> Counts:
        """A copy of the counts so far."""
        totals = {name: getattr(self._start, name) + value for name, value in self._totals.items()}
        source = tuple({"file": name, "rows": rows} for name, rows in sorted(self._files.items()))
        return replace(
            self._start,
            needed=self._needed.copy(),
            written=self._written.copy(),
            source=source,
            ngrams=self._ngrams.total(),
            **totals,
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
            for file, rows, counted in chunks:
                for counts in counted:
                    total.add(counts)
                total.advance(file, rows)
                if checkpoint is not None and checkpoint.due:
                    checkpoint.save(total.counts(), total.position)
                on_rows(rows)
    finally:
        if checkpoint is not None and total.position != begun:
            checkpoint.save(total.counts(), total.position)
    return total.counts()
