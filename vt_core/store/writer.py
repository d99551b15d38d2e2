"""Writing a store: tables, chunk by chunk, with at most one tile in memory."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vt_core.errors import StoreError
from vt_core.store.layout import (
    ALIGNMENT,
    MARKER_BYTES,
    META_KEY,
    STORE_ID_BYTES,
    TILE_BYTES,
    TILE_ROWS,
    Metadata,
    TableLayout,
    TableSpec,
    encode,
    round_up,
)
from vt_core.store.lmdb_file import DATA_FILE, engine_options, read_header, read_values

_PIECE_BYTES = 8 << 20
_MAP_SLACK = 4 << 20
# LMDB reports a short write as EIO; a file size limit gives EFBIG.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class StoreWriter:
    """Writes a new store directory; a context manager.

        with StoreWriter(path) as writer:
            checksum = writer.add_table(TableSpec("embedding", rows, columns, "bfloat16"), chunks)

    The table of contents is written last, so a store can only be read after the block ended without an
    exception. Holds at most one tile and the caller's chunk.

    Raises:
        StoreError: the directory holds a store already, the chunks do not match the TableSpec, or the disk
            is full.
    """

    def __init__(self, path: str | os.PathLike[str], *, tile_rows: int = TILE_ROWS) -> None:
        self.path = Path(path)
        self._tile_rows = tile_rows
        self._store_id = os.urandom(STORE_ID_BYTES)
        self._tables: list[TableLayout] = []
        self._environment: Any = None
        self._descriptor = -1

    def __enter__(self) -> StoreWriter:
        import lmdb

        if (self.path / DATA_FILE).exists():
            raise StoreError(f"{self.path}: a row store exists here; remove it or choose another path.")
        with _written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._environment = lmdb.open(
                os.fsencode(self.path), map_size=_MAP_SLACK, sync=False, metasync=False, **engine_options()
            )
            self._descriptor = os.open(self.path / DATA_FILE, os.O_RDWR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._environment.close()
            os.close(self._descriptor)

    def add_table(self, spec: TableSpec, chunks: Iterable[np.ndarray]) -> str:
        """Write a table.

        Args:
            chunks: arrays ``[n, columns]`` of the storage type, any n, in row order.

        Returns:
            Checksum of the rows, ``sha256:<hex>``, without padding.

        Raises:
            StoreError: the chunks do not match `spec`, or the disk is full.
        """
        if any(spec.name == table.spec.name for table in self._tables):
            raise StoreError(
                f"{self.path}: there are two tables {spec.name!r}; give each table its own name."
            )
        digest = hashlib.sha256()
        tile_rows = max(1, min(self._tile_rows, TILE_BYTES // spec.stride))
        layout = TableLayout(len(self._tables), spec, tile_rows, "", ())
        tiles: list[int] = []
        filled = 0
        for piece in _pieces(spec, chunks, tile_rows):
            digest.update(piece.data)
            tile, row = divmod(filled, tile_rows)
            with _written(self.path):
                if row == 0:
                    tiles.append(self._reserve(layout, tile))
                _write_at(self._descriptor, _padded(piece, spec).data, tiles[tile] + row * spec.stride)
            filled += len(piece)
        if filled != spec.rows:
            raise StoreError(
                f"Table {spec.name!r} must have {spec.rows} rows, and the source has {filled}; "
                "it is incomplete."
            )
        checksum = f"sha256:{digest.hexdigest()}"
        self._tables.append(TableLayout(layout.index, spec, tile_rows, checksum, tuple(tiles)))
        return checksum

    def _reserve(self, layout: TableLayout, tile: int) -> int:
        """Commit a value that is large enough for the tile. Returns the offset in the file for its rows.

        The position of the value, and so of page boundaries within it, is only known after the commit. The
        rows are written into the file then: LMDB 0.9 has no checksums, and nobody reads the file yet.
        """
        # Untouched zeros take no memory.
        value = np.zeros(MARKER_BYTES + ALIGNMENT + layout.tile_bytes(tile), np.uint8)
        self._put(layout.key(tile), value.data)
        written = read_values(self._descriptor, self.path / DATA_FILE)[layout.key(tile)]
        rows_at = round_up(written.offset + MARKER_BYTES, ALIGNMENT)
        _write_at(self._descriptor, layout.marker(self._store_id, tile), rows_at - MARKER_BYTES)
        return rows_at

    def _put(self, key: bytes, value: memoryview | bytes) -> None:
        end = read_header(self._descriptor, self.path / DATA_FILE).needed_bytes
        self._environment.set_mapsize(round_up(end + len(value) + _MAP_SLACK, 1 << 16))
        with self._environment.begin(write=True) as transaction:
            if not transaction.put(key, value, overwrite=False):
                raise StoreError(f"{self.path}: {key.decode()} exists already; start a new store.")

    def _finish(self) -> None:
        if not self._tables:
            raise StoreError(f"{self.path}: a row store needs at least one table.")
        with _written(self.path):
            # Rows must be on the disk before the table of contents.
            os.fsync(self._descriptor)
            self._put(META_KEY, encode(Metadata(self._store_id, tuple(self._tables))))
            self._environment.sync(True)


def _pieces(spec: TableSpec, chunks: Iterable[np.ndarray], tile_rows: int) -> Iterator[np.ndarray]:
    """The chunks' rows in contiguous pieces of limited size. No piece crosses the end of a tile."""
    limit = max(1, _PIECE_BYTES // spec.stride)
    filled = 0
    for chunk in chunks:
        _check_chunk(spec, chunk, filled)
        done = 0
        while done < len(chunk):
            count = min(limit, len(chunk) - done, tile_rows - filled % tile_rows)
            yield np.ascontiguousarray(chunk[done : done + count])
            done += count
            filled += count


def _check_chunk(spec: TableSpec, chunk: np.ndarray, filled: int) -> None:
    if chunk.dtype != spec.storage or chunk.ndim != 2 or chunk.shape[1] != spec.columns:
        raise StoreError(
            f"Table {spec.name!r} takes chunks [n, {spec.columns}] of {spec.storage}, not "
            f"{list(chunk.shape)} of {chunk.dtype}."
        )
    if filled + len(chunk) > spec.rows:
        raise StoreError(f"Table {spec.name!r} must have {spec.rows} rows, and the source has more.")


def _padded(piece: np.ndarray, spec: TableSpec) -> np.ndarray:
    if spec.stride == spec.row_bytes:
        return piece
    rows = np.zeros((len(piece), spec.stride // spec.storage.itemsize), spec.storage)
    rows[:, : spec.columns] = piece
    return rows


def _write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn errors of LMDB and the system about a failed write into StoreError."""
    import lmdb

    try:
        yield
    except (lmdb.MapFullError, lmdb.DiskError) as error:
        raise _disk_full(path) from error
    except (lmdb.Error, OSError) as error:
        code = getattr(error, "errno", None) or getattr(error, "code", None)
        if code in _FULL or any(os.strerror(full) in str(error) for full in _FULL):
            raise _disk_full(path) from error
        raise StoreError(
            f"{path}: the rows cannot be written ({error}); check the directory and the disk."
        ) from error


def _disk_full(path: Path) -> StoreError:
    return StoreError(
        f"{path}: the disk is full; free some space or choose another place, then convert again."
    )
