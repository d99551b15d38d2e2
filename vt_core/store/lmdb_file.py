"""LMDB 0.9's file format: the header and the tree of keys, read without the LMDB library.

LMDB trusts its file. It maps the file without looking at its size and follows page numbers without checking
them, so that a truncated file or one changed bit ends in a bus error. This reader checks every number before
it follows it. Writing uses the library (`vt_core.store.writer`).

A page begins with its number (8 bytes), 2 unused bytes, flags (2) and the end of its node pointers (2). A
branch page's nodes point to pages. A leaf page's nodes hold a key with its value, or with the first of the
overflow pages that hold the value, one after another after one page header.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vt_core.errors import StoreError

DATA_FILE = "data.mdb"
PAGE_HEADER_BYTES = 16

_MAGIC = 0xBEEFC0DE
_VERSION_09 = 1
_PAGE_HEADER_BYTES_10 = 24
# magic, version, map address, map size, record of the free list (its first field is the page size), record of
# the main database (its last field is the root page), last page, transaction
_META = struct.Struct("<IIQQI44x40xQQQ")
_PAGE = struct.Struct("<Q2xHH2x")
_OVERFLOW_COUNT = struct.Struct("<12xI")
# value size or page number in three parts, the last of which is the flags of a leaf's node; length of the key
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_VALUE_IN_OVERFLOW = 0x01
_NO_PAGE = 2**64 - 1
_META_PAGES = 2


@dataclass(frozen=True)
class Header:
    """What the newer of a file's two meta pages says."""

    page_size: int  #: bytes
    root: int  #: page number of the tree's root; `_NO_PAGE` for an empty file
    last_page: int  #: number of the last page in use

    @property
    def needed_bytes(self) -> int:
        """The smallest size that the file can have."""
        return (self.last_page + 1) * self.page_size


class Value(NamedTuple):
    """Where a value lies in the file."""

    offset: int
    size: int


def data_file(path: Path) -> Path:
    """The file of the store directory `path`. Raises StoreError when there is none."""
    if not path.exists():
        raise StoreError(f"{path}: there is no row store; convert the model first.")
    file = path / DATA_FILE
    if not file.is_file():
        raise StoreError(f"{path}: not a row store ({DATA_FILE} is missing); convert the model again.")
    return file


def read_header(descriptor: int, file: Path) -> Header:
    """Header of an open file. Raises StoreError when it is foreign, of another engine, or too short."""
    first = _read_meta(descriptor, 0)
    if first is None:
        raise _foreign(descriptor, file)
    page_size = first[4]
    if page_size & (page_size - 1) or not 256 <= page_size <= 65_536:
        raise _damaged(file, f"pages of {page_size} bytes")
    size = os.fstat(descriptor).st_size
    second = _read_meta(descriptor, page_size)
    if second is None:
        if size < _META_PAGES * page_size:
            raise _truncated(file, size, _META_PAGES * page_size)
        raise _damaged(file, "second header")
    newest = first if first[7] >= second[7] else second
    header = Header(page_size, newest[5], newest[6])
    if size < header.needed_bytes:
        raise _truncated(file, size, header.needed_bytes)
    return header


def read_values(descriptor: int, file: Path) -> dict[bytes, Value]:
    """Keys of an open file, and where their values lie. Values themselves are not read.

    Raises StoreError when the header or a page of the tree is damaged.
    """
    header = read_header(descriptor, file)
    values: dict[bytes, Value] = {}
    pending = [] if header.root == _NO_PAGE else [header.root]
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number in seen:
            raise _damaged(file, f"page {number} is linked twice")
        seen.add(number)
        try:
            pending += _read_page(descriptor, header, number, values)
        except (struct.error, ValueError) as error:
            raise _damaged(file, f"page {number}: {error}") from error
    return values


