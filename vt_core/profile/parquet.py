"""Reads Parquet files: only the columns that are asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vt_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow

#: Rows that are read at a time.
BATCH_ROWS = 256


def read_parquet(
    path: Path, file: io.BufferedIOBase, columns: Sequence[str] | None, span: range
) -> Iterator[pyarrow.RecordBatch]:
    """Rows of the row groups of a Parquet file that start in `span`.

    Args:
        path: the name of the file, for messages.
        file: the file.
        columns: names of the fields to read, or paths with dots into nested fields; None reads all. Other
            columns cost no memory, and their types do not matter.
        span: positions in the file, in bytes.

    Raises:
        DataError: the file or one of these columns cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        names = None if columns is None else _paths(parquet.schema_arrow, columns)
        groups = [index for index in range(parquet.num_row_groups) if _start(parquet, index) in span]
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=names)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error}).") from error


def python_rows(batch: pyarrow.RecordBatch, file: str) -> list[Mapping[str, Any]]:
    """The fields of each row. Raises DataError for a value that Python cannot hold."""
    # A batch without columns has no rows as Python objects.
    if not batch.num_columns:
        return [{}] * batch.num_rows
    try:
        return batch.to_pylist()
    except (ArithmeticError, LookupError, ValueError) as error:
        # Times beyond Python's, unknown time zones.
        names = ", ".join(name for name in batch.schema.names if not name.startswith("__"))
        raise DataError(f"{file}: a value cannot be read ({error}); columns read: {names}.") from error


def _start(parquet: Any, group: int) -> int:
    """Position of a row group in its file, in bytes."""
    if not parquet.metadata.num_columns:
        return 0
    column = parquet.metadata.row_group(group).column(0)
    # Some writers put the dictionary after the data.
    return min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)


def _paths(schema: Any, names: Sequence[str]) -> list[str]:
    """Paths of columns, as Parquet writes them, for those of `names` (or dotted paths) that a schema has."""
    found: dict[str, None] = {}
    for name in names:
        head, *rest = (name,) if name in schema.names else name.split(".")
        if head in schema.names and (path := _path(head, schema.field(head).type, rest)):
            found[path] = None
    return list(found)


def _path(path: str, kind: Any, parts: Sequence[str]) -> str | None:
    """`path` extended by `parts` as far as `kind` is a struct; None if it is one without such a field."""
    for part in parts:
        if not _is_struct(kind):
            break  # a list: its entries are read whole
        if (index := kind.get_field_index(part)) < 0:
            return None
        path, kind = f"{path}.{part}", kind.field(index).type
    return path


def _is_struct(kind: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_struct(kind)
