"""The format of a store file, byte by byte.

One LMDB value per tile of `tile_rows` rows (the last tile may be shorter), key `tile/<table>/<number>`:

    zeros | marker (32 bytes) | rows, `stride` bytes each | zeros

The rows start at a multiple of 16 KiB *of the file*. A row is its elements, little-endian, padded with zeros
to a multiple of 16 bytes. A marker is 8 letters, the store's 16 random bytes, and the numbers of table and
tile: no two tiles of any two stores have the same one.

One more value, key `meta`, is the table of contents (`encode`): 64 hexadecimal digits, the SHA-256 of the
rest, and JSON that lists the tables and the offset in the file of each tile's rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass

import numpy as np

from vt_core.errors import ModelError, StoreError, shorten
from vt_core.files.dtypes import item_size, storage_dtype
from vt_core.files.json_files import parse_object

#: Version 1 had no digest.
FORMAT = 2
KIND = "vt-rows"
META_KEY = b"meta"
TILE_ROWS = 16_384
#: A tile is written in one piece, so one of wide rows (Gemma 4's per-layer table: 17,920 bytes) has fewer.
TILE_BYTES = 128 << 20
#: The largest page size of the supported platforms (Apple Silicon), a multiple of the smaller ones.
ALIGNMENT = 16_384
ROW_ALIGNMENT = 16
STORE_ID_BYTES = 16
META_LIMIT = 16 << 20
DIGEST_BYTES = 64

_MARKER = struct.Struct("<8s16sII")
MARKER_BYTES = _MARKER.size
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LARGEST_COUNT = 1 << 40


@dataclass(frozen=True)
class TableSpec:
    """Name and shape `[rows, columns]` of a table. Raises StoreError for an invalid name, count or type."""

    name: str
    rows: int
    columns: int
    dtype: str  #: a name of `vt_core.files.dtypes`

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise StoreError(
                f"Table name {shorten(self.name)} is invalid; use 1 to 64 letters, digits, '_', '.' or '-'."
            )
        for label, count in (("rows", self.rows), ("columns", self.columns)):
            if not _is_count(count) or not 1 <= count <= _LARGEST_COUNT:
                raise StoreError(f"Table {self.name!r} cannot have {shorten(count)} {label}.")
        try:
            storage_dtype(self.dtype)
        except ModelError as error:
            raise StoreError(f"Table {self.name!r}: {error}") from error

    @property
    def storage(self) -> np.dtype:
        """numpy type of the elements."""
        return storage_dtype(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row without padding."""
        return self.columns * item_size(self.dtype)

    @property
    def stride(self) -> int:
        """Bytes from one row to the next in the file."""
        return round_up(self.row_bytes, ROW_ALIGNMENT)


@dataclass(frozen=True)
class TableLayout:
    """Where a table is in the file."""

    index: int  #: number of the table within the store
    spec: TableSpec
    tile_rows: int  #: rows of a full tile
    checksum: str  #: ``sha256:<hex>`` of the rows in order, without padding
    tiles: tuple[int, ...]  #: offset in the file of each tile's rows

    def tile_length(self, tile: int) -> int:
        """Rows of tile number `tile`."""
        return min(self.tile_rows, self.spec.rows - tile * self.tile_rows)

    def tile_bytes(self, tile: int) -> int:
        """Bytes of the rows of tile number `tile`."""
        return self.tile_length(tile) * self.spec.stride

    def key(self, tile: int) -> bytes:
        """LMDB key of tile number `tile`."""
        return f"tile/{self.spec.name}/{tile:08d}".encode()

    def marker(self, store_id: bytes, tile: int) -> bytes:
        """The bytes before the rows of tile number `tile`."""
        return _MARKER.pack(b"vt-rows\0", store_id, self.index, tile)


@dataclass(frozen=True)
class Metadata:
    """The table of contents."""

    store_id: bytes  #: 16 random bytes, part of each marker
    tables: tuple[TableLayout, ...]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def encode(metadata: Metadata) -> bytes:
    """The value under `META_KEY`."""
    contents = json.dumps(
        {
            "format": FORMAT,
            "kind": KIND,
            "store_id": metadata.store_id.hex(),
            "tables": [
                {
                    "name": table.spec.name,
                    "rows": table.spec.rows,
                    "columns": table.spec.columns,
                    "dtype": table.spec.dtype,
                    "stride": table.spec.stride,
                    "tile_rows": table.tile_rows,
                    "checksum": table.checksum,
                    "tiles": list(table.tiles),
                }
                for table in metadata.tables
            ],
        },
        separators=(",", ":"),
    ).encode()
    return _digest(contents) + contents


def decode(value: bytes, path: str) -> Metadata:
    """The table of contents of the store at `path`, every number checked. Raises StoreError."""
    if len(value) > META_LIMIT:
        raise StoreError(
            f"{path}: the table of contents has {len(value)} bytes, more than {META_LIMIT}; convert again."
        )
    if value.startswith(b"{"):  # format 1
        contents = value
    else:
        contents = value[DIGEST_BYTES:]
        if value[:DIGEST_BYTES] != _digest(contents):
            raise StoreError(f"{path}: the table of contents is damaged (digest); convert the model again.")
    data = parse_object(contents, path, "table of contents of a row store", StoreError)
    if data.get("kind") != KIND:
        raise StoreError(f"{path}: this LMDB file is not a row store; convert the model again.")
    if data.get("format") != FORMAT:
        raise StoreError(
            f"{path}: store format {shorten(data.get('format'))} is unknown (this version reads {FORMAT}); "
            "convert the model again."
        )
    try:
        store_id = bytes.fromhex(data["store_id"])
        tables = tuple(_decode_table(i, table) for i, table in enumerate(data["tables"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path}: the table of contents is damaged ({shorten(error)}); convert the model again."
        ) from error
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
    if len(store_id) != STORE_ID_BYTES or len({table.spec.name for table in tables}) != len(tables):
        raise StoreError(
            f"{path}: the table of contents is damaged (identity or names); convert the model again."
        )
    return Metadata(store_id, tables)


def _decode_table(index: int, data: dict) -> TableLayout:
    spec = TableSpec(data["name"], data["rows"], data["columns"], data["dtype"])
    tile_rows, checksum = data["tile_rows"], data["checksum"]
    if not _is_count(tile_rows) or not 1 <= tile_rows <= _LARGEST_COUNT:
        raise ValueError(f"tile_rows {tile_rows!r}")
    if data["stride"] != spec.stride or not isinstance(checksum, str):
        raise ValueError(f"stride {data['stride']!r}, checksum {checksum!r}")
    tiles = tuple(data["tiles"])
    if not all(_is_count(offset) and offset % ALIGNMENT == 0 for offset in tiles):
        raise ValueError("offsets of tiles")
    if len(tiles) != -(-spec.rows // tile_rows):
        raise StoreError(
            f"table {spec.name!r} says {spec.rows} rows but lists {len(tiles)} tiles of {tile_rows}; "
            "convert the model again."
        )
    return TableLayout(index, spec, tile_rows, checksum, tiles)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _digest(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode()