def _read_page(descriptor: int, header: Header, number: int, values: dict[bytes, Value]) -> list[int]:
    """Add the values of a leaf page to `values`; return the children of a branch page.

    Raises ValueError or struct.error for anything that cannot be.
    """
    page = _page_bytes(descriptor, header, number, header.page_size)
    own_number, flags, pointers_end = _PAGE.unpack_from(page)
    if own_number != number or flags not in (_BRANCH, _LEAF) or pointers_end > len(page):
        raise ValueError("page header")
    children = []
    for at in struct.unpack_from(f"<{(pointers_end - PAGE_HEADER_BYTES) // 2}H", page, PAGE_HEADER_BYTES):
        low, middle, high, key_bytes = _NODE.unpack_from(page, at)
        if flags == _BRANCH:
            children.append(low | middle << 16 | high << 32)
            continue
        start = at + _NODE.size + key_bytes
        key, size = page[at + _NODE.size : start], low | middle << 16
        if high == _VALUE_IN_OVERFLOW:
            (first,) = struct.unpack_from("<Q", page, start)
            values[key] = _overflow_value(descriptor, header, first, size)
        elif high == 0 and start + size <= len(page):
            values[key] = Value(number * header.page_size + start, size)
        else:  # nothing that the writer writes
            raise ValueError("node")
    return children


def _overflow_value(descriptor: int, header: Header, first: int, size: int) -> Value:
    page = _page_bytes(descriptor, header, first, PAGE_HEADER_BYTES)
    number, flags, _ = _PAGE.unpack_from(page)
    (count,) = _OVERFLOW_COUNT.unpack_from(page)
    fits = PAGE_HEADER_BYTES + size <= count * header.page_size and first + count - 1 <= header.last_page
    if number != first or flags != _OVERFLOW or not fits:
        raise ValueError(f"overflow page {first}")
    return Value(first * header.page_size + PAGE_HEADER_BYTES, size)


def _page_bytes(descriptor: int, header: Header, number: int, size: int) -> bytes:
    if not _META_PAGES <= number <= header.last_page:
        raise ValueError(f"there is no page {number}")
    return os.pread(descriptor, size, number * header.page_size)


def _read_meta(descriptor: int, page_at: int) -> tuple[int, ...] | None:
    data = os.pread(descriptor, _META.size, page_at + PAGE_HEADER_BYTES)
    if len(data) < _META.size:
        return None
    meta = _META.unpack(data)
    return meta if meta[:2] == (_MAGIC, _VERSION_09) else None


def _foreign(descriptor: int, file: Path) -> StoreError:
    start = os.pread(descriptor, 64, 0)
    for at in (PAGE_HEADER_BYTES, _PAGE_HEADER_BYTES_10):
        if start[at : at + 4] == _MAGIC.to_bytes(4, "little"):
            version = int.from_bytes(start[at + 4 : at + 8], "little")
            return StoreError(
                f"{file}: written by another LMDB engine (data version {version}, LMDB 1.0 or a preview "
                f"of it); this package reads LMDB 0.9 (data version {_VERSION_09}): convert the model again."
            )
    return StoreError(f"{file}: this is not an LMDB file; convert the model again.")


def _truncated(file: Path, size: int, needed: int) -> StoreError:
    return StoreError(f"{file}: truncated to {size} of {needed} bytes; convert the model again.")


def _damaged(file: Path, what: str) -> StoreError:
    return StoreError(f"{file}: the LMDB file is damaged ({what}); convert the model again.")


def engine_options() -> dict[str, Any]:
    """Options that make LMDB use the 0.9 format: none for a py-lmdb that has no other.

    Raises StoreError when this py-lmdb cannot.
    """
    import lmdb

    try:
        lmdb.version(lib_version=0)
    except TypeError:
        return {}
    except lmdb.Error as error:
        raise StoreError(
            f"This build of py-lmdb has no LMDB 0.9 engine ({error}); install lmdb from PyPI."
        ) from error
    return {"lib_version": 0}
