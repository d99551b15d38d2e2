"""What the variants wrote, in a file that grows line by line, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vt_core.errors import DataError, OptionError

NAME = "predictions.jsonl"

Record = Mapping[str, Any]


class Predictions:
    """`predictions.jsonl` of a folder: settings in the first line, then a line for each variant and row."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Takes over what an earlier run with the same settings wrote.

        Raises OptionError where the settings were others, DataError where the file cannot be used.
        """
        self.path = directory / NAME
        self._records: dict[tuple[str, int], Record] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            # Nothing after the last line end: a run that was killed may have written half a line.
            lines = content[: content.rfind(b"\n") + 1].splitlines()
            self._read(lines, json.loads(json.dumps(settings)))
            self._file = self.path.open("ab")
            self._file.truncate(content.rfind(b"\n") + 1)
            if not lines:
                self._write({"settings": settings})
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read or written ({error.strerror}).") from error

    def get(self, variant: str, row: int) -> Record | None:
        """What a variant wrote for a row, where it has."""
        return self._records.get((variant, row))

    def add(self, record: Record) -> None:
        """Keeps a record; it is on disk when this returns. Raises DataError where that fails."""
        try:
            self._write(record)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}).") from error
        self._records[record["variant"], record["row"]] = record

    def close(self) -> None:
        self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

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
                    f"{self.path}, line {number}: no prediction of this command; give another --out, "
                    "or remove the file."
                ) from error


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise OptionError(
                f"{path} was made with other settings: {key} was {before.get(key)!r}, "
                f"and is {now.get(key)!r}; give another --out, or remove the file."
            )
