"""Rows through LMDB itself, for a file whose pages have moved (a compacted copy): slower, and right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import StoreError
from vt_core.store.layout import ALIGNMENT, MARKER_BYTES, TableLayout
from vt_core.store.lmdb_file import snapshot


class MovedRows:
    """Rows of one table, copied out of LMDB's values; opens the file for each call."""

    def __init__(self, path: Path, layout: TableLayout, store_id: bytes) -> None:
        self._path = path
        self._layout = layout
        self._store_id = store_id

    def gather(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Copy rows `ids` (int64, in range) to `out` [n, columns]."""
        tile, row = np.divmod(ids, self._layout.tile_rows)
        with snapshot(self._path) as transaction:
            for number in np.unique(tile).tolist():
                wanted = tile == number
                out[wanted] = self._view(transaction, number)[row[wanted]]

    def tiles(self, max_bytes: int, drop_cached: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Start and copy [n, columns] of pieces of at most `max_bytes`, in id order; nothing is dropped."""
        del drop_cached
        most = max(1, max_bytes // self._layout.spec.stride)
        for number in range(len(self._layout.tiles)):
            first = number * self._layout.tile_rows
            length = self._layout.tile_length(number)
            for start in range(0, length, most):
                with snapshot(self._path) as transaction:
                    rows = self._view(transaction, number)[start : start + most].copy()
                yield first + start, rows

    def _view(self, transaction: Any, tile: int) -> np.ndarray:
        """View [rows, columns] of a tile's value, valid as long as the transaction."""
        spec = self._layout.spec
        value = transaction.get(self._layout.key(tile), b"")
        # Moved pages change where the rows begin on a page, not where they begin in the value.
        before = bytes(value[: ALIGNMENT + 2 * MARKER_BYTES]).find(
            self._layout.rows_marker(self._store_id, tile)
        )
        start, size = before + MARKER_BYTES, self._layout.tile_bytes(tile)
        if before < 0 or len(value) < start + size:
            raise StoreError(
                f"{self._path}: tile {tile} of table {spec.name!r} is missing or short; convert again."
            )
        rows = np.frombuffer(value, spec.storage, size // spec.storage.itemsize, start)
        return rows.reshape(-1, spec.stride // spec.storage.itemsize)[:, : spec.columns]
