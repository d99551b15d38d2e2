"""`count_batches`: however a corpus is split into batches and tasks, the counts are the same."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.profile.small_tokenizers import added, byte_level, write
from vt_core.errors import DataError
from vt_core.profile import batch_counts
from vt_core.profile.accumulator import CountAccumulator
from vt_core.profile.batch_counts import SCHEMA, ExampleReader, count_batches
from vt_core.profile.batches import FILE, JSON, to_batch
from vt_core.profile.counts import Counts
from vt_core.profile.readers import Chunk
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.tokenizer import load_tokenizer

Row = tuple[str, str, str]


@pytest.fixture(scope="module")
def reader() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory), byte_level([" cat", " dog", "the"]))
        yield ExampleReader(load_tokenizer(path), RowFormat())


def lines(rows: Sequence[Row]) -> pa.RecordBatch:
    """A batch of JSON lines, as engines that read text make them."""
    texts = [json.dumps({"input": input, "output": output}).encode() for _, input, output in rows]
    return pa.RecordBatch.from_pydict(
        {
            FILE: pa.array([file for file, _, _ in rows], pa.string()),
            JSON: pa.array(texts, pa.binary()),
        }
    )


def fields(rows: Sequence[Row]) -> pa.RecordBatch:
    """A batch of columns, as engines that read Parquet make them."""
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.RecordBatch.from_pydict(
        {
            name: pa.array(column, pa.string())
            for name, column in zip((FILE, "input", "output"), columns, strict=True)
        }
    )


def added_up(batches: Sequence[pa.RecordBatch]) -> dict[str, Any]:
    total = CountAccumulator(Counts.empty("d" * 64, 300))
    for batch in batches:
        total.add(batch)
    return total.counts().fields()


texts = st.text("abc cat dog the", max_size=12)
rows = st.lists(st.tuples(st.sampled_from(["a.jsonl", "b.jsonl"]), texts, texts), max_size=20)


@settings(deadline=None, max_examples=60)
@given(rows=rows, data=st.data())
def test_counts_do_not_depend_on_splits_order_or_retries(
    reader: ExampleReader, rows: list[Row], data: st.DataObject
) -> None:
    whole = added_up(list(count_batches([lines(rows)], reader)))
    order = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    bounds = [0, *cuts, len(rows)]
    batches = [
        data.draw(st.sampled_from([lines, fields]))(order[start:end]) for start, end in pairwise(bounds)
    ]
    # Each task counts some of the batches. An engine keeps one result of a task that runs again.
    split = data.draw(st.integers(0, len(batches)))
    tasks = [batches[:split], batches[split:]]
    lost = list(count_batches(data.draw(st.sampled_from(tasks)), reader))
    results = [list(count_batches(task, reader)) for task in tasks]
    assert lost in results
    assert added_up([batch for result in reversed(results) for batch in result]) == whole


@settings(deadline=None, max_examples=30)
@given(rows=rows)
def test_grouped_sums_are_the_same_counts(reader: ExampleReader, rows: list[Row]) -> None:
    """Clusters add up rows of equal kind and key before they return them."""
    parts = [batch for row in rows for batch in count_batches([lines([row])], reader)]
    table = pa.Table.from_batches(parts, SCHEMA).group_by(["kind", "key"])
    sums = table.aggregate([("needed", "sum"), ("written", "sum")]).rename_columns(SCHEMA.names)
    assert added_up(sums.to_batches()) == added_up(list(count_batches([lines(rows)], reader)))


def test_counts_of_a_long_partition_come_in_parts(reader: ExampleReader, monkeypatch) -> None:
    monkeypatch.setattr(batch_counts, "MAX_IDS", 3)
    parts = list(count_batches([lines([("a", "", "ab")])] * 4, reader))
    assert len(parts) == 3
    assert added_up(parts)["examples"] == 4
    assert added_up(parts)["written"] == [4, 4]


def test_pickled_reader_gives_the_same_counts(tmp_path: Path) -> None:
    path = write(tmp_path, byte_level([" cat"], [added(280, "<|end|>")]))
    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    reader = ExampleReader(load_tokenizer(path), RowFormat())
    again = pickle.loads(pickle.dumps(reader))
    batch = lines([("a", "x", "a cat<|end|>")])
    assert added_up(list(count_batches([batch], again))) == added_up(list(count_batches([batch], reader)))
    assert 280 not in added_up(list(count_batches([batch], again)))["ids"]


WITHOUT_OUTPUT = fields([("a.csv", "x", "y")]).drop_columns("output")
NOT_JSON = lines([("s3://b/a.jsonl", "x", "y")]).set_column(1, JSON, pa.array([b"{"]))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (WITHOUT_OUTPUT, "a.csv, the row that starts with {'input': 'x'}: lacks the output"),
        (NOT_JSON, "s3://b/a.jsonl, the row that starts with {: not valid JSON"),
        (to_batch(Chunk("a.jsonl", "byte", [70], [b"3"])), "a.jsonl, byte 70: not a JSON object"),
    ],
)
def test_bad_row_is_the_last_row_of_the_counts(
    reader: ExampleReader, batch: pa.RecordBatch, message: str
) -> None:
    parts = list(count_batches([lines([("a", "x", "y")]), batch], reader))
    assert parts[-1].column("kind").to_pylist() == ["error"]
    with pytest.raises(DataError, match=message):
        added_up(parts)


def test_batch_of_two_formats_counts_each_row(reader: ExampleReader) -> None:
    parts = lines([("a", "", "ab")]), fields([("b", "", "b")])
    table = pa.concat_tables([pa.Table.from_batches([part]) for part in parts], promote_options="default")
    assert added_up(list(count_batches(table.combine_chunks().to_batches(), reader)))["written"] == [1, 2]
