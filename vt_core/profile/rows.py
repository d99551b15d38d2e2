"""Rows of corpus files one at a time, parsed, with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vt_core.errors import DataError
from vt_core.profile.readers import Row, read_chunks
from vt_core.profile.row_format import BadRow

T = TypeVar("T")


def each_row(
    files: Sequence[str | Path], make: Callable[[Any], T], columns: Sequence[str] | None = None
) -> Iterator[T]:
    """Apply `make` to every row of some files, except blank lines.

    Args:
        files: corpus files, read in order.
        make: turns a row into a value; raises BadRow for a row that it cannot use.
        columns: the only top-level columns to read from Parquet; None reads all.

    Raises:
        DataError: a file cannot be read, or `make` raised BadRow. The message names the file and the line.
    """
    for _, made in each_row_or_error(files, make, columns):
        if isinstance(made, DataError):
            raise made
        yield made


def each_row_or_error(
    files: Sequence[str | Path], make: Callable[[Any], T], columns: Sequence[str] | None = None
) -> Iterator[tuple[str, T | DataError]]:
    """As :func:`each_row`, with the file and line of each row. A row that `make` cannot use gives an error.

    Raises:
        DataError: a file cannot be read.
    """
    for file in files:
        for chunk in read_chunks(file, columns=columns):
            for index, row in enumerate(chunk.rows):
                if is_blank(row):
                    continue
                where = chunk.where(index)
                made: T | DataError
                try:
                    made = make(parse_row(row))
                except BadRow as error:
                    made = DataError(f"{where}: {error}.")
                yield where, made


def is_blank(row: Row) -> bool:
    """Whether a row is an empty line."""
    return isinstance(row, bytes) and not row.strip()


def parse_row(row: Row) -> Any:
    """The fields of a row, which is a line of JSON or already parsed. Raises BadRow."""
    if not isinstance(row, bytes):
        return row
    try:
        return json.loads(row)
    except (ValueError, RecursionError):
        raise BadRow("not valid JSON") from None
