"""The row store: a model's vocabulary tables in one LMDB file, read row by row or tile by tile.

`layout` describes the file, `writer` writes it, `reader` reads it. No other package knows the file.
"""

from __future__ import annotations

from vt_core.store.layout import TableSpec
from vt_core.store.reader import RowTable, Store, Tile
from vt_core.store.writer import StoreWriter

__all__ = ["RowTable", "Store", "StoreWriter", "TableSpec", "Tile"]
