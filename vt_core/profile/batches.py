"""Corpus rows as Arrow record batches: what `count_batches` reads, on this machine and on a cluster.

A batch holds either whole lines of JSON, in one binary column, or the fields of its rows, one column each.
The other columns say where the rows come from. Their names start with two underscores, so that they hide no
field of a corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from vt_core.profile.parquet import python_rows
from vt_core.profile.readers import CHUNK_BYTES, ArrowChunk, Chunk, Row

#: The file of each row, text, or binary because a name on Linux need not be text.
FILE = "__file"
#: Whole lines of JSON, binary.
JSON = "__json"
#: What a column of row numbers counts; the column is optional.
NUMBERS = {"__line": "line", "__row": "row", "__byte": "byte"}

#: Characters of a row that a message shows where its number is not known.
SHOWN = 60


def to_batch(chunk: Chunk | ArrowChunk) -> pa.RecordBatch:
    """A chunk of a local file as a batch."""
    columns: dict[str, Any] = {
        FILE: pa.array([os.fsencode(chunk.file)] * len(chunk.numbers), pa.binary()),
        f"__{chunk.unit}": pa.array(chunk.numbers, pa.int64()),
    }
    if isinstance(chunk, ArrowChunk):
        columns.update(zip(chunk.batch.schema.names, chunk.batch.columns, strict=True))
    elif isinstance(chunk.rows[0], bytes):
        columns[JSON] = pa.array(chunk.rows, pa.binary())
    else:
        # A CSV row with too many values keeps the rest as a list under None.
        rows: Sequence[Any] = chunk.rows
        names = dict.fromkeys(name for row in rows for name in row if name is not None)
        columns.update({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})
    return pa.RecordBatch.from_pydict(columns)


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in slices of about `CHUNK_BYTES`, so that memory stays bounded whoever made the batch."""
    rows = max(1, batch.num_rows * CHUNK_BYTES // max(batch.nbytes, CHUNK_BYTES))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def rows_of(batch: pa.RecordBatch) -> Sequence[Row]:
    """The rows of a batch. Raises DataError for a value that Python cannot hold."""
    lines: list[Any] = [None] * batch.num_rows
    if JSON in batch.schema.names:
        lines = batch.column(JSON).to_pylist()
    if None not in lines:
        return lines
    fields = batch.select([name for name in batch.schema.names if not name.startswith("__")])
    rows = python_rows(fields, files_of(batch)[0])
    # An engine may put rows of several formats in one batch.
    return [row if line is None else line for line, row in zip(lines, rows, strict=True)]


def files_of(batch: pa.RecordBatch) -> list[str]:
    """The file of each row."""
    return [os.fsdecode(file) for file in batch.column(FILE).to_pylist()]


def where(batch: pa.RecordBatch, index: int, row: Row) -> str:
    """File and number of a row, for messages. A row without a number is shown by its start."""
    file = files_of(batch.slice(index, 1))[0]
    for column, unit in NUMBERS.items():
        if column in batch.schema.names and (number := batch.column(column)[index].as_py()) is not None:
            return f"{file}, {unit} {number}"
    text = row.decode("utf-8", "replace") if isinstance(row, bytes) else str(row)
    return f"{file}, the row that starts with {text[:SHOWN]}"
