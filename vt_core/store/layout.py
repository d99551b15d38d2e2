"""What a store file holds, byte by byte.

One LMDB value per tile of `tile_rows` rows (the last tile may be shorter), key `tile/<table>/<number>`:

    tile marker (32 bytes) | zeros | rows marker (32 bytes) | rows, `stride` bytes each | zeros

The rows begin at a multiple of 16 KiB *of the file*. A row is its elements, little-endian, padded with zeros
to a multiple of 16 bytes. A marker is 8 letters, the store's 16 random bytes, and the numbers of table and
tile: a value can be found in the file by the first, and its rows by the second.

One more value, key `meta`, is JSON (`encode`): the tables, and for each tile where in the file its rows
begin. A reader that finds the rows markers there may map the file itself; in a file whose pages have moved
(a compacted copy) it does not, and must ask LMDB.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass

import numpy as np

from vt_core.errors import ModelError, StoreError
from vt_core.files.dtypes import item_size, storage_dtype
from vt_core.files.json_files import parse_object

FORMAT = 1
KIND = "vt-rows"
META_KEY = b"meta"
TILE_ROWS = 16_384
# Of wider rows (Gemma 4's table for its layers: 17,920 bytes) a tile holds fewer: it is written in one piece.
TILE_BYTES = 128 << 20
# The largest page of the supported platforms (Apple Silicon); what starts on it starts on smaller ones too.
ALIGNMENT = 16_384
ROW_ALIGNMENT = 16
STORE_ID_BYTES = 16
META_LIMIT = 16 << 20

_MARKER = struct.Struct("<8s16sII")
MARKER_BYTES = _MARKER.size
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LARGEST_COUNT = 1 << 40


@dataclass(frozen=True)
class TableSpec:
    """A table: `rows` by `columns` elements of type `dtype`, a name of vt_core.files.dtypes.

    Raises StoreError for a name, count or type that cannot be.
    """

    name: str
    rows: int
    columns: int
    dtype: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise StoreError(
                f"Table name {self.name!r} cannot be used; use 1 to 64 letters, digits, '_', '.' or '-'."
            )
        for label, count in (("rows", self.rows), ("columns", self.columns)):
            if not _is_count(count) or not 1 <= count <= _LARGEST_COUNT:
                raise StoreError(f"Table {self.name!r} cannot have {count!r} {label}; at least 1 is needed.")
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
    """A table as it lies in the file: offsets of each tile's rows, and the rows' checksum.

    The checksum is `sha256:<hex>` over the rows in order, padding left out.
    """

    index: int
    spec: TableSpec
    tile_rows: int
    checksum: str
    tiles: tuple[int, ...]

    def tile_length(self, tile: int) -> int:
        """Rows of tile number `tile`."""
        return min(self.tile_rows, self.spec.rows - tile * self.tile_rows)

    def tile_bytes(self, tile: int) -> int:
        """Bytes of the rows of tile number `tile`."""
        return self.tile_length(tile) * self.spec.stride

    def key(self, tile: int) -> bytes:
        """LMDB key of tile number `tile`."""
        return f"tile/{self.spec.name}/{tile:08d}".encode()

    def tile_marker(self, store_id: bytes, tile: int) -> bytes:
        """What the value of tile number `tile` begins with; no two values of any two stores begin alike."""
        return _MARKER.pack(b"vt-tile\0", store_id, self.index, tile)

    def rows_marker(self, store_id: bytes, tile: int) -> bytes:
        """What stands right before the rows of tile number `tile`."""
        return _MARKER.pack(b"vt-rows\0", store_id, self.index, tile)


@dataclass(frozen=True)
class Metadata:
    """The whole JSON value: the store's identity (16 random bytes, part of each marker) and its tables."""

    store_id: bytes
    tables: tuple[TableLayout, ...]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def encode(metadata: Metadata) -> bytes:
    """The JSON value."""
    return json.dumps(
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


def decode(value: bytes, path: str) -> Metadata:
    """The JSON value of the store at `path`, every number checked. Raises StoreError."""
    if len(value) > META_LIMIT:
        raise StoreError(
            f"{path}: the table of contents has {len(value)} bytes, more than {META_LIMIT}; convert again."
        )
    data = parse_object(value, path, "table of contents of a row store", StoreError)
    if data.get("kind") != KIND:
        raise StoreError(f"{path}: this LMDB file is no row store; give the vocab.lmdb of a converted model.")
    if data.get("format") != FORMAT:
        raise StoreError(
            f"{path}: store format {data.get('format')!r} is not known (this version reads {FORMAT}); "
            "convert the model again."
        )
    try:
        store_id = bytes.fromhex(data["store_id"])
        tables = tuple(_decode_table(i, table) for i, table in enumerate(data["tables"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path}: the table of contents is damaged ({error!r}); convert the model again."
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
