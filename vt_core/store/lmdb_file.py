"""The LMDB file: its header, read by hand before LMDB may touch it, and short-lived environments.

LMDB maps a file without looking at its length, so a truncated one ends in a bus error: the header says how
long it must be. No environment outlives a call here: nothing is inherited by a fork, no file is opened
twice in one process, and no reader slot is held.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.errors import StoreError

DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"
# Before a page's content, and so before a value that has pages of its own.
PAGE_HEADER_BYTES = 16

_MAGIC = 0xBEEFC0DE
_VERSION_09 = 1
_PAGE_HEADER_10 = 24
# magic, version, map address, map size, the free list's record (its first field is the page size), the main
# database's record, last page, transaction
_META_PAGE = struct.Struct("<IIQQI44x48xQQ")

_opening = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release
    )


@dataclass(frozen=True)
class Header:
    """Of an LMDB 0.9 file: bytes of a page, number of the last page in use."""

    page_size: int
    last_page: int

    @property
    def needed_bytes(self) -> int:
        """The least length of the file."""
        return (self.last_page + 1) * self.page_size


def data_file(path: Path) -> Path:
    """The file of the store directory `path`. Raises StoreError when there is none."""
    if not path.exists():
        raise StoreError(f"{path}: there is no row store; convert the model first.")
    file = path / DATA_FILE
    if not file.is_file():
        raise StoreError(f"{path}: this is no row store ({DATA_FILE} is missing); convert the model again.")
    return file


def read_header(descriptor: int, file: Path) -> Header:
    """Header of an open file. Raises StoreError when it is foreign, of another engine, or too short."""
    first = _read_meta(descriptor, 0)
    if first is None:
        raise _foreign(descriptor, file)
    page_size = first[4]
    if page_size & (page_size - 1) or not 256 <= page_size <= 65_536:
        raise StoreError(f"{file}: a page of {page_size} bytes is not possible; convert the model again.")
    second = _read_meta(descriptor, page_size)
    if second is None:
        raise _truncated(file, os.fstat(descriptor).st_size, 2 * page_size)
    newest = first if first[6] >= second[6] else second
    header = Header(page_size, newest[5])
    size = os.fstat(descriptor).st_size
    if size < header.needed_bytes:
        raise _truncated(file, size, header.needed_bytes)
    return header


def _read_meta(descriptor: int, page_at: int) -> tuple[int, ...] | None:
    data = os.pread(descriptor, _META_PAGE.size, page_at + PAGE_HEADER_BYTES)
    if len(data) < _META_PAGE.size:
        return None
    meta = _META_PAGE.unpack(data)
    return meta if meta[:2] == (_MAGIC, _VERSION_09) else None


def _foreign(descriptor: int, file: Path) -> StoreError:
    start = os.pread(descriptor, 64, 0)
    for at in (PAGE_HEADER_BYTES, _PAGE_HEADER_10):
        if start[at : at + 4] == _MAGIC.to_bytes(4, "little"):
            version = int.from_bytes(start[at + 4 : at + 8], "little")
            return StoreError(
                f"{file}: written by another LMDB engine (data version {version}, LMDB 1.0 or a preview "
                f"of it); this package reads LMDB 0.9 (data version {_VERSION_09}): convert the model again."
            )
    return StoreError(f"{file}: this is no LMDB file; convert the model again.")


def _truncated(file: Path, size: int, needed: int) -> StoreError:
    return StoreError(f"{file}: truncated to {size} of {needed} bytes; convert the model again.")


def engine_options() -> dict[str, Any]:
    """Options that make LMDB use the 0.9 format: none for a py-lmdb that knows no other.

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


@contextmanager
def snapshot(path: Path) -> Iterator[Any]:
    """A read transaction (values as memoryviews) on the store directory `path`, closed at the end.

    Views of values must not be used afterwards. Raises StoreError for what LMDB cannot read.
    """
    import lmdb

    with _opening:
        environment = _open_for_reading(path)
        try:
            with environment.begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreError(f"{path}: LMDB cannot read it ({error}); convert the model again.") from error
        finally:
            environment.close()


def _open_for_reading(path: Path) -> Any:
    import lmdb

    options = {"readonly": True, "create": False, "readahead": False, **engine_options()}
    try:
        return lmdb.open(str(path), **options)
    except lmdb.Error as error:
        # Another user's directory may take no lock file of ours. Nobody writes a finished store, so reading
        # without one is safe there.
        lock_file = path / LOCK_FILE
        if os.access(lock_file if lock_file.exists() else path, os.W_OK):
            raise StoreError(f"{path}: LMDB cannot open it ({error}); convert the model again.") from error
    try:
        return lmdb.open(str(path), lock=False, **options)
    except lmdb.Error as error:
        raise StoreError(f"{path}: LMDB cannot open it ({error}); convert the model again.") from error
