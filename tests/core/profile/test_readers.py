from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from vt_core.errors import DataError
from vt_core.profile import compressed, json_list, readers
from vt_core.profile.readers import read_chunks
from vt_core.profile.rows import is_blank, parse_row

ROWS = [{"input": f'a "{i}"\n', "output": "é中😀"[i % 3] * i} for i in range(50)]


def read(path: Path, skip: int = 0) -> list[Any]:
    return [parse_row(row) for chunk in read_chunks(path, skip) for row in chunk.rows if not is_blank(row)]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def write_table(path: Path, rows: list[Any], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["input", "output"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[Any]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".json": write_json,
    ".csv": write_table,
    ".tsv": lambda path, rows: write_table(path, rows, "\t"),
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ROWS)
    assert read(path) == ROWS


@pytest.mark.parametrize("suffix", WRITERS)
def test_skip_leaves_out_the_first_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ROWS)
    assert read(path, 17) == ROWS[17:]
    assert read(path, 50) == []


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix != ".parquet"])
def test_compressed_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    plain = tmp_path / f"data{suffix}"
    WRITERS[suffix](plain, ROWS)
    packed = tmp_path / f"data{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(packed) == ROWS


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 9), st.integers(1, 30))
def test_all_frames_are_read(parts: list[bytes], block: int, length: int) -> None:
    data = io.BytesIO(b"".join(map(zlib.compress, parts)))
    frames = io.BufferedReader(compressed.FrameReader(data, zlib.decompressobj, block=block), length)
    assert b"".join(iter(lambda: frames.read(length), b"")) == b"".join(parts)


def test_truncated_frame_is_an_error() -> None:
    data = zlib.compress(b"abc") + zlib.compress(b"def" * 99)
    for cut in range(len(zlib.compress(b"abc")) + 1, len(data)):
        with pytest.raises(EOFError, match="ends inside a compressed frame"):
            io.BufferedReader(compressed.FrameReader(io.BytesIO(data[:cut]), zlib.decompressobj)).read()


def test_all_zstd_frames_are_read(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    plain, packed = tmp_path / "data.jsonl", tmp_path / "data.jsonl.zst"
    write_jsonl(plain, ROWS)
    data = plain.read_bytes()
    half = data.index(b"\n", len(data) // 2) + 1
    compress = zstandard.ZstdCompressor().compress
    packed.write_bytes(compress(data[:half]) + compress(data[half:]))
    assert read(packed) == ROWS
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"data\.jsonl\.zst: cannot be read"):
        read(packed)


def test_missing_zstandard_error_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    for name in ("compression", "compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"x\.jsonl\.zst: .zst files need the library zstandard; install it"):
        read(tmp_path / "x.jsonl.zst")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_chunks_are_small_and_number_their_rows(tmp_path: Path, suffix: str, monkeypatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 300)
    path = tmp_path / f"data{suffix}"
    rows = [{"input": "x" * 50, "output": str(i)} for i in range(30)]
    WRITERS[suffix](path, rows)
    chunks = list(read_chunks(path))
    assert len(chunks) > 5
    assert max(len(chunk.rows) for chunk in chunks) <= 6
    first = 2 if suffix == ".csv" else 1  # below the header
    assert [number for chunk in chunks for number in chunk.numbers] == list(range(first, first + 30))
    assert chunks[1].where(0) == f"{path}, {'row' if suffix == '.json' else 'line'} {chunks[1].numbers[0]}"


def test_line_numbers_include_blank_and_skipped_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \n{"a": 2}\n\n{"a": 3}')
    (chunk,) = read_chunks(path, 2)
    assert [chunk.numbers[index] for index, row in enumerate(chunk.rows) if not is_blank(row)] == [4, 6]


def test_record_over_several_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('input,output\n"a\nb",c\nd,e\n')
    (chunk,) = read_chunks(path)
    assert chunk.rows == [{"input": "a\nb", "output": "c"}, {"input": "d", "output": "e"}]
    assert list(chunk.numbers) == [3, 4]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_mark_is_removed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == ROWS


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_jsonl(path, ROWS)
    assert read(path) == ROWS


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text('a[]{}"\\,é中', max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


objects = st.dictionaries(st.text(max_size=3), values, max_size=3)


@given(rows=st.lists(objects, max_size=6), indent=st.sampled_from([None, 0, 3]), ascii=st.booleans())
def test_json_list_is_read_in_blocks(rows: list[Any], indent: int | None, ascii: bool) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode()
    file = io.BufferedReader(io.BytesIO(text))
    assert [json.loads(row) for _, row in json_list.read_json_list(Path("x.json"), file, block=2)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"3", "holds neither a list of objects nor JSON lines"),
        ("x.json", b"", "holds neither a list"),
        ("x.json", b'[{"a": 1}, {"a": ]', r"x\.json, row 2: not valid JSON"),
        ("x.json", b'[{"a": 1} {"a": 2}]', r"x\.json, row 2: not valid JSON"),
        ("x.json", b'[{"a": 1}', r"x\.json, row 2: not valid JSON"),
        ("x.json", b"[1,]", r"x\.json, row 2: not valid JSON"),
        ("x.json", b'["\xff"]', r"x\.json: not UTF-8 text"),
        ("x.csv", b"a,b\n\xff,c\n", r"x\.csv: not UTF-8 text"),
        ("x.jsonl.gz", b"no gzip", r"x\.jsonl\.gz: cannot be read \(Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-10], r"x\.jsonl\.gz: cannot be read"),
        ("x.txt", b"", r"x\.txt: unknown file type; the name must end in \.jsonl, .*\.parquet"),
        ("x.gz", b"", "unknown file type"),
        ("x", b"", "unknown file type"),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read \(No such file"):
        read(tmp_path / "absent.jsonl")


def test_too_long_json_value_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_list, "MAX_VALUE_CHARACTERS", 100)
    path = tmp_path / "x.json"
    path.write_text('["' + "x" * 2_000_000)
    with pytest.raises(DataError, match="row 1: not valid JSON"):
        read(path)


def test_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"x\.parquet: not a Parquet file that can be read"):
        read(tmp_path / "x.parquet")


def odd_columns() -> dict[str, Any]:
    """Values that have no Python object: a date and a time beyond year 9999, an unknown time zone."""
    return {
        "far date": pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32()),
        "far time": pyarrow.array([2**62], pyarrow.int64()).cast(pyarrow.timestamp("us")),
        "time zone": pyarrow.array([0], pyarrow.int64()).cast(pyarrow.timestamp("s", "Mars/Olympus")),
        "duration": pyarrow.array([2**62], pyarrow.int64()).cast(pyarrow.duration("s")),
    }


@pytest.mark.parametrize("column", ["far date", "far time", "time zone", "duration"])
def test_parquet_columns_that_are_not_asked_for_are_not_read(tmp_path: Path, column: str) -> None:
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"input": ["a"], "output": ["b"], column: odd_columns()[column]})
    parquet.write_table(table, path)
    (chunk,) = read_chunks(path, columns=("input", "output"))
    assert chunk.rows == [{"input": "a", "output": "b"}]
    with pytest.raises(
        DataError, match=rf"x\.parquet: a value cannot be read \(.*\); columns read: {column}"
    ):
        [chunk.rows for chunk in read_chunks(path, columns=(column,))]


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (("a.text.0",), {"a": {"text": ["x"]}}),
        (("a.text", "a.none.b"), {"a": {"text": ["x"]}}),
        (("c.d",), {"c.d": 1}),
        (("absent", "absent.b"), {}),
        (("c.d", "a.at"), {"c.d": 1, "a": {"at": 2}}),
        (None, {"a": {"text": ["x"], "at": 2}, "c.d": 1}),
    ],
)
def test_parquet_paths_read_only_their_nested_field(
    tmp_path: Path, columns: tuple[str, ...] | None, row: dict[str, Any]
) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, [{"a": {"text": ["x"], "at": 2}, "c.d": 1}])
    (chunk,) = read_chunks(path, columns=columns)
    assert chunk.rows == [row]


