"""Rows through LMDB itself, for a file whose pages have moved (a compacted copy): slower, and right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import StoreError
from vt_core.store.layout import MARKER_BYTES, TableLayout, marker
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
        spec, place = self._layout.spec, self._layout.tiles[tile]
        value = transaction.get(self._layout.key(tile))
        length = self._layout.tile_length(tile)
        end = place.rows_at + length * spec.stride
        expected = marker(self._store_id, self._layout.index, tile)
        if value is None or len(value) < end or bytes(value[:MARKER_BYTES]) != expected:
            raise StoreError(
                f"{self._path}: tile {tile} of table {spec.name!r} is missing or short; convert again."
            )
        rows = np.frombuffer(
            value, spec.storage, (end - place.rows_at) // spec.storage.itemsize, place.rows_at
        )
        return rows.reshape(length, -1)[:, : spec.columns]
