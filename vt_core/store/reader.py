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
from vt_core.store.layout import META_KEY, META_LIMIT, TableLayout, TableSpec, decode
from vt_core.store.lmdb_file import Value, data_file, read_values
from vt_core.store.mapped import MappedFile, MappedRows, find_tiles

TILE_BYTES = 8 << 20

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
#: Open stores by device and inode: two paths to one file share them, and a replaced file has new ones.
_stores: weakref.WeakValueDictionary[tuple[int, int], Store] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `start … start + n - 1` of a table, [n, columns] in its storage type, not writable."""

    start: int
    rows: np.ndarray


class RowTable:
    """One table of an open store."""

    def __init__(self, store: Store, layout: TableLayout, rows: MappedRows) -> None:
        self._store = store  # as long as a table is in use, another `open` of the file shares this store
        self._layout = layout
        self._rows: MappedRows | None = rows
        self._bytes_read = 0

    @property
    def spec(self) -> TableSpec:
        """Name, rows, columns and element type."""
        return self._layout.spec

    @property
    def bytes_read(self) -> int:
        """Bytes of rows that `read` has returned since the store was opened. Scans are not counted."""
        return self._bytes_read

    @property
    def stored_checksum(self) -> str:
        """The checksum in the table of contents (`sha256:<hex>`); `checksum` computes it from the rows."""
        return self._layout.checksum

    def read(self, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows ``[n, columns]``, in the storage type.

        Args:
            ids: ``[n]`` integers, in any order, repeats allowed.
            out: where to write the rows: C-contiguous, ``[n, columns]`` of the storage type.

        Raises:
            StoreError: an id is not in 0 … rows-1, the store is closed, or the file was truncated since.
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
        """The whole table in id order, in views of at most `max_bytes`, or one row, each.

        The pages of a tile are dropped from memory when the next one is requested; its view stays valid.

        Args:
            drop_cached: drop them from the system's page cache too, so that the next scan reads the disk.

        Raises:
            StoreError: the store is closed.
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

    def close(self) -> None:
        """Make every later call raise StoreError. Called by the store."""
        self._rows = None

    def _open_rows(self) -> MappedRows:
        if self._rows is None:
            raise StoreError(f"{self._store.path}: the row store has been closed; open it again.")
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
    """An open row store; a context manager. `Store.open` returns one shared instance per file and process.

    Call `close` once for each `open`; the last call closes the file. A forked child can keep reading: it
    inherits a mapping and a descriptor.
    """

    tables: Mapping[str, RowTable]

    def __init__(self, path: Path) -> None:
        """Use `open` instead."""
        name = data_file(path)
        file, values = _open_file(name)
        metadata = decode(_contents(path, file, values), str(path))
        layouts = [find_tiles(file, table, metadata.store_id, values) for table in metadata.tables]
        self.path = path
        self.file_bytes = file.size
        self.tables = MappingProxyType(
            {layout.spec.name: RowTable(self, layout, MappedRows(file, layout)) for layout in layouts}
        )
        self._users = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Open the store directory `path`. Reads its table of contents and no rows.

        Raises:
            StoreError: it is missing, not an LMDB 0.9 file, truncated, damaged, or of another format version.
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
                raise StoreError(f"{path}: cannot be read ({error}); check its permissions.") from error
            store._users += 1
            return store

    def close(self) -> None:
        """Undo one `open`. Views that were returned stay valid."""
        with _lock:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                for key in [key for key, store in _stores.items() if store is self]:
                    del _stores[key]
                for table in self.tables.values():
                    table.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_file(name: Path) -> tuple[MappedFile, dict[bytes, Value]]:
    """The file, and where its values are. The header is checked before the file is mapped."""
    descriptor = os.open(name, os.O_RDONLY)
    try:
        values = read_values(descriptor, name)
    finally:
        os.close(descriptor)
    return MappedFile(name), values


def _contents(path: Path, file: MappedFile, values: dict[bytes, Value]) -> bytes:
    """The encoded table of contents."""
    value = values.get(META_KEY)
    if value is None:
        raise StoreError(f"{path}: the row store was never finished; convert the model again.")
    if value.size > META_LIMIT:
        raise StoreError(f"{path}: the table of contents has {value.size} bytes; convert the model again.")
    return os.pread(file.descriptor, value.size, value.offset)
