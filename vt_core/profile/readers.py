"""Reads corpus files in chunks of rows: JSON lines, JSON, CSV, TSV and Parquet, plain or compressed."""

from __future__ import annotations

import codecs
import csv
import io
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vt_core.errors import DataError
from vt_core.files.json_files import lfs_pointer
from vt_core.profile.compressed import DAMAGE, SUFFIXES, open_decompressed
from vt_core.profile.json_list import MAX_VALUE_CHARACTERS, read_json_list
from vt_core.profile.parquet import python_rows, read_parquet

if TYPE_CHECKING:
    import pyarrow

#: Bytes of text in a chunk: about a third of a second of work, so several can wait in memory.
CHUNK_BYTES = 512 * 1024

_LINES = (".jsonl", ".ndjson")

Row = bytes | Mapping[str, Any]
NumberedRows = Iterator[tuple[int, Row]]

#: First bytes of files that are not what their names say, and what to tell the user. Longest first.
_SIGNATURES = {
    codecs.BOM_UTF32_LE: "is UTF-32, not UTF-8; save it as UTF-8",
    codecs.BOM_UTF32_BE: "is UTF-32, not UTF-8; save it as UTF-8",
    b"\x28\xb5\x2f\xfd": "is compressed with Zstandard; add .zst to its name",
    b"PK\x03\x04": "is a ZIP archive; extract it",
    b"PAR1": "is a Parquet file; its name must end in .parquet",
    b"\x1f\x8b": "is compressed with gzip; add .gz to its name",
    codecs.BOM_UTF16_LE: "is UTF-16, not UTF-8; save it as UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16, not UTF-8; save it as UTF-8",
}


#: Positions in a file of any size.
WHOLE = range(1 << 62)


@dataclass(frozen=True)
class _Numbered:
    """Some rows of one file."""

    file: str
    #: What `numbers` count: "line", "row", or "byte" where the lines before are not known.
    unit: str
    #: Line or row number of each row, from 1, or the position of its first byte.
    numbers: Sequence[int]

    def where(self, index: int) -> str:
        """File and line of the row with this index, for messages."""
        return f"{self.file}, {self.unit} {self.numbers[index]}"


@dataclass(frozen=True)
class Chunk(_Numbered):
    """Some rows of one text file. JSON stays bytes, so that worker processes parse it."""

    rows: Sequence[Row]


@dataclass(frozen=True)
class ArrowChunk(_Numbered):
    """Some rows of one Parquet file. Worker processes turn them into Python objects."""

    batch: pyarrow.RecordBatch

    @property
    def rows(self) -> Sequence[Row]:
        """The rows as Python objects. Raises DataError for a value that Python cannot hold."""
        return python_rows(self.batch, self.file)


def read_chunks(
    path: str | Path,
    skip: int = 0,
    columns: Sequence[str] | None = None,
    *,
    span: range = WHOLE,
    file: io.RawIOBase | None = None,
) -> Iterator[Chunk | ArrowChunk]:
    """Rows of a file in order, blank lines included.

    Args:
        path: the file. Its suffix gives the format.
        skip: rows to leave out at the start.
        columns: the only columns to read from a Parquet file; None reads all.
        span: positions in bytes; only rows that start there are read. Rows of Parquet start where their row
            group does. Rows of files that cannot be split start where the file does; see `splits`.
        file: the open file, if `path` is not a local file.

    Raises:
        DataError: the file cannot be read, or is not what its suffix says.
    """
    path = Path(path)
    suffix = _format_suffix(path)
    if not span:
        return
    try:
        with open_decompressed(path, file) as content:
            _check_start(path, suffix, content)
            lines = suffix in _LINES or (suffix == ".json" and _starts_with_object(content))
            if suffix == ".parquet":
                yield from _parquet(path, content, skip, columns, span)
            elif lines and path.suffix.lower() not in SUFFIXES:
                yield from _json_lines(path, content, skip, span)
            elif 0 not in span:
                return
            elif lines:
                yield from _json_lines(path, content, skip, WHOLE)
            else:
                unit, read = _TEXT_READERS[suffix]
                yield from _group(path, unit, islice(read(path, content), skip, None))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}).") from error
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read ({reason}).") from error


def _format_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    known = (*_LINES, *_TEXT_READERS, ".parquet")
    if not suffixes or suffixes[-1] not in known:
        raise DataError(
            f"{path}: unknown file type; the name must end in {', '.join(known)}, "
            "followed by .gz or .zst if the file is compressed."
        )
    return suffixes[-1]


