"""Rows of corpus files, in chunks: JSON lines, JSON, CSV, TSV and Parquet, plain or compressed."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from vt_core.errors import DataError

CHUNK_BYTES = 512 * 1024
"""Text in a chunk: enough to keep a process busy for a third of a second, little enough to hold several."""

MAX_VALUE_CHARACTERS = 64 * 1024 * 1024
"""Longest field of a CSV file, longest row of a JSON list."""

PARQUET_ROWS = 1024

_LINES = (".jsonl", ".ndjson")

Row = bytes | Mapping[str, Any]
Numbered = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file. Lines of JSON are left as bytes: whoever counts them parses them."""

    file: str
    unit: str
    numbers: Sequence[int]
    """Line (or row) number of each row, from 1."""
    rows: Sequence[Row]

    def where(self, index: int) -> str:
        """File and line of one of the rows, for messages."""
        return f"{self.file}, {self.unit} {self.numbers[index]}"


def read_chunks(path: str | Path, skip: int = 0) -> Iterator[Chunk]:
    """Rows of a file after the first `skip`, in order, blank lines included; raises DataError."""
    path = Path(path)
    kind = _kind(path)
    zstd = _zstd_library(path) if path.suffix.lower() == ".zst" else None
    damage = (OSError, EOFError, zlib.error, *(() if zstd is None else (zstd.ZstdError,)))
    try:
        with _open(path, zstd) as file:
            if kind in _LINES or (kind == ".json" and _holds_lines(file)):
                yield from _json_lines(path, file, skip)
            else:
                unit, rows = _RECORDS[kind]
                yield from _chunks(path, unit, islice(rows(path, file), skip, None))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}).") from error
    except damage as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read ({reason}).") from error


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    if not suffixes or suffixes[-1] not in (*_LINES, *_RECORDS):
        raise DataError(
            f"{path}: this kind of file is not read; its name must end in {', '.join((*_LINES, *_RECORDS))}, "
            "with .gz or .zst after it where it is compressed."
        )
    return suffixes[-1]


def _open(path: Path, zstd: Any) -> io.BufferedReader:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if zstd is None:
        return path.open("rb")
    # Python's own decompressor, or zstandard's object that behaves like it.
    new = (
        zstd.ZstdDecompressor
        if hasattr(zstd, "ZstdFile")
        else lambda: zstd.ZstdDecompressor().decompressobj()
    )
    return io.BufferedReader(_Frames(path.open("rb"), new))


class _Frames(io.RawIOBase):
    """What the frames of a compressed file hold, one after another; raises EOFError inside an unfinished one.

    zstandard's own readers stop, without a word, after the first frame and where a file has been cut off.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any]) -> None:
        """`new` makes a decompressor for one frame, with `decompress`, `eof` and `unused_data`."""
        self._file = file
        self._new = new
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                self._input = self._file.read(CHUNK_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends inside a compressed frame")
                return 0
            self._frame = self._frame or self._new()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstd_library(path: Path) -> Any:
    """Python 3.14's own module, or zstandard."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DataError(f"{path}: .zst files need the library zstandard; install it with pip install zstandard.")


def _holds_lines(file: io.BufferedReader) -> bool:
    """Whether a `.json` file is JSON lines in truth: it begins with an object, not with a list."""
    return file.peek(256).lstrip(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def _json_lines(path: Path, file: io.BufferedReader, skip: int) -> Iterator[Chunk]:
    for _ in range(skip):
        file.readline()
    number = skip
    while lines := file.readlines(CHUNK_BYTES):
        if number == 0:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        yield Chunk(str(path), "line", range(number + 1, number + 1 + len(lines)), lines)
        number += len(lines)


def _chunks(path: Path, unit: str, rows: Numbered) -> Iterator[Chunk]:
    """Records in groups of about `CHUNK_BYTES` of text."""
    numbers: list[int] = []
    group: list[Row] = []
    size = 0
    for number, row in rows:
        numbers.append(number)
        group.append(row)
        size += _weight(row)
        if size >= CHUNK_BYTES:
            yield Chunk(str(path), unit, numbers, group)
            numbers, group, size = [], [], 0
    if group:
        yield Chunk(str(path), unit, numbers, group)


def _weight(row: Row) -> int:
    """Characters of a record's texts, and something for itself, so that a chunk of empty records ends too."""
    values = row.values() if isinstance(row, Mapping) else ()
    return 64 + sum(len(value) for value in values if isinstance(value, str))


def _json_list(path: Path, file: io.BufferedReader) -> Numbered:
    """Objects of one long list, decoded one at a time."""
    with io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
        text = _JsonText(path, lines)
        if text.take() != "[":
            raise DataError(f"{path}: holds neither a list of objects nor lines of JSON.")
        number = 0
        while text.peek() != "]":
            number += 1
            if number > 1 and text.take() != ",":
                raise text.fault(number)
            yield number, text.value(number)


class _JsonText:
    """JSON that is read as far as the next value needs."""

    def __init__(self, path: Path, file: io.TextIOBase) -> None:
        self._path = path
        self._file = file
        self._buffer = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._position < len(self._buffer):
                if not self._buffer[self._position].isspace():
                    return self._buffer[self._position]
                self._position += 1
            if not self._more():
                return ""

    def take(self) -> str:
        """The same, and goes on behind it."""
        character = self.peek()
        self._position += len(character)
        return character

    def value(self, number: int) -> Any:
        """The next value; raises DataError, which names it by `number`."""
        self.peek()
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._buffer, self._position)
                return value
            except (ValueError, RecursionError):
                if len(self._buffer) - self._position > MAX_VALUE_CHARACTERS or not self._more():
                    raise self.fault(number) from None

    def fault(self, number: int) -> DataError:
        return DataError(f"{self._path}, row {number}: not valid JSON.")

    def _more(self) -> bool:
        """Reads on, twice as much as is waiting, so that a long value is not tried too often."""
        waiting = self._buffer[self._position :]
        read = self._file.read(max(CHUNK_BYTES, 2 * len(waiting)))
        self._buffer, self._position = waiting + read, 0
        return bool(read)


def _table(path: Path, file: io.BufferedReader, separator: str) -> Numbered:
    """Rows of a CSV or TSV file with a header, numbered by their last lines."""
    csv.field_size_limit(MAX_VALUE_CHARACTERS)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=separator)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def _parquet(path: Path, file: io.BufferedReader) -> Numbered:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need the library pyarrow; install it with pip install pyarrow."
        ) from None
    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=PARQUET_ROWS)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error}).") from error


_RECORDS: dict[str, tuple[str, Callable[[Path, io.BufferedReader], Numbered]]] = {
    ".json": ("row", _json_list),
    ".csv": ("line", partial(_table, separator=",")),
    ".tsv": ("line", partial(_table, separator="\t")),
    ".parquet": ("row", _parquet),
}
