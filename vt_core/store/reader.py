"""Reading a store: rows by id, and whole tables tile by tile."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from vt_core.errors import StoreError
from vt_core.store.layout import META_KEY, Metadata, TableLayout, TableSpec, decode
from vt_core.store.lmdb_file import data_file, read_header, snapshot
from vt_core.store.mapped import MappedFile, MappedRows, markers_hold
from vt_core.store.moved import MovedRows

TILE_BYTES = 8 << 20

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
# By device and inode, which two paths to one file share and a file that replaced another does not.
_stores: weakref.WeakValueDictionary[tuple[int, int], Store] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `start … start + n - 1` of a table, [n, columns] in its storage type, not writable."""

    start: int
    rows: np.ndarray


class RowTable:
    """One table of an open store.

    `mapped` says whether rows come straight from the file; a compacted copy is read through LMDB instead,
    slower.
    """

    def __init__(self, path: Path, layout: TableLayout, rows: MappedRows | MovedRows) -> None:
        self._path = path
        self._layout = layout
        self._rows: MappedRows | MovedRows | None = rows
        self._bytes_read = 0
        self.mapped = isinstance(rows, MappedRows)

    @property
    def spec(self) -> TableSpec:
        """Name, rows, columns and element type."""
        return self._layout.spec

    @property
    def bytes_read(self) -> int:
        """Bytes of rows that `read` has given since the store was opened (scans not counted)."""
        return self._bytes_read

    @property
    def stored_checksum(self) -> str:
        """The checksum that the writer noted (`sha256:<hex>`); `checksum` computes it anew."""
        return self._layout.checksum

    def read(self, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `ids` ([n] integers, any order, repeats allowed) as [n, columns] in the storage type.

        With `out` (C-contiguous, of that shape and type) the rows are put there. Raises StoreError for an
        id outside 0 … rows-1, a closed store, and a file that was cut short since it was opened.
        """
        rows = self._open_rows()
        ids = self._checked(ids)
        shape = (len(ids), self.spec.columns)
        if out is None:
            out = np.empty(shape, self.spec.storage)
        elif out.shape != shape or out.dtype != self.spec.storage or not out.flags.c_contiguous:
            raise StoreError(
                f"Table {self.spec.name!r}: out must be contiguous {list(shape)} of {self.spec.storage}, not "
                f"{list(out.shape)} of {out.dtype}."
            )
        if len(ids):
            rows.gather(ids, out)
            self._bytes_read += out.nbytes
        return out

    def tiles(self, max_bytes: int = TILE_BYTES, *, drop_cached: bool = False) -> Iterator[Tile]:
        """The whole table in id order, in views of at most `max_bytes` (at least one row) each.

        A tile's pages stop being resident when the next one is asked for; its view stays valid all the
        same. With `drop_cached` they leave the system's page cache too, and the next scan reads the disk.
        Raises StoreError for a closed store.
        """
        for start, rows in self._open_rows().tiles(max_bytes, drop_cached):
            yield Tile(start, rows)
            self._open_rows()

    def checksum(self) -> str:
        """Checksum of all rows (`sha256:<hex>`), computed by a scan. Raises StoreError for a closed store."""
        digest = hashlib.sha256()
        for tile in self.tiles():
            digest.update(np.ascontiguousarray(tile.rows).data)
        return f"sha256:{digest.hexdigest()}"

    def let_go(self) -> None:
        """End reading: every later call raises StoreError. For the store's own use."""
        self._rows = None

    def _open_rows(self) -> MappedRows | MovedRows:
        if self._rows is None:
            raise StoreError(f"{self._path}: the row store has been closed; open it again.")
        return self._rows

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
            raise StoreError(
                f"Table {self.spec.name!r}: ids must be [n] integers, not {list(ids.shape)} of {ids.dtype}."
            )
        if ids.size and (ids.min() < 0 or ids.max() >= self.spec.rows):
            missing = int(ids[(ids < 0) | (ids >= self.spec.rows)][0])
            raise StoreError(
                f"Table {self.spec.name!r} has no row {missing}; its rows are 0 to {self.spec.rows - 1}."
            )
        return ids.astype(np.int64, copy=False)


class Store:
    """An open row store; a context manager. `Store.open` gives one shared instance per file and process.

    Each `open` wants one `close`; the last one lets the file go. After a fork the child may go on reading:
    what it inherits is a mapping and a descriptor, no LMDB environment.
    """

    tables: Mapping[str, RowTable]

    def __init__(self, path: Path) -> None:
        """For `open`, which is the way to get one."""
        file, metadata = _read(path)
        self.path = path
        self.file_bytes = file.size
        self.tables = MappingProxyType(
            {
                table.spec.name: RowTable(path, table, _rows(path, file, table, metadata))
                for table in metadata.tables
            }
        )
        self._users = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Open the store directory `path`, reading its table of contents and no rows.

        Raises StoreError when it is missing, no LMDB 0.9 file, truncated, or of another format version.
        """
        path = Path(path)
        file = data_file(path)
        with _lock:
            try:
                status = file.stat()
                store = _stores.get((status.st_dev, status.st_ino))
                if store is None:
                    store = cls(path)
                    _stores[status.st_dev, status.st_ino] = store
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error}); check its rights.") from error
            store._users += 1
            return store

    def close(self) -> None:
        """Give up one `open`. Views that were handed out stay valid."""
        with _lock:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                for key in [key for key, store in _stores.items() if store is self]:
                    del _stores[key]
                for table in self.tables.values():
                    table.let_go()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(path: Path) -> tuple[MappedFile, Metadata]:
    file = data_file(path)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        read_header(descriptor, file)
    finally:
        os.close(descriptor)
    with snapshot(path) as transaction:
        value = transaction.get(META_KEY)
        if value is None:
            raise StoreError(f"{path}: the row store was never finished; convert the model again.")
        contents = bytes(value)
    return MappedFile(file), decode(contents, str(path))


def _rows(path: Path, file: MappedFile, table: TableLayout, metadata: Metadata) -> MappedRows | MovedRows:
    if markers_hold(file, table, metadata.store_id):
        return MappedRows(file, table)
    return MovedRows(path, table, metadata.store_id)
