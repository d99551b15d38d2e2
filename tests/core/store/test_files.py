"""Store files: the bytes of the format, copies that can still be read, and damaged files."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.store.stores import metadata, numbered, put, value, write
from vt_core.errors import StoreError
from vt_core.store import Store, StoreWriter, TableSpec, lmdb_file, writer
from vt_core.store.layout import META_KEY, Metadata, TableLayout, decode, encode

GOLDEN = Metadata(
    bytes(range(16)),
    (
        TableLayout(
            0, TableSpec("embedding", 20_000, 3, "bfloat16"), 16_384, "sha256:00ff", (16_384, 311_296)
        ),
        TableLayout(1, TableSpec("head_bias", 1, 5, "float32"), 16_384, "sha256:11", (393_216,)),
    ),
)
GOLDEN_JSON = (
    b'{"format":2,"kind":"vt-rows","store_id":"000102030405060708090a0b0c0d0e0f","tables":['
    b'{"name":"embedding","rows":20000,"columns":3,"dtype":"bfloat16","stride":16,"tile_rows":16384,'
    b'"checksum":"sha256:00ff","tiles":[16384,311296]},'
    b'{"name":"head_bias","rows":1,"columns":5,"dtype":"float32","stride":32,"tile_rows":16384,'
    b'"checksum":"sha256:11","tiles":[393216]}]}'
)
GOLDEN_BYTES = b"840ef816f32213b7c62489d0b84eead242b379f518dff5237fd8ec18fc826381" + GOLDEN_JSON


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as caught:
        Store.open(path)
    assert str(path) in str(caught.value)


def change(path: Path, edit: Callable[[dict], object]) -> None:
    """Edit the table of contents of a closed store."""
    contents = json.loads(encode(metadata(path))[64:])
    edit(contents)
    put(path, META_KEY, with_digest(json.dumps(contents).encode()))


def with_digest(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode() + contents


def test_golden_table_of_contents() -> None:
    assert encode(GOLDEN) == GOLDEN_BYTES
    assert decode(GOLDEN_BYTES, "here") == GOLDEN


def test_golden_marker() -> None:
    table = GOLDEN.tables[1]
    rest = bytes(range(16)) + b"\x01\0\0\0" + b"\x02\x01\0\0"
    assert table.marker(GOLDEN.store_id, 258) == b"vt-rows\0" + rest
    assert table.key(258) == b"tile/head_bias/00000258"


def test_a_value_is_zeros_marker_rows_zeros(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(10, 3))
    contents = metadata(tmp_path / "s")
    table = contents.tables[0]
    rows = struct.pack("<3H10x3H10x", 25, 26, 27, 28, 29, 30)
    tile = value(tmp_path / "s", b"tile/embedding/00000001")
    before, after = tile.split(table.marker(contents.store_id, 1) + rows)
    assert not any(before)
    assert not any(after)
    file = (tmp_path / "s" / "data.mdb").read_bytes()
    assert file[table.tiles[1] :].startswith(rows)


@given(st.data())
def test_a_damaged_table_of_contents_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOLDEN_BYTES) - 1))
    byte = data.draw(st.binary(min_size=0, max_size=2).filter(lambda byte: byte != GOLDEN_BYTES[at : at + 1]))
    with pytest.raises(StoreError, match=r"^here"):
        decode(GOLDEN_BYTES[:at] + byte + GOLDEN_BYTES[at + 1 :], "here")


@given(st.data())
def test_a_wrong_table_of_contents_is_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOLDEN_JSON) - 1))
    byte = data.draw(st.binary(min_size=0, max_size=2))
    try:
        decode(with_digest(GOLDEN_JSON[:at] + byte + GOLDEN_JSON[at + 1 :]), "here")
    except StoreError as error:
        assert str(error).startswith("here")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: c.update(format=3), r"store format 3 is unknown \(this version reads 2\)"),
        (lambda c: c.update(kind="other"), "is not a row store"),
        (lambda c: c.pop("store_id"), "damaged"),
        (lambda c: c.update(store_id="00"), "damaged"),
        (lambda c: c["tables"].append(c["tables"][0]), "damaged"),
        (lambda c: c["tables"][0].update(rows=25), "says 25 rows but lists 3 tiles of 8"),
        (lambda c: c["tables"][0].update(rows=-1), "cannot have -1 rows"),
        (lambda c: c["tables"][0].update(rows=True), "cannot have True rows"),
        (lambda c: c["tables"][0].update(columns=2**70), "cannot have .* columns"),
        (lambda c: c["tables"][0].update(columns=100), "damaged"),
        (lambda c: c["tables"][0].update(dtype="float8"), "'float8' is unknown"),
        (lambda c: c["tables"][0].update(tile_rows=0), "damaged"),
        (lambda c: c["tables"][0].update(checksum=None), "damaged"),
        (lambda c: c["tables"][0].update(tiles=[16_384, -16_384, 32_768]), "damaged"),
        (lambda c: c["tables"][0].update(tiles=[16_384, 20_000, 32_768]), "damaged"),
        (lambda c: c["tables"][0].update(tiles=[16_384, None, 32_768]), "damaged"),
    ],
)
def test_an_impossible_table_of_contents_is_refused(
    tmp_path: Path, edit: Callable[[dict], object], sentence: str
) -> None:
    write(tmp_path / "s", numbered(20, 3))
    change(tmp_path / "s", edit)
    refused(tmp_path / "s", sentence)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"\xff" * 100, "damaged .digest"),
        (with_digest(b"\xff"), "not UTF-8 text"),
        (with_digest(b"[" * 100_000), "levels deep"),
        (GOLDEN_JSON.replace(b'"format":2', b'"format":1'), "store format 1 is unknown"),
        (b" " * (17 << 20), "has 17825792 bytes"),
    ],
)
def test_unreadable_contents_are_refused(tmp_path: Path, contents: bytes, sentence: str) -> None:
    write(tmp_path / "s", numbered(20, 3))
    put(tmp_path / "s", META_KEY, contents)
    refused(tmp_path / "s", sentence)


@pytest.mark.parametrize("offset", [0, 16_384, 2**40])
def test_a_tile_with_a_wrong_offset_is_found(tmp_path: Path, offset: int) -> None:
    values = numbered(20, 3)
    write(tmp_path / "s", values)
    change(tmp_path / "s", lambda contents: contents["tables"][0]["tiles"].__setitem__(1, offset))
    with Store.open(tmp_path / "s") as store:
        table = store.tables["embedding"]
        assert table.read(np.array([9, 0])).tolist() == values[[9, 0]].tolist()


def test_missing_and_empty_directories_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no row store; convert")
    refused(tmp_path, r"not a row store \(data.mdb is missing\)")


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000, b"\0" * 40_000])
def test_a_file_that_is_not_lmdb_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    refused(tmp_path, "this is not an LMDB file")


def test_a_file_of_the_other_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"\0" * 24 + struct.pack("<II", 0xBEEFC0DE, 3) + b"\0" * 40_000)
    refused(tmp_path, r"another LMDB engine \(data version 3.*reads LMDB 0.9")


def test_a_real_file_of_the_other_engine_is_refused(tmp_path: Path) -> None:
    try:
        environment = lmdb.open(str(tmp_path / "s"), lib_version=1)
    except (TypeError, lmdb.Error):
        pytest.skip("this py-lmdb has one engine")
    environment.close()
    refused(tmp_path / "s", "another LMDB engine")


def test_format_09_is_written_with_any_default_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, numpy as np\n"
        "from vt_core.store import StoreWriter, TableSpec\n"
        "with StoreWriter(sys.argv[1]) as writer:\n"
        "    writer.add_table(TableSpec('t', 2, 2, 'uint8'), [np.ones((2, 2), np.uint8)])\n"
    )
    environment = {
        **os.environ,
        "LMDB_DEFAULT_LIB_VERSION": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True, env=environment)
    with Store.open(tmp_path / "s") as store:
        assert store.tables["t"].read(np.array([1])).tolist() == [[1, 1]]


def test_no_engine_option_for_a_py_lmdb_with_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(subpatch: bool = False) -> tuple[int, ...]:
        return (0, 9, 31)

    monkeypatch.setattr(lmdb, "version", version)
    assert lmdb_file.engine_options() == {}


def test_another_lmdb_database_is_refused(tmp_path: Path) -> None:
    with (
        lmdb.open(str(tmp_path / "s"), **lmdb_file.engine_options()) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"key", b"value")
    refused(tmp_path / "s", "never finished")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    whole = (tmp_path / "s" / "data.mdb").read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    for length in [*range(4096, len(whole), 4096), len(whole) - 1]:
        (cut / "data.mdb").write_bytes(whole[:length])
        refused(cut, rf"truncated to {length} of \d+ bytes; convert the model again")


def test_a_file_truncated_while_it_is_open_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with Store.open(tmp_path / "s") as store:
        os.truncate(tmp_path / "s" / "data.mdb", 8192)
        with pytest.raises(StoreError, match="truncated while it was read"):
            store.tables["embedding"].read(np.array([3]))


def test_plain_and_compacted_copies_are_read(tmp_path: Path) -> None:
    values = numbered(50, 3)
    checksum = write(tmp_path / "s", values)
    for name, compact in (("plain", False), ("compacted", True)):
        (tmp_path / name).mkdir()
        with lmdb.open(str(tmp_path / "s"), **lmdb_file.engine_options()) as environment:
            environment.copy(str(tmp_path / name), compact=compact)
        with Store.open(tmp_path / name) as store:
            table = store.tables["embedding"]
            ids = np.array([49, 0, 8, 7, 8, 23])
            assert table.read(ids).tolist() == values[ids].tolist()
            tiles = list(table.tiles(max_bytes=5 * 16))
            assert [tile.start for tile in tiles] == [0, 5, 8, 13, 16, 21, 24, 29, 32, 37, 40, 45, 48]
            assert np.concatenate([tile.rows for tile in tiles]).tolist() == values.tolist()
            assert table.checksum() == checksum


def test_a_missing_tile_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(50, 3))
    layout = metadata(tmp_path / "s").tables[0]
    put(tmp_path / "s", layout.key(2), b"short")
    change(tmp_path / "s", lambda contents: contents["tables"][0]["tiles"].__setitem__(2, 0))
    refused(tmp_path / "s", "tile 2 of table 'embedding' is missing or damaged")


def test_changed_rows_change_the_checksum(tmp_path: Path) -> None:
    checksum = write(tmp_path / "s", numbered(20, 3))
    start = metadata(tmp_path / "s").tables[0].tiles[1]
    with open(tmp_path / "s" / "data.mdb", "r+b") as file:
        file.seek(start)
        file.write(b"\xff")
    with Store.open(tmp_path / "s") as store:
        assert store.tables["embedding"].stored_checksum == checksum
        assert store.tables["embedding"].checksum() != checksum


@pytest.mark.parametrize(
    ("chunks", "sentence"),
    [
        ([numbered(19, 3)], "must have 20 rows, and the source has 19"),
        ([], "must have 20 rows, and the source has 0"),
        ([numbered(20, 3), numbered(1, 3)], "must have 20 rows, and the source has more"),
        ([numbered(20, 4)], r"takes chunks \[n, 3\] of uint16, not \[20, 4\] of uint16"),
        ([numbered(20, 3, np.float32)], r"not \[20, 3\] of float32"),
        ([numbered(20, 3)[0]], r"not \[3\] of uint16"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, chunks: list[np.ndarray], sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence), StoreWriter(tmp_path / "s", tile_rows=8) as store:
        store.add_table(TableSpec("embedding", 20, 3, "bfloat16"), chunks)
    refused(tmp_path / "s", "never finished")


def test_an_interrupted_write_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s") as store:
        store.add_table(TableSpec("embedding", 20, 3, "bfloat16"), [numbered(20, 3)])
        raise KeyboardInterrupt
    refused(tmp_path / "s", "never finished")


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    with pytest.raises(StoreError, match="a row store exists here"):
        write(tmp_path / "s", numbered(20, 3))


def test_a_store_needs_tables_with_different_names(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="at least one table"), StoreWriter(tmp_path / "empty"):
        pass
    spec = TableSpec("t", 2, 2, "uint8")
    with (
        pytest.raises(StoreError, match="there are two tables 't'"),
        StoreWriter(tmp_path / "twice") as store,
    ):
        store.add_table(spec, [np.ones((2, 2), np.uint8)])
        store.add_table(spec, [np.ones((2, 2), np.uint8)])


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "a/b"), ("name", ""), ("name", "x" * 65), ("rows", 0), ("columns", 0), ("dtype", "int4")],
)
def test_an_invalid_spec_is_refused(field: str, value: object) -> None:
    with pytest.raises(StoreError):
        dataclasses.replace(TableSpec("t", 2, 2, "uint8"), **{field: value})


@pytest.mark.parametrize(
    "error",
    [
        lmdb.MapFullError("put"),
        lmdb.DiskError("commit"),
        lmdb.Error("commit: " + os.strerror(errno.EIO)),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_a_full_disk_is_reported(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(StoreError, match="the disk is full; free some space"), writer._written(tmp_path):
        raise error


def test_a_limited_file_size_is_reported(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np\n"
        "from vt_core.errors import StoreError\n"
        "from vt_core.store import StoreWriter, TableSpec\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    with StoreWriter(sys.argv[1], tile_rows=1000) as writer:\n"
        "        writer.add_table(TableSpec('t', 9000, 512, 'uint8'), [np.ones((9000, 512), np.uint8)])\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert "the disk is full" in result.stdout, result.stderr
    refused(tmp_path / "s", "never finished")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_read(tmp_path: Path) -> None:
    write(tmp_path / "s", numbered(20, 3))
    (tmp_path / "s" / "lock.mdb").unlink()
    (tmp_path / "s").chmod(0o555)
    try:
        with Store.open(tmp_path / "s") as store:
            assert store.tables["embedding"].read(np.array([0])).tolist() == [[1, 2, 3]]
        assert not (tmp_path / "s" / "lock.mdb").exists()
    finally:
        (tmp_path / "s").chmod(0o755)
