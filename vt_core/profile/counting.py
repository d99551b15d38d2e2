"""Counting a corpus: processes tokenize chunks of rows, and their counts are added up in the files' order."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

from vt_core.errors import DataError, VtError
from vt_core.host import usable_cores
from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.counts import Counts
from vt_core.profile.layout import Layout
from vt_core.profile.readers import Chunk, read_chunks
from vt_core.profile.running import Tallies, accumulate
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
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Counts:
    """Counts of corpus files, added to `start`.

    The result does not depend on `processes`. With a `checkpoint` the count goes on where an earlier one was
    interrupted. `on_rows` is told of every few hundred rows how many they were.

    Raises:
        DataError: a file or a row that cannot be used, named by file and line.
        TokenizerError: the tokenizer cannot be read.
    """
    make = partial(_make_tallier, tokenizer_json, layout, skip_bad)
    return accumulate(
        lambda running: _in_order(chunks_from(files, running.position), make, processes),
        start,
        checkpoint,
        on_rows,
    )


def sensible_processes(files: Sequence[str | Path]) -> int:
    """As many processes as there are processors to run on, or one where the files are small."""
    if sum(Path(file).stat().st_size for file in files if Path(file).is_file()) < SMALL_BYTES:
        return 1
    return usable_cores()


def chunks_from(files: Sequence[str | Path], position: Position) -> Iterator[tuple[int, Chunk]]:
    """The rows of files behind a position, each chunk with the number of its file; raises DataError."""
    for index, file in enumerate(files):
        if index >= position.file:
            skip = position.rows if index == position.file else 0
            for chunk in read_chunks(file, skip):
                yield index, chunk


def _in_order(chunks: Iterator[tuple[int, Chunk]], make: Callable[[], Tallier], processes: int) -> Tallies:
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
    except BrokenProcessPool:
        raise DataError(
            "A counting process was killed, probably for want of memory; use fewer with --processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _result(file: int, future: Future[Tally]) -> tuple[int, Tally]:
    return file, future.result()


def _make_tallier(tokenizer_json: str | Path, layout: Layout, skip_bad: bool) -> Tallier:
    return Tallier(load_tokenizer(tokenizer_json), layout, skip_bad)


_tallier: Tallier | VtError | None = None


def _start_process(make: Callable[[], Tallier]) -> None:
    global _tallier
    # The parent hears of Ctrl-C too, and ends its processes in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        _tallier = make()
    except VtError as error:
        # Raised here it would look like a process that was killed.
        _tallier = error


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes, and they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tally(chunk: Chunk) -> Tally:
    if isinstance(_tallier, Tallier):
        return _tallier(chunk)
    raise _tallier or RuntimeError("the process was not started as one that counts")
