"""Rows are read as they were written: by id, by tile, from several objects and processes at once."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import mmap
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.store.stores import metadata, numbered, write
from vt_core.errors import StoreError
from vt_core.files.dtypes import storage_dtype
from vt_core.store import RowTable, Store, StoreWriter, TableSpec, layout, mapped, reader
from vt_core.store.page_cache import cached_pages, sparse_regions

DTYPES = ["float32", "float16", "bfloat16", "uint32", "uint8"]


def small_regions():
    """Shrink the limits, so that a small table takes every code path of a large one."""
    return mock.patch.multiple(mapped, _REGION_BYTES=96, _SCRATCH_BYTES=40, _DENSE_ROWS=3)


def scanned(table: RowTable, max_bytes: int = reader.TILE_BYTES) -> np.ndarray:
    return np.concatenate([tile.rows for tile in table.tiles(max_bytes)])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 21))
    dtype = data.draw(st.sampled_from(DTYPES))
    tile_rows = data.draw(st.integers(1, 45))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    ids = data.draw(st.lists(st.integers(0, rows - 1), max_size=60))
    max_bytes = data.draw(st.integers(1, 500))
    seed = data.draw(st.integers(0, 2**32 - 1))
    storage = storage_dtype(dtype)
    bytes_ = np.random.default_rng(seed).integers(0, 256, rows * columns * storage.itemsize, np.uint8)
    values = bytes_.view(storage).reshape(rows, columns)

    with tempfile.TemporaryDirectory() as directory, small_regions():
        with StoreWriter(directory, tile_rows=tile_rows) as writer:
            checksum = writer.add_table(TableSpec("t", rows, columns, dtype), np.split(values, cuts))
        with Store.open(directory) as store:
            table = store.tables["t"]
            assert table.spec == TableSpec("t", rows, columns, dtype)
            assert table.read(np.array(ids)).tobytes() == values[ids].tobytes()
            assert scanned(table, max_bytes).tobytes() == values.tobytes()
            assert table.checksum() == table.stored_checksum == checksum
    assert checksum == f"sha256:{hashlib.sha256(values.tobytes()).hexdigest()}"


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 1000))
def test_pieces_cover_each_row_once_in_order(rows: int, tile_rows: int, max_bytes: int) -> None:
    spec = TableSpec("t", rows, 5, "float32")
    tiles = tuple(100_000 * (i + 1) for i in range(-(-rows // tile_rows)))
    table = layout.TableLayout(0, spec, tile_rows, "", tiles)
    pieces = list(mapped.pieces(table, max_bytes))
    assert [i for start, stop, _ in pieces for i in range(start, stop)] == list(range(rows))
    for start, stop, offset in pieces:
        assert stop - start == 1 or (stop - start) * spec.stride <= max_bytes
        tile = start // tile_rows
        assert tile == (stop - 1) // tile_rows
        assert offset == tiles[tile] + (start - tile * tile_rows) * spec.stride


@pytest.mark.parametrize("page", [4096, 16_384])
@pytest.mark.parametrize("columns", [1, 7, 512])
def test_tiles_start_on_a_page(tmp_path: Path, page: int, columns: int) -> None:
    with StoreWriter(tmp_path / "s", tile_rows=100) as writer:
        for name in ("embedding", "head"):
            writer.add_table(TableSpec(name, 950, columns, "uint8"), [numbered(950, columns, np.uint8)])
    tables = metadata(tmp_path / "s").tables
    starts = [offset for table in tables for offset in table.tiles]
    assert len(set(starts)) == 20
    assert all(offset % page == 0 for offset in starts)


def test_rows_are_padded_to_16_bytes_and_views_hide_it(tmp_path: Path) -> None:
    values = numbered(20, 3)
    write(tmp_path / "s", values)
    with Store.open(tmp_path / "s") as store:
        tile = next(store.tables["embedding"].tiles())
        assert tile.start == 0
        assert tile.rows.shape == (8, 3)
        assert tile.rows.strides == (16, 2)
        assert tile.rows.tolist() == values[:8].tolist()
        assert not tile.rows.flags.writeable


def test_unpadded_tiles_are_contiguous_views_in_id_order(tmp_path: Path) -> None:
    values = numbered(20, 8)
    write(tmp_path / "s", values)
    with Store.open(tmp_path / "s") as store:
        tiles = list(store.tables["embedding"].tiles(max_bytes=5 * 16))
    assert [tile.start for tile in tiles] == [0, 5, 8, 13, 16]
    assert all(tile.rows.flags.c_contiguous and not tile.rows.flags.owndata for tile in tiles)


def test_several_tables(tmp_path: Path) -> None:
    bias = np.array([[0.5, -1.0, 2.0]], np.float32)
    with StoreWriter(tmp_path / "s", tile_rows=8) as writer:
        writer.add_table(TableSpec("embedding", 30, 4, "bfloat16"), [numbered(30, 4)])
        writer.add_table(TableSpec("head", 30, 4, "bfloat16"), [numbered(30, 4) + 7])
        writer.add_table(TableSpec("head_bias", 1, 3, "float32"), [bias])
    with Store.open(tmp_path / "s") as store:
        assert list(store.tables) == ["embedding", "head", "head_bias"]
        assert store.tables["embedding"].read(np.array([29])).tolist() == [[117, 118, 119, 120]]
        assert store.tables["head"].read(np.array([29])).tolist() == [[124, 125, 126, 127]]
        assert store.tables["head_bias"].read(np.array([0])).tolist() == bias.tolist()


@pytest.mark.parametrize("wrong", [-1, 20, 2**40])
def test_an_id_out_of_range_is_refused(tmp_path: Path, wrong: int) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with (
        Store.open(tmp_path / "s") as store,
        pytest.raises(StoreError, match=rf"'embedding' has no row {wrong}; its rows are 0 to 19"),
    ):
        store.tables["embedding"].read(np.array([3, wrong, 4]))


@pytest.mark.parametrize("ids", [np.array([[1]]), np.array([1.0]), np.array([True])])
def test_ids_must_be_a_list_of_integers(tmp_path: Path, ids: np.ndarray) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store, pytest.raises(StoreError, match="must be \\[n\\] integers"):
        store.tables["embedding"].read(ids)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_ids_of_any_integer_type(tmp_path: Path, kind: type) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store:
        assert store.tables["embedding"].read(np.array([19, 0], kind)).tolist() == [[58, 59, 60], [1, 2, 3]]


def test_no_ids_give_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store:
        assert store.tables["embedding"].read(np.array([])).shape == (0, 3)


def test_rows_are_written_to_out(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    out = np.zeros((2, 3), np.uint16)
    with Store.open(tmp_path / "s") as store:
        table = store.tables["embedding"]
        assert table.read(np.array([1, 0]), out) is out
        assert out.tolist() == [[4, 5, 6], [1, 2, 3]]
        for unfit in (out[:1], out.astype(np.int16), np.zeros((3, 2), np.uint16).T):
            with pytest.raises(StoreError, match="out must be contiguous"):
                table.read(np.array([1, 0]), unfit)


def test_bytes_read_counts_gathered_rows_only(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store:
        table = store.tables["embedding"]
        scanned(table)
        assert table.bytes_read == 0
        table.read(np.array([1, 1, 5]))
        table.read(np.array([7]))
        assert table.bytes_read == 4 * 6


def test_views_outlive_the_store(tmp_path: Path) -> None:
    values = numbered(2000, 512)
    write(tmp_path / "s", values, tile_rows=1000)
    store = Store.open(tmp_path / "s")
    tiles = list(store.tables["embedding"].tiles())
    store.close()
    del store
    gc.collect()
    for file in (tmp_path / "s").iterdir():
        file.unlink()
    assert np.concatenate([tile.rows for tile in tiles]).tolist() == values.tolist()


def test_a_closed_store_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store:
        table = store.tables["embedding"]
        scan = table.tiles()
        next(scan)
    for call in (
        lambda: table.read(np.array([1])),
        lambda: next(scan),
        lambda: next(table.tiles()),
        table.checksum,
    ):
        with pytest.raises(StoreError, match="has been closed"):
            call()


def open_descriptors() -> int:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_stores_of_one_file_share_its_mapping(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    (tmp_path / "link").symlink_to(tmp_path / "s")
    before = open_descriptors()
    first = Store.open(tmp_path / "s")
    shared = open_descriptors()
    second = Store.open(str(tmp_path / "link"))
    assert open_descriptors() == shared > before
    first.tables["embedding"].read(np.array([0]))
    assert (first.tables["embedding"].bytes_read, second.tables["embedding"].bytes_read) == (6, 0)
    first.close()
    first.close()
    assert second.tables["embedding"].read(np.array([0])).tolist() == [[1, 2, 3]]
    second.close()
    assert open_descriptors() == before


def test_a_replaced_file_is_another_store(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as old:
        (tmp_path / "s").rename(tmp_path / "old")
        write(tmp_path / "s", numbered(20, 3) + 100)
        with Store.open(tmp_path / "s") as new:
            assert old.tables["embedding"].read(np.array([0])).tolist() == [[1, 2, 3]]
            assert new.tables["embedding"].read(np.array([0])).tolist() == [[101, 102, 103]]


def test_an_unclosed_store_frees_its_descriptors(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    before = open_descriptors()
    Store.open(tmp_path / "s").tables["embedding"].read(np.array([0]))
    assert open_descriptors() == before


def run_in_child(check) -> None:
    """Run `check` in a forked child, which must end well within 10 seconds."""
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_reads_and_opens_the_store(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store:
        inherited = store.tables["embedding"]

        def check() -> None:
            assert inherited.read(np.array([19])).tolist() == [[58, 59, 60]]
            assert scanned(inherited).tolist() == numbered(20, 3).tolist()
            store.close()
            with Store.open(tmp_path / "s") as fresh:
                assert fresh.tables["embedding"].read(np.array([0])).tolist() == [[1, 2, 3]]

        run_in_child(check)
        assert inherited.read(np.array([0])).tolist() == [[1, 2, 3]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_opens_does_not_deadlock(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    stop = threading.Event()

    def open_and_close() -> None:
        while not stop.is_set():
            Store.open(tmp_path / "s").close()

    thread = threading.Thread(target=open_and_close)
    thread.start()
    try:
        for _ in range(20):
            run_in_child(lambda: Store.open(tmp_path / "s").close())
    finally:
        stop.set()
        thread.join()


def test_processes_read_one_store_at_once(tmp_path: Path) -> None:
    values = numbered(3000, 64)
    checksum = write(tmp_path / "s", values, tile_rows=1024)
    code = (
        "import sys, numpy as np\n"
        "from vt_core.store import Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    table = store.tables['embedding']\n"
        "    input()\n"
        "    ids = np.arange(2999, -1, -1)\n"
        "    for _ in range(20): rows = table.read(ids)\n"
        "    print(table.checksum(), int(rows[0, 0]))\n"
    )
    root = str(Path(__file__).parents[3])
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "s")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        for _ in range(3)
    ]
    for process in readers:
        process.stdin.write("\n")
        process.stdin.flush()
    expected = f"{checksum} {values[2999, 0]}\n"
    assert [process.communicate(timeout=30)[0] for process in readers] == [expected] * 3


def resident_bytes(file: Path) -> int:
    """Bytes of the mappings of `file` that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_tiles_of_wide_rows_have_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vt_core.store.writer.TILE_BYTES", 1000)
    values = numbered(50, 64)
    write(tmp_path / "s", values, tile_rows=16)
    assert metadata(tmp_path / "s").tables[0].tile_rows == 1000 // 128
    with Store.open(tmp_path / "s") as store:
        assert scanned(store.tables["embedding"]).tolist() == values.tolist()
        assert store.tables["embedding"].read(np.array([49, 7])).tolist() == values[[49, 7]].tolist()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_scans_and_gathers_leave_at_most_one_tile_resident(tmp_path: Path) -> None:
    # The system maps up to 2 MiB around a touched page.
    slack = 4 << 20
    rows, columns = 12_000, 1024
    with StoreWriter(tmp_path / "s", tile_rows=4096) as writer:
        writer.add_table(TableSpec("embedding", rows, columns, "bfloat16"), [numbered(1000, columns)] * 12)
    file = (tmp_path / "s" / "data.mdb").resolve()
    with Store.open(file.parent) as store:
        table = store.tables["embedding"]
        peak = 0
        for tile in table.tiles(max_bytes=1 << 20):
            tile.rows.sum()
            peak = max(peak, resident_bytes(file))
        assert 1 << 20 <= peak <= (1 << 20) + slack
        assert resident_bytes(file) == 0
        for ids in (np.arange(0, rows, 500), np.arange(0, rows, 2), np.arange(rows)[::-1]):
            assert table.read(ids)[-1].tolist() == numbered(1000, columns)[ids[-1] % 1000].tolist()
            assert resident_bytes(file) == 0


