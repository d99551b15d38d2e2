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
#: Open files by device and inode: two paths to one file share an entry, and a replaced file has a new one.
_open_files: weakref.WeakValueDictionary[tuple[int, int], _OpenFile] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `start … start + n - 1` of a table, [n, columns] in its storage type, not writable."""

    start: int
    rows: np.ndarray


class RowTable:
    """One table of an open store."""

    def __init__(self, path: Path, opened: _OpenFile, layout: TableLayout) -> None:
        self._path = path
        self._opened: _OpenFile | None = opened
        self._layout = layout
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
        self._opened = None

    def _open_rows(self) -> MappedRows:
        if self._opened is None:
            raise StoreError(f"{self._path}: the row store has been closed; open it again.")
        return self._opened.rows[self._layout.index]

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
    """An open row store; a context manager.

    Stores of one file share its mapping, which is closed with the last of them. A forked child can keep
    reading: it inherits the mapping and a descriptor.
    """

    def __init__(self, path: Path, opened: _OpenFile) -> None:
        """Use `open` instead."""
        self.path = path
        self.file_bytes = opened.file.size
        #: tables by name
        self.tables: Mapping[str, RowTable] = MappingProxyType(
            {layout.spec.name: RowTable(path, opened, layout) for layout in opened.tables}
        )

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
                opened = _open_files.get((status.st_dev, status.st_ino))
                if opened is None:
                    opened = _OpenFile(path, file)
                    _open_files[status.st_dev, status.st_ino] = opened
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error}); check its permissions.") from error
            return cls(path, opened)

    def close(self) -> None:
        """Make every later call raise StoreError. Views that were returned stay valid."""
        for table in self.tables.values():
            table.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _OpenFile:
    """An open file and its tables, shared by all stores of the file."""

    def __init__(self, path: Path, file: Path) -> None:
        """Raises StoreError for a damaged file, OSError for one that cannot be opened."""
        descriptor = os.open(file, os.O_RDONLY)
        try:
            values = read_values(descriptor, file)  # checks the header, before the file is mapped
        finally:
            os.close(descriptor)
        self.file = MappedFile(file)
        contents = decode(self._read(path, values.get(META_KEY)), str(path))
        self.tables = [find_tiles(self.file, table, contents.store_id, values) for table in contents.tables]
        self.rows = [MappedRows(self.file, table) for table in self.tables]

    def _read(self, path: Path, value: Value | None) -> bytes:
        """The encoded table of contents."""
        if value is None:
            raise StoreError(f"{path}: the row store was never finished; convert the model again.")
        if value.size > META_LIMIT:
            raise StoreError(
                f"{path}: the table of contents has {value.size} bytes; convert the model again."
            )
        return os.pread(self.file.descriptor, value.size, value.offset)
