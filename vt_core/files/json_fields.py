"""Fields of a JSON file, checked one by one as they are read, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vt_core.errors import VocabularyError
from vt_core.vocab.active import Ids

T = TypeVar("T")

MOST = 2**63 - 1

MAX_BYTES = 256 * 1024 * 1024
"""Far above any file of ours: counts of every id of the largest tokenizers take some 20 MB."""


@dataclass(frozen=True)
class Fields:
    """The object of a vocabulary file; a field that is not as asked for raises VocabularyError."""

    where: str
    values: Mapping[str, Any]

    def typed(self, key: str, kind: type[T], noun: str) -> T:
        if key not in self.values:
            raise VocabularyError(f"{self.where}: field '{key}' is missing; profile the task again.")
        value = self.values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fault(key, f"is not {noun}")
        return value

    def text(self, key: str) -> str:
        return self.typed(key, str, "text")

    def flag(self, key: str) -> bool:
        return self.typed(key, bool, "true or false")

    def whole(self, key: str, most: int = MOST) -> int:
        value = self.typed(key, int, "a whole number")
        if not is_whole(value, most):
            raise self.fault(key, f"is {value}, not from 0 to {most}")
        return value

    def whole_list(self, key: str, most: int) -> Ids:
        """A list of whole numbers from 0 to `most`, int64 [n]."""
        values = self.typed(key, list, "a list of whole numbers")
        for value in values:
            if not is_whole(value, most):
                raise self.fault(key, f"holds {value!r}, not a number from 0 to {most}")
        return np.array(values, np.int64)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.typed(key, list, "a list of names")
        if not all(isinstance(value, str) for value in values):
            raise self.fault(key, "is not a list of names")
        return tuple(values)

    def files(self, key: str) -> tuple[dict[str, Any], ...]:
        """A list of `{"file": name, "rows": count}`."""
        entries = self.typed(key, list, "a list of files")
        for entry in entries:
            good = isinstance(entry, dict) and isinstance(entry.get("file"), str)
            if not good or not is_whole(entry.get("rows"), MOST):
                raise self.fault(key, f"holds {entry!r}, not a file and its rows")
        return tuple(entries)

    def fault(self, key: str, what: str) -> VocabularyError:
        return VocabularyError(f"{self.where}: field '{key}' {what}; profile the task again.")


def is_whole(value: object, most: int) -> bool:
    """Whether `value` is a whole number from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def read_json(path: str | Path, what: str) -> Any:
    """Parses a JSON file, `what` names its kind; raises VocabularyError."""
    try:
        if (size := Path(path).stat().st_size) > MAX_BYTES:
            raise VocabularyError(f"{path}: not a {what}; {size} bytes are too many for one.")
        return json.loads(Path(path).read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise VocabularyError(f"{path}: the {what} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: not a {what} (no valid JSON: {error}).") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Writes an object, a field a line; raises VocabularyError."""
    lines = (f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in values.items())
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes beside `path` and renames; raises VocabularyError and leaves nothing behind where that fails."""
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be written ({error.strerror}).") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
