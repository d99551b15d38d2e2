"""Rows read from the file: a few with `pread`, many through a mapping whose pages are dropped afterwards.

Measured on Linux 6.18 with ext4, 151,936 rows of 2,048 bytes, page cache warm. A page fault maps all cached
pages of the folio around it, so gathering 128 rows through a mapping leaves 170 MiB resident, and takes
0.40 ms with dropping them; `pread` takes 0.15 ms and leaves nothing. From about 16 rows per MiB, the mapping
is faster. Mapping and dropping 336 MB takes 2 ms after a scan has read the file in pieces of 2 MiB, and
40 ms where it is cached page by page. That happens if 300 single rows are read before the first scan: a
large page cannot take the place of a small one that is cached. So scans drop such pages first.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vt_core.errors import StoreError
from vt_core.store.layout import ALIGNMENT, MARKER_BYTES, TableLayout
from vt_core.store.lmdb_file import Value
from vt_core.store.page_cache import LARGE_PAGE, cached_pages, sparse_regions

#: Bytes of the file that a gather maps at a time: 32 MiB is 2 % faster, 8 MiB 3 % slower.
_REGION_BYTES = 16 << 20
#: Size of the buffer for rows that go to scattered places. Time of a gather relative to a numpy memmap: 1.17
#: with 1 MiB, 1.28 with 128 KiB, 1.45 with 64 KiB.
_SCRATCH_BYTES = 1 << 20
#: Regions with at least this many wanted rows are read through the mapping.
_DENSE_ROWS = 256
#: Seconds after which a scan looks for single pages in the cache again. Looking takes 3 ms for 336 MB.
_LOOK_AGAIN_S = 1.0


class MappedFile:
    """A file open for single rows (no readahead) and mapped for scans.

    Arrays over the mapping keep it alive and stay valid after this object is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        # Advice and readahead belong to the open file description, so scans need their own.
        mapped = os.open(path, os.O_RDONLY)
        try:
            self._mapping = mmap.mmap(mapped, self.size, access=mmap.ACCESS_READ)
        finally:
            os.close(mapped)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # A fault then reads and maps 2 MiB at once. Kernels without huge pages refuse, which is harmless.
            with contextlib.suppress(OSError):
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self._looked_at: float | None = None

    def rows(self, offset: int, count: int, stride: int, dtype: np.dtype) -> np.ndarray:
        """View `[count, stride / item size]` of the mapped file."""
        items = stride // dtype.itemsize
        return np.frombuffer(self._mapping, dtype, count * items, offset).reshape(count, items)

    def drop_pages(self) -> None:
        """Make every page of the mapping non-resident. Views stay valid; touching them reads the file again.

        Drops the whole mapping, because a fault also makes pages around the touched one resident.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def drop_cached(self, start: int, stop: int) -> None:
        """Ask the system to drop bytes start..stop from its page cache. Mapped pages are kept."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

    def drop_strays(self) -> None:
        """Drop what is cached of regions of 2 MiB of which less than half is, so that a fault can read and
        map a whole region. Such pages come from rows that were read one by one before the file was cached.
        """
        now = time.monotonic()
        if self._looked_at is not None and now < self._looked_at + _LOOK_AGAIN_S:
            return
        self._looked_at = now
        if not hasattr(mmap, "MADV_HUGEPAGE") or (cached := cached_pages(self._mapping)) is None:
            return
        for first, end in sparse_regions(cached, LARGE_PAGE // mmap.PAGESIZE):
            self.drop_cached(first * mmap.PAGESIZE, end * mmap.PAGESIZE)

    def read_each(self, offsets: np.ndarray, size: int, out: memoryview, places: np.ndarray) -> None:
        """Read `size` bytes at each of `offsets` into `out`; `places` are counted in units of `size`.

        Raises StoreError when the file ends early.
        """
        read, descriptor = os.pread, self.descriptor
        for offset, place in zip(offsets.tolist(), (places * size).tolist(), strict=True):
            try:
                out[place : place + size] = read(descriptor, size, offset)
            except ValueError as error:
                raise StoreError(
                    f"{self.path}: truncated while it was read; convert the model again."
                ) from error


def pieces(layout: TableLayout, max_bytes: int) -> Iterator[tuple[int, int, int]]:
    """First id, id after the last, and file offset of contiguous runs of rows, in id order.

    A run has at most `max_bytes`, or one row.
    """
    stride = layout.spec.stride
    most = max(1, max_bytes // stride)
    for tile, offset in enumerate(layout.tiles):
        first = tile * layout.tile_rows
        end = first + layout.tile_length(tile)
        for start in range(first, end, most):
            yield start, min(start + most, end), offset + (start - first) * stride


class MappedRows:
    """Rows of one table in a mapped file."""

    def __init__(self, file: MappedFile, layout: TableLayout) -> None:
        self._file = file
        self._layout = layout
        regions = list(pieces(layout, _REGION_BYTES))
        self._region_rows = max(stop - start for start, stop, _ in regions)
        self._region_lengths = [stop - start for start, stop, _ in regions]
        self._region_offsets = np.array([offset for _, _, offset in regions], np.int64)

    def gather(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Copy rows `ids` (int64, in range) to `out` `[n, columns]`, C-contiguous."""
        spec = self._layout.spec
        region, row = self._regions(ids)
        counts = np.bincount(region, minlength=len(self._region_lengths))
        dense = counts >= _DENSE_ROWS
        single = np.flatnonzero(~dense[region])
        offsets = self._region_offsets[region[single]] + row[single] * spec.stride
        self._file.read_each(offsets, spec.row_bytes, out.data.cast("B"), single)
        if len(single) < len(ids):
            self._gather_dense(region, counts, dense, row, out)

    def _regions(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Region of each of `ids`, and its row within the region."""
        tile, row = np.divmod(ids, self._layout.tile_rows)
        in_tile, row = np.divmod(row, self._region_rows)
        return tile * -(-self._layout.tile_rows // self._region_rows) + in_tile, row

    def tiles(self, max_bytes: int, drop_cached: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Start and zero-copy view [n, columns] of pieces of at most `max_bytes`, in id order."""
        spec = self._layout.spec
        self._file.drop_strays()
        for start, stop, offset in pieces(self._layout, max_bytes):
            end = offset + (stop - start) * spec.stride
            try:
                yield (
                    start,
                    self._file.rows(offset, stop - start, spec.stride, spec.storage)[:, : spec.columns],
                )
            finally:
                self._file.drop_pages()
                if drop_cached:  # a large page is dropped as a whole, with its last part
                    self._file.drop_cached(offset // LARGE_PAGE * LARGE_PAGE, end)

    def _gather_dense(
        self, region: np.ndarray, counts: np.ndarray, dense: np.ndarray, row: np.ndarray, out: np.ndarray
    ) -> None:
        stride = self._layout.spec.stride
        ends = np.cumsum(counts)
        in_order = bool((region[1:] >= region[:-1]).all())
        order = None if in_order else self._order(region, row)
        scratch = np.empty((max(1, _SCRATCH_BYTES // stride), stride), np.uint8)
        for i in np.flatnonzero(dense).tolist():
            span = slice(int(ends[i] - counts[i]), int(ends[i]))
            if order is None:
                self._gather_region(i, row[span], out[span], None, scratch)
            else:
                self._gather_region(i, row[order[span]], out, order[span], scratch)
            self._file.drop_pages()

    def _order(self, region: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Order of the wanted rows by region, and roughly by row within it, so that memory is read forwards.

        numpy sorts 16-bit keys by radix, five times faster than ids.
        """
        regions = len(self._region_lengths)
        steps = max(1, 65_536 // regions)
        key = region * steps + row * steps // self._region_rows
        return np.argsort(key.astype(np.min_scalar_type(regions * steps - 1)), kind="stable")

    def _gather_region(
        self, region: int, row: np.ndarray, out: np.ndarray, places: np.ndarray | None, scratch: np.ndarray
    ) -> None:
        """Copy rows, counted within the region, to `out` at `places`, or in order if that is None."""
        spec = self._layout.spec
        offset, length = int(self._region_offsets[region]), self._region_lengths[region]
        source = _row_elements(self._file.rows(offset, length, spec.stride, np.dtype(np.uint8)))
        target = _row_elements(out)
        # With "clip", `take` writes to `out` without a copy. The ids are in range.
        if places is None and spec.stride == spec.row_bytes:
            np.take(source, row, out=target, mode="clip")
            return
        # Few rows at a time, so that they are still in the processor's cache when they are put in place.
        for start in range(0, len(row), len(scratch)):
            some = slice(start, start + len(scratch))
            taken = scratch[: len(row[some])]
            np.take(source, row[some], out=_row_elements(taken), mode="clip")
            target[some if places is None else places[some]] = _row_elements(taken[:, : spec.row_bytes])


def _row_elements(rows: np.ndarray) -> np.ndarray:
    """View `[n]` of an array `[n, columns]` with one element per row: numpy gathers it 1.5 times faster."""
    return rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]


def find_tiles(
    file: MappedFile, layout: TableLayout, store_id: bytes, values: Mapping[bytes, Value]
) -> TableLayout:
    """`layout` with the offsets at which the tiles really are.

    A tile is where the table of contents says, or elsewhere in a compacted copy, whose pages have moved. The
    marker before its rows identifies it.

    Raises:
        StoreError: a tile is missing or damaged.
    """

    def marked(tile: int, offset: int) -> bool:
        marker = layout.marker(store_id, tile)
        fits = MARKER_BYTES <= offset <= file.size - layout.tile_bytes(tile)
        return fits and os.pread(file.descriptor, MARKER_BYTES, offset - MARKER_BYTES) == marker

    def find(tile: int, offset: int) -> int:
        if marked(tile, offset):
            return offset
        value = values.get(layout.key(tile), Value(0, 0))
        start = os.pread(file.descriptor, min(value.size, ALIGNMENT + MARKER_BYTES), value.offset)
        found = start.find(layout.marker(store_id, tile))
        end = found + MARKER_BYTES + layout.tile_bytes(tile)
        if found < 0 or end > value.size or value.offset + end > file.size:
            raise StoreError(
                f"{file.path}: tile {tile} of table {layout.spec.name!r} is missing or damaged; convert the "
                "model again."
            )
        return value.offset + found + MARKER_BYTES

    return replace(layout, tiles=tuple(find(tile, offset) for tile, offset in enumerate(layout.tiles)))
