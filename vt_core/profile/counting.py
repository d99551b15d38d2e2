"""Counts a corpus: processes tokenize chunks of rows, whose counts are added up in the order of the files."""

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
from vt_core.profile.accumulator import CountedChunks, accumulate
from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.chunk_counts import ChunkCounter, ChunkCounts
from vt_core.profile.counts import Counts
from vt_core.profile.readers import Chunk, read_chunks
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.tokenizer import load_tokenizer

#: Chunks that wait per process: enough that none idles, few enough that memory stays bounded.
WAITING_CHUNKS = 2

#: Bytes of a corpus that one process counts before other processes would have started.
SMALL_BYTES = 4 * 1024 * 1024


def count_files(
    files: Sequence[str | Path],
    tokenizer_json: str | Path,
    start: Counts,
    row_format: RowFormat,
    *,
    processes: int = 1,
    skip_bad: bool = False,
    checkpoint: Checkpoint | None = None,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Counts:
    """Counts of corpus files, added to `start`. The result does not depend on `processes`.

    Args:
        files: corpus files.
        tokenizer_json: the tokenizer.
        start: counts to add to.
        row_format: fields of the rows and the prompt around the input.
        processes: how many processes tokenize.
        skip_bad: skip and count rows that cannot be used.
        checkpoint: where to save and resume; None for neither.
        on_rows: called with the number of rows of each finished chunk.

    Raises:
        DataError: a file or a row cannot be used. The message names the file and the line.
        TokenizerError: the tokenizer cannot be read.
    """
    make = partial(_make_counter, tokenizer_json, row_format, skip_bad)
    return accumulate(
        lambda total: _count_in_order(
            chunks_from(files, total.position, row_format.columns), make, processes
        ),
        start,
        checkpoint,
        on_rows,
    )


def default_processes(files: Sequence[str | Path]) -> int:
    """One process for small files, else one per usable core."""
    if sum(Path(file).stat().st_size for file in files if Path(file).is_file()) < SMALL_BYTES:
        return 1
    return usable_cores()


def chunks_from(
    files: Sequence[str | Path], position: Position, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, Chunk]]:
    """Chunks of the rows after a position, each with the index of its file. See `read_chunks`."""
    for index, file in enumerate(files):
        if index >= position.file:
            skip = position.rows if index == position.file else 0
            for chunk in read_chunks(file, skip, columns):
                yield index, chunk


def _count_in_order(
    chunks: Iterator[tuple[int, Chunk]], make: Callable[[], ChunkCounter], processes: int
) -> CountedChunks:
    """Counts of chunks, in the order of the chunks.

    Raises what counting raises, and DataError for a worker process that died.
    """
    if processes == 1:
        counter = make()
        yield from ((file, counter(chunk)) for file, chunk in chunks)
        return
    # Spawned, not forked: a fork would lose the threads of the tokenizers library and of frameworks.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (make,))
    waiting: deque[tuple[int, Future[ChunkCounts]]] = deque()
    try:
        for file, chunk in chunks:
            waiting.append((file, pool.submit(_count_chunk, chunk)))
            if len(waiting) > processes * WAITING_CHUNKS:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    except BrokenProcessPool:
        raise DataError(
            "A counting process was killed, probably because memory ran out; use fewer with --processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _result(file: int, future: Future[ChunkCounts]) -> tuple[int, ChunkCounts]:
    return file, future.result()


def _make_counter(tokenizer_json: str | Path, row_format: RowFormat, skip_bad: bool) -> ChunkCounter:
    return ChunkCounter(load_tokenizer(tokenizer_json), row_format, skip_bad)


#: The counter of a worker process, or the error that making it raised.
_counter: ChunkCounter | VtError | None = None


def _start_process(make: Callable[[], ChunkCounter]) -> None:
    global _counter
    # Ctrl-C reaches the parent too, which stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        _counter = make()
    except VtError as error:
        # An error raised here would look like a process that was killed.
        _counter = error


def _exit_with_parent() -> None:
    """Exit when the parent was killed: it cannot stop its workers, which would wait forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _count_chunk(chunk: Chunk) -> ChunkCounts:
    if isinstance(_counter, ChunkCounter):
        return _counter(chunk)
    raise _counter or RuntimeError("this process was not started as a counting process")
