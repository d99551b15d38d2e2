"""Reads rows of Parquet files: only the columns that are asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vt_core.errors import DataError

#: Rows that are converted to Python objects at a time.
BATCH_ROWS = 256


def read_parquet(
    path: Path, file: io.BufferedReader, columns: Sequence[str] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file, numbered from 1.

    Args:
        path: the name of the file, for messages.
        file: the file.
        columns: names of the fields to read, or paths with dots into nested fields; None reads all. Other
            columns cost no memory, and their types do not matter.

    Raises:
        DataError: pyarrow is not installed, or the file or one of these columns cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need the library pyarrow; install it with pip install pyarrow."
        ) from None
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        names = None if columns is None else _paths(parquet.schema_arrow, columns)
        number = 0
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=names):
            # A batch without columns has no rows as Python objects.
            for row in batch.to_pylist() if batch.num_columns else [{}] * batch.num_rows:
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error}).") from error
    except (ArithmeticError, LookupError, ValueError) as error:
        # Times beyond Python's, unknown time zones.
        shown = ", ".join(names) if names else "all"
        raise DataError(f"{path}: a value cannot be read ({error}); columns read: {shown}.") from error


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
