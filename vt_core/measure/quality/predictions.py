"""The answers of the variants, in a file that grows line by line, so that an interrupted run can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vt_core.errors import DataError, OptionError, OutputError
from vt_core.measure.quality.examples import Example

NAME = "predictions.jsonl"

Record = Mapping[str, Any]


class Predictions:
    """``predictions.jsonl`` of a folder: settings in the first line, then one line per variant and row."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Read what an earlier run with the same settings wrote; make the folder and the file if missing.

        Raises:
            OptionError: the earlier run had other settings.
            DataError: the file cannot be read.
            OutputError: the file cannot be written.
        """
        self.path = directory / NAME
        self._records: dict[tuple[str, int], Record] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}).") from error
        # A killed run may have written half a line: keep complete lines only.
        complete = content.rfind(b"\n") + 1
        self._read(content[:complete].splitlines(), json.loads(json.dumps(settings)))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(complete)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}).") from error
        if not complete:
            try:
                self._write({"settings": settings})
            except OutputError:
                self.close()
                self.path.unlink()
                with suppress(OSError):
                    directory.rmdir()  # only if it is empty
                raise

    def get(self, variant: str, row: int) -> Record | None:
        """The answer of a variant to a row, if there is one."""
        return self._records.get((variant, row))

    def missing(self, variant: str, examples: Sequence[Example]) -> list[Example]:
        """The examples that a variant has not answered."""
        return [example for example in examples if (variant, example.row) not in self._records]

    def add(self, record: Record) -> None:
        """Write a record to the file.

        Raises:
            OutputError: it cannot be written.
        """
        self._write(record)
        self._records[record["variant"], record["row"]] = record

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}).") from error

    def _read(self, lines: list[bytes], settings: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                if number == 1:
                    _compare(values["settings"], settings, self.path)
                else:
                    self._records[values["variant"], values["row"]] = values
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}, line {number}: not a prediction of this command; give another --out, "
                    "or remove the file."
                ) from error


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise OptionError(
                f"{path} was made with other settings: {key} was {before.get(key)!r} and is now "
                f"{now.get(key)!r}; give another --out, or remove the file."
            )
