from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from vt_core.errors import DataError, OptionError
from vt_core.profile import readers
from vt_core.profile.readers import read_chunks
from vt_core.profile.rows import is_blank, parse_row
from vt_core.profile.shards import parse_shard, shard_spans


def rows_of(files: Sequence[Path], spans: Sequence[range], skip: int = 0) -> list[Any]:
    return [
        parse_row(row)
        for file, span in zip(files, spans, strict=True)
        for chunk in read_chunks(file, skip, span=span)
        for row in chunk.rows
        if not is_blank(row)
    ]


@settings(deadline=None, max_examples=80)
@given(
    files=st.lists(st.lists(st.text("aé\n", max_size=9), max_size=9), min_size=1, max_size=3),
    shards=st.integers(1, 7),
    chunk_bytes=st.integers(1, 40),
    end=st.sampled_from(["", "\n", "\n\n"]),
)
def test_each_line_belongs_to_one_shard(
    files: list[list[str]], shards: int, chunk_bytes: int, end: str
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_BYTES", chunk_bytes)
        paths = [Path(directory) / f"{index}.jsonl" for index in range(len(files))]
        for path, texts in zip(paths, files, strict=True):
            path.write_text("\n".join(json.dumps(text, ensure_ascii=False) for text in texts) + end)
        parts = [rows_of(paths, shard_spans(paths, shard + 1, shards)) for shard in range(shards)]
    assert [row for part in parts for row in part] == [text for texts in files for text in texts]


def test_rows_of_other_formats_belong_to_one_shard(tmp_path: Path) -> None:
    rows = [{"input": f"i{number}", "output": "o"} for number in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.csv").write_text("input,output\n" + "".join(f"{row['input']},o\n" for row in rows))
    (tmp_path / "d.json").write_text(text)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet", row_group_size=7)
    files = sorted(tmp_path.iterdir())
    for shards in (1, 2, 3, 9):
        parts = [rows_of(files, shard_spans(files, shard + 1, shards)) for shard in range(shards)]
        assert [row for part in parts for row in part] == rows * 5
    parts = [rows_of(files[-1:], shard_spans(files[-1:], shard + 1, 9)) for shard in range(9)]
    assert max(map(len, parts)) < 40  # Parquet is split at its row groups


def test_shard_resumes_at_the_same_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'"{number:03}"\n' for number in range(90)))
    spans = shard_spans([path], 2, 3)
    assert rows_of([path], spans, skip=7) == rows_of([path], spans)[7:]


def test_row_of_a_shard_is_named_by_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"0"\n' * 6)
    (chunk,) = read_chunks(path, span=range(9, 24))
    assert [chunk.where(index) for index in range(3)] == [f"{path}, byte {start}" for start in (12, 16, 20)]


def test_missing_file_of_a_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: --shard needs a regular file"):
        shard_spans([tmp_path / "absent.jsonl"], 1, 2)


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is not I/N"):
        parse_shard(text)
    assert parse_shard("2/8") == (2, 8)
