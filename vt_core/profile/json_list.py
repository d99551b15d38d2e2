"""Reads the values of one long JSON list one at a time, so that memory does not grow with the file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

from vt_core.errors import DataError

#: Characters of the longest value.
MAX_VALUE_CHARACTERS = 64 * 1024 * 1024

_BLOCK = 512 * 1024


def read_json_list(path: Path, file: io.BufferedReader, block: int = _BLOCK) -> Iterator[tuple[int, bytes]]:
    """The values of a JSON list, numbered from 1, each as JSON.

    Args:
        path: the name of the file, for messages.
        file: the file, UTF-8 with or without a byte order mark.
        block: characters to read at a time.

    Raises:
        DataError: the file does not hold a list, or a value is not valid JSON.
    """
    with io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
        text = _JsonText(path, lines, block)
        if text.take() != "[":
            raise DataError(f"{path}: holds neither a list of objects nor JSON lines.")
        number = 0
        while text.peek() != "]":
            number += 1
            if number > 1 and text.take() != ",":
                raise text.fault(number)
            yield number, text.value(number)


class _JsonText:
    """JSON text that is read only as far as the next value needs."""

    def __init__(self, path: Path, file: io.TextIOBase, block: int) -> None:
        self._path = path
        self._file = file
        self._block = block
        self._buffer = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._position < len(self._buffer):
                if not self._buffer[self._position].isspace():
                    return self._buffer[self._position]
                self._position += 1
            if not self._read_more():
                return ""

    def take(self) -> str:
        """The same character, and moves past it."""
        character = self.peek()
        self._position += len(character)
        return character

    def value(self, number: int) -> bytes:
        """The next value, not parsed. Raises DataError, which names it by `number`."""
        self.peek()
        while True:
            try:
                start = self._position
                _, self._position = self._decoder.raw_decode(self._buffer, start)
                return self._buffer[start : self._position].encode()
            except (ValueError, RecursionError):
                if len(self._buffer) - self._position > MAX_VALUE_CHARACTERS or not self._read_more():
                    raise self.fault(number) from None

    def fault(self, number: int) -> DataError:
        return DataError(f"{self._path}, row {number}: not valid JSON.")

    def _read_more(self) -> bool:
        # Reads twice as much as is waiting: parsing a long value again and again stays linear.
        waiting = self._buffer[self._position :]
        read = self._file.read(max(self._block, 2 * len(waiting)))
        self._buffer, self._position = waiting + read, 0
        return bool(read)
