"""Counts a corpus with Spark: it reads the files, runs `count_batches` on each partition, and adds up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vt_core.errors import DataError, OptionError
from vt_core.profile.batch_counts import ExampleReader, count_batches
from vt_core.profile.batches import FILE, JSON

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: Columns of `SCHEMA` in Spark's words.
COLUMNS = "kind string, key binary, needed bigint, written bigint"


def count_with_spark(
    urls: Sequence[str],
    reader: ExampleReader,
    session: SparkSession | None = None,
    master: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Counts of a corpus, as `count_batches` yields them, added up.

    Args:
        urls: files, directories and patterns that Spark reads: JSON lines, CSV, TSV or Parquet.
        reader: turns rows into examples. It travels once to each worker process.
        session: a running session. None: the active one, else a new one, which is stopped at the end.
        master: where a new session runs, as in ``spark://host:7077`` or ``local[2]``. None: as Spark is
            configured, else this machine.

    Raises:
        OptionError: PySpark is not installed, or cannot start.
        DataError: Spark cannot read a file, or loses a worker too often.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise OptionError("--engine spark needs PySpark; install it with pip install 'vt[spark]'.") from None
    started = None
    if session is None and (session := SparkSession.getActiveSession()) is None:
        session = started = _start(master)
    try:
        shared = session.sparkContext.broadcast(reader)

        def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return count_batches(batches, shared.value)

        rows = _read(session, urls, reader.row_format.columns)
        counted = reduce(lambda a, b: a.union(b), [part.mapInArrow(count, COLUMNS) for part in rows])
        sums = counted.groupBy("kind", "key").sum("needed", "written")
        yield from sums.toDF("kind", "key", "needed", "written").toArrow().to_batches()
    except PySparkException as error:
        raise DataError(f"Spark cannot count {', '.join(urls)}: {_first_line(error)}") from error
    finally:
        if started is not None:
            started.stop()


def _start(master: str | None) -> SparkSession:
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("vt profile").config("spark.ui.showConsoleProgress", "true")
    try:
        return (builder if master is None else builder.master(master)).getOrCreate()
    except (PySparkException, OSError) as error:
        raise OptionError(
            f"Spark cannot start ({_first_line(error)}); it needs Java 17 or later and a --master that runs."
        ) from error


def _read(session: SparkSession, urls: Sequence[str], columns: Sequence[str]) -> list[DataFrame]:
    """Rows of the files of each format, with the columns that `vt_core.profile.batches` describes."""
    formats: dict[str, list[str]] = {}
    for url in urls:
        formats.setdefault(_format(url), []).append(url)
    return [_READERS[format](session.read, found, columns) for format, found in formats.items()]


def _format(url: str) -> str:
    name = PurePosixPath(url.removesuffix("/").lower().removesuffix(".gz"))
    if name.suffix not in _READERS:
        raise DataError(
            f"{url}: unknown file type; with --engine spark the name of a file, or of a directory of files, "
            f"must end in {', '.join(_READERS)}, followed by .gz if the files are compressed."
        )
    return name.suffix


def _lines(read: Any, urls: list[str], columns: Sequence[str]) -> DataFrame:
    # Lines stay text: Spark's own JSON reader reads twice, and hides rows that it cannot parse.
    return read.text(urls, lineSep="\n").selectExpr(f"cast(value as binary) as {JSON}", _FILE_COLUMN)


def _csv(read: Any, urls: list[str], columns: Sequence[str], separator: str = ",") -> DataFrame:
    settings = {
        "sep": separator,
        "header": True,
        "multiLine": True,
        "quote": '"',
        "escape": '"',
        "maxCharsPerColumn": -1,
    }
    names = [_quoted(name) for name in read.csv(urls, **settings).columns]
    schema = ", ".join(f"{name} string" for name in (*names, _RAGGED))
    rows = read.schema(schema).csv(urls, **settings, enforceSchema=False, columnNameOfCorruptRecord=_RAGGED)
    # Spark turns empty cells into null, as it does those that a row lacks.
    cells = [f"if({_RAGGED} is null, coalesce({name}, ''), {name}) as {name}" for name in names]
    return _fields(rows.selectExpr(*cells, _FILE_COLUMN), columns)


def _tsv(read: Any, urls: list[str], columns: Sequence[str]) -> DataFrame:
    return _csv(read, urls, columns, "\t")


def _parquet(read: Any, urls: list[str], columns: Sequence[str]) -> DataFrame:
    return _fields(read.parquet(*urls).selectExpr("*", _FILE_COLUMN), columns)


def _fields(rows: DataFrame, columns: Sequence[str]) -> DataFrame:
    """Only the fields that examples need, each whole, and the file."""
    needed = {part for name in columns for part in (name, name.partition(".")[0])} | {FILE}
    return rows.selectExpr(*(_quoted(name) for name in rows.columns if name in needed))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


#: Holds a row of a table that has more or fewer cells than the header.
_RAGGED = "__ragged"

_FILE_COLUMN = f"url_decode(replace(_metadata.file_path, '+', '%2B')) as {FILE}"

_READERS = {".jsonl": _lines, ".ndjson": _lines, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
