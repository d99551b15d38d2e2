"""The vocabulary tables as backends read them: from the store on disk, or from host memory (CPU offload)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from vt_core.errors import OptionError
from vt_core.files.dtypes import from_float32, to_float32
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.packing import dequantize
from vt_core.files.quantization import Quantization
from vt_core.store import TableSpec, Tile
from vt_core.types import Ids

#: Where the vocabulary tables are read from: disk, or host memory.
STORES = ("lmdb", "ram")


class Table(Protocol):
    """Rows by full id, in the storage dtype (bfloat16 as uint16)."""

    @property
    def spec(self) -> TableSpec: ...

    @property
    def bytes_read(self) -> int:
        """Bytes of the rows read by `read` so far."""

    def read(self, ids: Ids) -> np.ndarray:
        """Rows ``[n, columns]`` of full ids ``[n]``."""

    def tiles(self, max_bytes: int = ...) -> Iterator[Tile]:
        """All rows in order of their ids, in views of at most ``max_bytes``."""


class MemoryTable:
    """A whole table in host memory, in the storage dtype."""

    def __init__(self, table: Table) -> None:
        self.spec = table.spec
        self.bytes_read = 0
        first = next(iter(table.tiles(table.spec.columns)))
        self._rows = np.empty((self.spec.rows, self.spec.columns), dtype=first.rows.dtype)
        for tile in table.tiles():
            self._rows[tile.start : tile.start + len(tile.rows)] = tile.rows

    def read(self, ids: Ids) -> np.ndarray:
        rows = self._rows[ids]
        self.bytes_read += rows.nbytes
        return rows

    def tiles(self, max_bytes: int = 8 << 20) -> Iterator[Tile]:
        step = max(1, max_bytes // self._rows[0].nbytes)
        for start in range(0, self.spec.rows, step):
            yield Tile(start, self._rows[start : start + step])


class ScaledTable:
    """A table whose rows are multiplied by a constant and rounded to the storage dtype.

    Some frameworks scale a table while they load it.
    """

    def __init__(self, table: Table, factor: float) -> None:
        self._table, self._factor = table, np.float32(factor)

    @property
    def spec(self) -> TableSpec:
        return self._table.spec

    @property
    def bytes_read(self) -> int:
        return self._table.bytes_read

    def read(self, ids: Ids) -> np.ndarray:
        return self._scaled(self._table.read(ids))

    def tiles(self, max_bytes: int = 8 << 20) -> Iterator[Tile]:
        for tile in self._table.tiles(max_bytes):
            yield Tile(tile.start, self._scaled(tile.rows))

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        dtype = self.spec.dtype
        return from_float32(to_float32(rows, dtype) * self._factor, dtype)


class DequantizedTable:
    """A packed table as float32 values, rows ``[n, hidden]``."""

    #: Bytes of the pieces of a scan, small enough for a processor's cache.
    PIECE_BYTES = 2 << 20

    def __init__(self, table: Table, how: Quantization) -> None:
        packed = table.spec
        self.spec = TableSpec(packed.name, packed.rows, how.row_values(packed.columns), "float32")
        self._table, self._how = table, how

    @property
    def bytes_read(self) -> int:
        return self._table.bytes_read

    def read(self, ids: Ids) -> np.ndarray:
        return dequantize(self._table.read(ids), self._how)

    def tiles(self, max_bytes: int = PIECE_BYTES) -> Iterator[Tile]:
        step = max(1, min(max_bytes, self.PIECE_BYTES) // self.spec.row_bytes)
        for tile in self._table.tiles():
            for start in range(0, len(tile.rows), step):
                yield Tile(tile.start + start, dequantize(tile.rows[start : start + step], self._how))


def open_tables(directory: ModelDirectory, store: str, *, packed: bool = False) -> Mapping[str, Table]:
    """Open the tables ``embedding``, ``head`` (untied models), and where the model has them ``head_bias`` and
    ``per_layer``.

    Models of one directory share the mapping of its store, which is closed with the last of their tables.

    Args:
        store: ``lmdb`` reads rows from disk; ``ram`` holds the tables in host memory.
        packed: return quantized tables packed; otherwise they are dequantized as they are read.

    Raises:
        OptionError: an unknown `store`.
        StoreError: the store cannot be read.
    """
    if store not in STORES:
        raise OptionError(f"unknown store {store!r}: choose one of {', '.join(STORES)}")
    opened = directory.open_store()
    tables: Mapping[str, Table] = opened.tables
    if store == "ram":
        tables = {name: MemoryTable(table) for name, table in tables.items()}
        opened.close()
    if packed or directory.manifest.quantization is None:
        return tables
    packed_tables = directory.manifest.quantization
    return {
        name: DequantizedTable(table, packed_tables[name]) if name in packed_tables else table
        for name, table in tables.items()
    }