def test_parquet_columns_that_are_not_asked_for_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    image = bytes(range(256)) * 400
    table = pyarrow.table({"input": ["a"] * 200, "image": [image + bytes([i]) for i in range(200)]})
    parquet.write_table(table, path, compression=None, use_dictionary=False)
    del table
    before = pyarrow.total_allocated_bytes()
    for chunk in read_chunks(path, columns=("input",)):
        assert pyarrow.total_allocated_bytes() - before < 1 << 20 < path.stat().st_size
        assert chunk.rows[0] == {"input": "a"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), "is UTF-16, not UTF-8; save it as UTF-8"),
        ("x.json", b"\xfe\xff" + "[]".encode("utf-16-be"), "is UTF-16"),
        ("x.csv", "a,b\n".encode("utf-16"), "is UTF-16"),
        ("x.jsonl", '{"a": 1}'.encode("utf-32"), "is UTF-32"),
        ("x.jsonl", gzip.compress(b'{"a": 1}', mtime=0), r"is compressed with gzip; add \.gz to its name"),
        ("x.jsonl", b"\x28\xb5\x2f\xfd\x00", r"is compressed with Zstandard; add \.zst to its name"),
        ("x.csv", b"PK\x03\x04", "is a ZIP archive; extract it"),
        ("x.jsonl", b"PAR1....PAR1", r"is a Parquet file; its name must end in \.parquet"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (
            "x.jsonl.gz",
            gzip.compress(b"version https://git-lfs.github.com/spec/v1\n", mtime=0),
            "Git LFS pointer",
        ),
        ("x.json", b'{\n "a": 1\n}', "holds a JSON object over several lines; give a list of objects"),
        ("x.jsonl", b'\r\n{"data": [\r\n  {"a": 1}]\r\n}', "holds a JSON object over several lines"),
        ("x.jsonl", b'[\n{"a": 1},\n{"a": 2}\n]', r"holds a JSON list, not one object per line; .*\.json"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_windows_line_ends_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    rows = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]
    WRITERS[suffix](path, rows)
    text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path.write_bytes(text + b"\r\n")
    assert read(path) == rows
