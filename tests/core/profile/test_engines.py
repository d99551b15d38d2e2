"""Spark and Ray give the counts of the local engine. Tests of an engine that is not installed are skipped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from tests.core.profile.small_tokenizers import byte_level, write
from vt_core.cli.profile import profile
from vt_core.errors import DataError
from vt_core.profile import Profiler, RowFormat
from vt_core.profile.batch_counts import Example, ExampleReader, PartialCounts

pytestmark = pytest.mark.slow

Count = Callable[[list[Path], ExampleReader], Iterator[pa.RecordBatch]]


@pytest.fixture(scope="module")
def spark() -> Iterator[Count]:
    pyspark = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    from vt_core.profile.engines.spark import count_with_spark

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        # Two threads, and four tries for each task, as on a cluster.
        builder = pyspark.SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
        session = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    yield lambda files, reader: count_with_spark(list(map(str, files)), reader, session)
    session.stop()


@pytest.fixture(scope="module")
def ray() -> Iterator[Count]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from vt_core.profile.engines.ray import count_with_ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
    yield lambda files, reader: count_with_ray(list(map(str, files)), reader)
    ray.shutdown()


@pytest.fixture(params=["spark", "ray"])
def engine(request: pytest.FixtureRequest) -> tuple[str, Count]:
    return request.param, request.getfixturevalue(request.param)


@pytest.fixture
def profiler(tmp_path: Path) -> Profiler:
    return Profiler(write(tmp_path / "model", byte_level([" cat", " dog", "the"])))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rows = [{"input": f"a cat, {i}", "output": f'the dog\n"{i}"' if i % 5 else ""} for i in range(60)]
    paths = [tmp_path / name for name in ("a b%20+é.jsonl", "b.csv", "c.tsv", "d.parquet")]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    paths[0].write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\n  \n")
    for path, separator in zip(paths[1:3], ",\t", strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["id", "input", "output"], delimiter=separator)
            table.writeheader()
            table.writerows({"id": number, **row} for number, row in enumerate(rows))
    parquet.write_table(pa.Table.from_pylist([{**row, "id": 3} for row in rows]), paths[3], row_group_size=9)
    return paths


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(profile, list(map(str, arguments)), obj="torch", standalone_mode=False)


def test_task_vocabulary_is_that_of_the_local_engine(
    tmp_path: Path, engine: tuple[str, Count], profiler: Profiler, files: list[Path]
) -> None:
    written = {}
    for name in ("local", engine[0]):
        out = tmp_path / name / "task.vt.json"
        out.parent.mkdir()
        data = [part for file in files for part in ("--data", file)]
        result = run("--model", profiler.tokenizer_json, *data, "--engine", name, "--tolerance", 0.05,
                     "--save-counts", out.with_name("counts"), "--out", out)  # fmt: skip
        assert result.exception is None
        written[name] = out.read_bytes(), out.with_name("counts").read_bytes()
    assert written[engine[0]] == written["local"]
    assert json.loads(written["local"][1])["examples"] == 4 * 48


def test_bad_row_is_named(tmp_path: Path, engine: tuple[str, Count], profiler: Profiler) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "x", "output": "y"}\n{"input": "only"}\n')
    with pytest.raises(DataError, match=r'a\.jsonl, .*(line 2|"only"}): lacks the output'):
        profiler.count_with(engine[1]([tmp_path / "a.jsonl"], profiler.reader))


def test_short_row_of_a_table_is_skipped_alike(
    tmp_path: Path, engine: tuple[str, Count], profiler: Profiler
) -> None:
    (tmp_path / "a.csv").write_text('input,output\nx,y\nx\nx,""\nx,y,z\n')
    skipping = replace(profiler, skip_bad=True)
    counts = skipping.count_with(engine[1]([tmp_path / "a.csv"], skipping.reader))
    assert (counts.examples, counts.bad_rows) == (2, 1)
    assert counts.fields() == skipping.count([tmp_path / "a.csv"]).fields()


def test_missing_file_is_named(tmp_path: Path, engine: tuple[str, Count], profiler: Profiler) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        profiler.count_with(engine[1]([tmp_path / "absent.jsonl"], profiler.reader))


class DyingReader(ExampleReader):
    """Kills its process in the middle of a batch, once."""

    def __init__(self, tokenizer: Any, killed: Path) -> None:
        super().__init__(tokenizer, RowFormat())
        self._killed = killed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._tokenizer, self._killed)

    def examples(self, batch: pa.RecordBatch, counts: PartialCounts) -> Iterator[Example]:
        for number, example in enumerate(super().examples(batch, counts)):
            if number == 5 and not self._killed.exists():
                self._killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield example


def test_killed_worker_is_tried_again(
    tmp_path: Path, engine: tuple[str, Count], profiler: Profiler, files: list[Path]
) -> None:
    reader = DyingReader(profiler.tokenizer, tmp_path / "killed")
    counts = profiler.count_with(engine[1](files[:1], reader))
    assert (tmp_path / "killed").exists()
    assert counts.fields() == profiler.count(files[:1]).fields()
