"""Counting a corpus: processes tokenize chunks of rows, and their counts are added up in the files' order."""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from vt_core.errors import DataError
from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.counts import Counts
from vt_core.profile.layout import Layout
from vt_core.profile.readers import Chunk, read_chunks
from vt_core.profile.tally import Tallier, Tally, load_tokenizer

WAITING_CHUNKS = 2
"""Chunks that wait for each process: none has to pause, and memory does not grow with the corpus."""

SMALL_BYTES = 4 * 1024 * 1024
"""Files that together are smaller are counted before other processes would have started."""


def count_files(
    files: Sequence[str | Path],
    tokenizer_json: str | Path,
    start: Counts,
    layout: Layout,
    *,
    processes: int = 1,
    skip_bad: bool = False,
    checkpoint: Checkpoint | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Counts:
    """Counts of corpus files, added to `start`.

    The result does not depend on `processes`. With a `checkpoint` the count goes on where an earlier one was
    interrupted. `on_rows` is told of every few hundred rows how many they were.

    Raises:
        DataError: a file or a row that cannot be used, named by file and line.
        TokenizerError: the tokenizer cannot be read.
    """
    found = checkpoint.load() if checkpoint is not None else None
    running = _Running(*(found or (start, Position())))
    make = partial(_make_tallier, tokenizer_json, layout, skip_bad)
    chunks = _chunks(files, running.position)
    try:
        with closing(_in_order(chunks, make, processes)) as tallies:
            for file, tally in tallies:
                running.add(file, tally)
                if checkpoint is not None and checkpoint.due:
                    checkpoint.save(running.counts(), running.position)
                on_rows(tally.rows)
    finally:
        if checkpoint is not None and running.position != Position():
            checkpoint.save(running.counts(), running.position)
    return running.counts()


def sensible_processes(files: Sequence[str | Path]) -> int:
    """As many processes as there are processors to run on, or one where the files are small."""
    if sum(Path(file).stat().st_size for file in files if Path(file).is_file()) < SMALL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Running:
    """Counts that grow in place."""

    def __init__(self, start: Counts, position: Position) -> None:
        self.position = position
        self._start = start
        self._needed, self._written = start.needed.copy(), start.written.copy()
        self._totals = Counter(examples=0, tokens=0, copied=0, bad_rows=0)
        self._files: Counter[str] = Counter()
        for entry in start.source:
            self._files[entry["file"]] += entry["rows"]

    def add(self, file: int, tally: Tally) -> None:
        done = self.position.rows if file == self.position.file else 0
        self.position = Position(file, done + tally.rows)
        self._needed += np.bincount(tally.needed, minlength=len(self._needed))
        self._written += np.bincount(tally.written, minlength=len(self._written))
        self._files[Path(tally.file).name] += tally.rows - tally.blank_rows
        for key in self._totals:
            self._totals[key] += getattr(tally, key)

    def counts(self) -> Counts:
        totals = {key: getattr(self._start, key) + value for key, value in self._totals.items()}
        source = tuple({"file": name, "rows": rows} for name, rows in sorted(self._files.items()))
        return replace(
            self._start, needed=self._needed.copy(), written=self._written.copy(), source=source, **totals
        )


def _chunks(files: Sequence[str | Path], position: Position) -> Iterator[tuple[int, Chunk]]:
    for index, file in enumerate(files):
        if index >= position.file:
            skip = position.rows if index == position.file else 0
            for chunk in read_chunks(file, skip):
                yield index, chunk


def _in_order(
    chunks: Iterator[tuple[int, Chunk]], make: Callable[[], Tallier], processes: int
) -> Generator[tuple[int, Tally], None, None]:
    """Tallies of chunks in the chunks' order; raises what a tally raises, or DataError for a dead process."""
    if processes == 1:
        tallier = make()
        yield from ((file, tallier(chunk)) for file, chunk in chunks)
        return
    # Not forked: the tokenizers library and every framework have threads that a fork would lose.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (make,))
    waiting: deque[tuple[int, Future[Tally]]] = deque()
    try:
        for file, chunk in chunks:
            waiting.append((file, pool.submit(_tally, chunk)))
            if len(waiting) > processes * WAITING_CHUNKS:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(file: int, future: Future[Tally]) -> tuple[int, Tally]:
    try:
        return file, future.result()
    except BrokenProcessPool:
        raise DataError(
            "A counting process was killed, probably for want of memory; use fewer with --processes."
        ) from None


def _make_tallier(tokenizer_json: str | Path, layout: Layout, skip_bad: bool) -> Tallier:
    return Tallier(load_tokenizer(tokenizer_json), layout, skip_bad)


_tallier: Tallier | None = None


def _start_process(make: Callable[[], Tallier]) -> None:
    global _tallier
    # The parent hears of Ctrl-C too, and ends its processes in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tallier = make()


def _tally(chunk: Chunk) -> Tally:
    assert _tallier is not None
    return _tallier(chunk)
