"""Small stores, built by hand."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import numpy as np

from vt_core.store import StoreWriter, TableSpec
from vt_core.store.layout import META_KEY, Metadata, decode
from vt_core.store.lmdb_file import DATA_FILE, engine_options, read_values


def numbered(rows: int, columns: int, dtype: type = np.uint16) -> np.ndarray:
    """`[rows, columns]` of 1, 2, 3, …"""
    return (np.arange(rows * columns, dtype=np.int64) + 1).astype(dtype).reshape(rows, columns)


def write(
    path: Path, values: np.ndarray, dtype: str = "bfloat16", tile_rows: int = 8, name: str = "embedding"
) -> str:
    """Write a store of one table. Returns its checksum."""
    with StoreWriter(path, tile_rows=tile_rows) as writer:
        return writer.add_table(TableSpec(name, *values.shape, dtype), [values])


def metadata(path: Path) -> Metadata:
    return decode(value(path, META_KEY), str(path))


def value(path: Path, key: bytes) -> bytes:
    """A value of a closed store."""
    with open(path / DATA_FILE, "rb") as file:
        found = read_values(file.fileno(), path / DATA_FILE)[key]
        return os.pread(file.fileno(), found.size, found.offset)


def put(path: Path, key: bytes, value: bytes) -> None:
    """Change a value of a closed store."""
    with (
        lmdb.open(str(path), map_size=1 << 26, **engine_options()) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(key, value)