def test_sparse_regions_are_those_with_few_cached_pages() -> None:
    cached = np.zeros(14, bool)
    cached[[1, 4, 5, 8, 9, 10, 11, 13]] = True  # 1, 2 and 4 pages of 4, and 1 of the last 2
    assert list(sparse_regions(cached, 4)) == [(0, 4)]
    assert list(sparse_regions(np.zeros(14, bool), 4)) == list(sparse_regions(np.ones(14, bool), 4)) == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_scans_drop_pages_that_single_rows_left(tmp_path: Path) -> None:
    values = numbered(8192, 512)
    write(tmp_path / "s", values, tile_rows=4096)
    with Store.open(tmp_path / "s") as store:
        table = store.tables["embedding"]
        file = table._opened.file
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        before = cached_pages(file._mapping)
        assert before is None or len(before) == -(-file.size // mmap.PAGESIZE)
        if before is None or before.any():
            pytest.skip("the system does not tell what it keeps, or keeps all files in memory")
        table.read(np.arange(0, 8192, 500))
        strays = cached_pages(file._mapping).sum()
        assert 10 <= strays <= 17
        file.drop_strays()
        assert cached_pages(file._mapping).sum() == 0
        table.read(np.arange(0, 8192, 500))
        file.drop_strays()  # looks once a second at most
        assert cached_pages(file._mapping).sum() == strays
        assert scanned(table).tolist() == values.tolist()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_scans_keep_pages_of_a_cached_file(tmp_path: Path) -> None:
    values = numbered(4096, 512)
    write(tmp_path / "s", values, tile_rows=4096)
    with Store.open(tmp_path / "s") as store:
        file = store.tables["embedding"]._opened.file
        (tmp_path / "s" / "data.mdb").read_bytes()
        with mock.patch.object(file, "drop_cached") as dropped:
            file.drop_strays()
        dropped.assert_not_called()


def cached_share(file: Path) -> float:
    """Share of sampled pages of the file that the system has in its cache."""
    with open(file, "rb", buffering=0) as opened:
        # The check itself reads a page; without this advice it would read ahead as well.
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        offsets = range(0, file.stat().st_size, 256 << 10)
        cached = 0
        for offset in offsets:
            with contextlib.suppress(BlockingIOError):
                cached += os.preadv(opened.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
    return cached / len(offsets)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs reads that do not wait")
def test_drop_cached_empties_the_page_cache(tmp_path: Path) -> None:
    values = numbered(8192, 512)
    write(tmp_path / "s", values, tile_rows=4096)
    file = tmp_path / "s" / "data.mdb"
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        if cached_share(file) > 0.5:
            pytest.skip("this file system keeps its files in memory")
    except OSError as error:
        pytest.skip(f"this file system cannot tell: {error}")
    with Store.open(tmp_path / "s") as store:
        table = store.tables["embedding"]
        assert scanned(table).tolist() == values.tolist()
        assert cached_share(file) > 0.9
        for tile in table.tiles(max_bytes=1 << 20, drop_cached=True):
            assert tile.rows[0, 0] == values[tile.start, 0]
        assert cached_share(file) < 0.5