def _check_start(path: Path, suffix: str, file: io.BufferedReader) -> None:
    """Raise DataError for a file that its first bytes show to be of another kind than its suffix says."""
    start = file.peek(256)
    if sentence := lfs_pointer(start):
        raise DataError(f"{path} {sentence}.")
    for signature, sentence in _SIGNATURES.items():
        if start.startswith(signature) and not (suffix == ".parquet" and signature == b"PAR1"):
            raise DataError(f"{path} {sentence}.")


def _starts_with_object(file: io.BufferedReader) -> bool:
    """Whether a `.json` file starts with an object, not with a list. Then it is read as JSON lines."""
    return file.peek(256).lstrip(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def _json_lines(path: Path, file: io.BufferedReader, skip: int, span: range) -> Iterator[Chunk]:
    position = span.start
    if position:
        # The line that starts before the span belongs to the span before, even if it ends here.
        file.seek(position - 1)
        position += len(file.readline()) - 1
    for _ in range(skip):
        position += len(file.readline())
    number = skip + 1
    while position < span.stop and (lines := file.readlines(CHUNK_BYTES)):
        starts = list(accumulate(map(len, lines), initial=position))
        del lines[bisect_left(starts, span.stop) :]
        if number == 1 and not span.start:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            _check_one_value_per_line(path, lines)
        if span.start:
            yield Chunk(str(path), "byte", starts[: len(lines)], lines)
        else:
            yield Chunk(str(path), "line", range(number, number + len(lines)), lines)
        number += len(lines)
        position = starts[-1]


def _parquet(
    path: Path, file: io.BufferedReader, skip: int, columns: Sequence[str] | None, span: range
) -> Iterator[ArrowChunk]:
    number = 1
    for batch in read_parquet(path, file, columns, span):
        rest = batch.slice(min(skip, batch.num_rows))
        skip -= batch.num_rows - rest.num_rows
        number += batch.num_rows
        if rest.num_rows:
            yield ArrowChunk(str(path), "row", range(number - rest.num_rows, number), rest)


def _check_one_value_per_line(path: Path, lines: Sequence[bytes]) -> None:
    """Raise DataError for a JSON object or list that is spread over several lines.

    One bad line is not enough evidence: it may be skipped.
    """
    start = [line.strip() for line in islice(filter(bytes.strip, lines), 2)]
    if len(start) < 2 or any(map(_is_json, start)):
        return
    opening = start[0][:1]
    if opening == b"[":
        raise DataError(f"{path}: holds a JSON list, not one object per line; its name must end in .json.")
    if opening == b"{":
        raise DataError(
            f"{path}: holds a JSON object over several lines; give a list of objects, or one object per line."
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _group(path: Path, unit: str, rows: NumberedRows) -> Iterator[Chunk]:
    """Chunks of about `CHUNK_BYTES` of text."""
    numbers: list[int] = []
    group: list[Row] = []
    size = 0
    for number, row in rows:
        numbers.append(number)
        group.append(row)
        size += _size(row)
        if size >= CHUNK_BYTES:
            yield Chunk(str(path), unit, numbers, group)
            numbers, group, size = [], [], 0
    if group:
        yield Chunk(str(path), unit, numbers, group)


def _size(row: Row) -> int:
    """Characters of a row's texts, plus a constant so that a chunk of empty rows ends too."""
    values = row.values() if isinstance(row, Mapping) else ()
    return 64 + sum(len(value) for value in values if isinstance(value, str))


def _csv(path: Path, file: io.BufferedReader) -> NumberedRows:
    return _table(path, file, ",")


def _tsv(path: Path, file: io.BufferedReader) -> NumberedRows:
    return _table(path, file, "\t")


def _table(path: Path, file: io.BufferedReader, separator: str) -> NumberedRows:
    """Rows of a table with a header, numbered by their last lines."""
    csv.field_size_limit(MAX_VALUE_CHARACTERS)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=separator)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


#: Readers of text files by suffix, each with what it numbers.
_TEXT_READERS: dict[str, tuple[str, Callable[[Path, io.BufferedReader], NumberedRows]]] = {
    ".json": ("row", read_json_list),
    ".csv": ("line", _csv),
    ".tsv": ("line", _tsv),
}
