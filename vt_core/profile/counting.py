"""Counts a corpus: processes tokenize chunks of rows, whose counts are added up in the order of the files."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import pyarrow as pa

from vt_core.errors import DataError
from vt_core.host import usable_cores
from vt_core.profile.accumulator import CountedChunks, accumulate
from vt_core.profile.batch_counts import ExampleReader, count_batches
from vt_core.profile.batches import to_batch
from vt_core.profile.checkpoint import Checkpoint, Position
from vt_core.profile.counts import Counts
from vt_core.profile.readers import WHOLE, ArrowChunk, Chunk, read_chunks

#: Chunks that wait per process: enough that none idles, few enough that memory stays bounded.
WAITING_CHUNKS = 2

#: Bytes of a corpus that one process counts before other processes would have started.
SMALL_BYTES = 4 * 1024 * 1024


def count_files(
    files: Sequence[str | Path],
    reader: ExampleReader,
    start: Counts,
    *,
    processes: int = 1,
    spans: Sequence[range] | None = None,
    checkpoint: Checkpoint | None = None,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Counts:
    """Counts of corpus files, added to `start`. The result does not depend on `processes`.

    Args:
        files: corpus files.
        reader: turns rows into examples.
        start: counts to add to.
        processes: how many processes tokenize.
        spans: for each file, the bytes in which the rows to count start; see `read_chunks`. None: all.
        checkpoint: where to save and resume; None for neither.
        on_rows: called with the number of rows of each finished chunk.

    Raises:
        DataError: a file or a row cannot be used. The message names the file and the line.
    """
    columns = reader.row_format.columns
    return accumulate(
        lambda total: _count_in_order(chunks_from(files, total.position, columns, spans), reader, processes),
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
    files: Sequence[str | Path],
    position: Position,
    columns: Sequence[str] | None = None,
    spans: Sequence[range] | None = None,
) -> Iterator[tuple[int, Chunk | ArrowChunk]]:
    """Chunks of the rows after a position, each with the index of its file. See `read_chunks`."""
    for index, file in enumerate(files):
        if index >= position.file:
            skip = position.rows if index == position.file else 0
            for chunk in read_chunks(file, skip, columns, span=spans[index] if spans else WHOLE):
                yield index, chunk


def _count_in_order(
    chunks: Iterator[tuple[int, Chunk | ArrowChunk]], reader: ExampleReader, processes: int
) -> CountedChunks:
    """Counts of chunks, in the order of the chunks. Raises DataError for a worker process that died."""
    batches = ((file, to_batch(chunk)) for file, chunk in chunks)
    if processes == 1:
        yield from ((file, batch.num_rows, count_batches([batch], reader)) for file, batch in batches)
        return
    # Spawned, not forked: a fork would lose the threads of the tokenizers library and of frameworks.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (reader,))
    waiting: deque[tuple[int, int, Future[list[pa.RecordBatch]]]] = deque()
    try:
        for file, batch in batches:
            waiting.append((file, batch.num_rows, pool.submit(_count_batch, batch)))
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


def _result(
    file: int, rows: int, future: Future[list[pa.RecordBatch]]
) -> tuple[int, int, list[pa.RecordBatch]]:
    return file, rows, future.result()


#: The reader of a worker process.
_reader: ExampleReader | None = None


def _start_process(reader: ExampleReader) -> None:
    global _reader
    # Ctrl-C reaches the parent too, which stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _reader = reader


def _exit_with_parent() -> None:
    """Exit when the parent was killed: it cannot stop its workers, which would wait forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _count_batch(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    if _reader is None:
        raise RuntimeError("this process was not started as a counting process")
    return list(count_batches([batch], _reader))
