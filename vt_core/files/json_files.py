"""The one place that reads JSON files and writes files atomically.

Reading checks size, encoding, nesting depth and, for files of our own formats (``strict``), that no field
appears twice and no number is NaN or infinite. Files from elsewhere (config.json, tokenizer.json) are read as
the stock libraries read them: the last of two equal fields wins, and `Infinity` is a number.

Every function takes the error class to raise, so that the error fits the file.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from vt_core.errors import OutputError, VtError, shorten
from vt_core.types import Ids

T = TypeVar("T")

MOST = 2**63 - 1
#: The largest tokenizer.json have 33 MB, and counts of all ids of the largest tokenizers 20 MB.
MAX_BYTES = 256 << 20
#: Levels of nested lists and objects. Real files have fewer than ten; code that walks them recurses.
MAX_DEPTH = 64

_LFS_POINTER = b"version https://git-lfs.github.com/"
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "starts with a byte order mark; save it as UTF-8 without one",
    b"\xff\xfe": "is UTF-16, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8; save it as UTF-8",
}


def read_bytes(path: str | Path, kind: str, error: type[VtError], limit: int | None = None) -> bytes:
    """Content of a file.

    Args:
        kind: what the file is, for messages: ``task vocabulary``.
        error: class of the error to raise.
        limit: most bytes to read; `MAX_BYTES` by default. Never reads more, from a device or pipe either.

    Raises:
        error: the file cannot be read, is too large, or is a Git LFS pointer.
    """
    limit = MAX_BYTES if limit is None else limit
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            content = _read(file, limit, size if stat.S_ISREG(status.st_mode) else None)
    except (OSError, ValueError) as fault:  # ValueError: a name with a null character
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: the {kind} cannot be read ({reason}).") from fault
    if max(size, len(content)) > limit:
        found = f"{size} bytes are" if size > limit else "it is"
        raise error(f"{path}: not a {kind}; {found} more than the limit of {limit} bytes.")
    if sentence := lfs_pointer(content):
        raise error(f"{path} {sentence}.")
    return content


def _read(file: BinaryIO, limit: int, size: int | None) -> bytes:
    """At most `limit + 1` bytes. Memory grows with what there is to read, not with the limit."""
    if size is not None:
        return file.read(size + 1) if size <= limit else b""
    content = bytearray()
    while len(content) <= limit and (block := file.read(min(1 << 20, limit + 1 - len(content)))):
        content += block
    return bytes(content)


def lfs_pointer(start: bytes) -> str | None:
    """What to say of a file that begins with `start` if that is a Git LFS pointer, else None."""
    if not start.startswith(_LFS_POINTER):
        return None
    return "is a Git LFS pointer, not the file itself: run git lfs pull"


def decode_text(content: bytes, where: str | Path, error: type[VtError]) -> str:
    """UTF-8 text. Raises `error`, which names another encoding where it is recognized."""
    for mark, sentence in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise error(f"{where} {sentence}.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not UTF-8 text (byte {fault.start}).") from fault


def read_text(path: str | Path, kind: str, error: type[VtError], limit: int | None = None) -> str:
    """Content of a UTF-8 file; see `read_bytes`."""
    return decode_text(read_bytes(path, kind, error, limit), path, error)


def read_json(
    path: str | Path,
    kind: str,
    error: type[VtError],
    *,
    strict: bool = True,
    limit: int | None = None,
) -> Any:
    """Value of a JSON file; see `read_bytes` for the arguments and `parse_json` for `strict`."""
    return parse_json(read_bytes(path, kind, error, limit), path, kind, error, strict=strict)


def read_object(
    path: str | Path,
    kind: str,
    error: type[VtError],
    *,
    strict: bool = True,
    limit: int | None = None,
) -> dict[str, Any]:
    """The JSON object in a file; see `read_json`."""
    return parse_object(read_bytes(path, kind, error, limit), path, kind, error, strict=strict)


def parse_json(
    content: str | bytes, where: str | Path, kind: str, error: type[VtError], *, strict: bool = True
) -> Any:
    """The value of a JSON text.

    Args:
        where: the file or option that the text comes from, for messages.
        strict: also refuse a field that appears twice, and numbers that are NaN or infinite.

    Raises:
        error: the text is not valid JSON or is nested deeper than `MAX_DEPTH`.
    """
    text = decode_text(content, where, error) if isinstance(content, bytes) else content
    hooks: dict[str, Any] = {"parse_constant": _no_number, "object_pairs_hook": _unique} if strict else {}
    try:
        value = json.loads(text, **hooks)
        if _deeper_than(value, MAX_DEPTH):
            raise RecursionError
    except RecursionError as fault:
        raise error(f"{where}: not a {kind}: it is nested more than {MAX_DEPTH} levels deep.") from fault
    except ValueError as fault:
        raise error(f"{where}: not a {kind}: not valid JSON ({fault}).") from fault
    return value


def parse_object(
    content: str | bytes, where: str | Path, kind: str, error: type[VtError], *, strict: bool = True
) -> dict[str, Any]:
    """The JSON object that a text holds; see `parse_json`."""
    value = parse_json(content, where, kind, error, strict=strict)
    if not isinstance(value, dict):
        raise error(f"{where}: not a {kind}: it holds {shorten(value, 40)} and not a JSON object.")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {shorten(twice, 60)} appears twice")
    return values


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return False
    return True


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object, each checked as it is read. A wrong or missing one raises `error`."""

    where: str
    values: Mapping[str, Any]
    error: type[VtError]
    #: What the user can do, the end of every message: "convert the model again".
    remedy: str
    #: Path of this object within its file, with the final dot: "source.".
    prefix: str = ""

    def typed(self, key: str, kind: type[T], noun: str) -> T:
        """A field of one Python type, which messages call `noun`."""
        if key not in self.values:
            raise self.fault(key, "is missing")
        value = self.values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fault(key, f"is {shorten(value)}, not {noun}")
        return value

    def text(self, key: str) -> str:
        return self.typed(key, str, "text")

    def flag(self, key: str) -> bool:
        return self.typed(key, bool, "true or false")

    def whole(self, key: str, most: int = MOST, least: int = 0) -> int:
        """A whole number from `least` to `most`."""
        value = self.typed(key, int, "a whole number")
        if not least <= value <= most:
            raise self.fault(key, f"is {shorten(value)}, not from {least} to {most}")
        return value

    def part(self, key: str) -> Fields:
        """A nested object."""
        return replace(self, values=self.typed(key, dict, "an object"), prefix=f"{self.prefix}{key}.")

    def entries(self, key: str) -> list[Fields]:
        """The objects in a list."""
        values = self.typed(key, list, "a list of objects")
        if not all(isinstance(value, dict) for value in values):
            raise self.fault(key, "is not a list of objects")
        return [replace(self, values=value, prefix=f"{self.prefix}{key}.") for value in values]

    def parts(self, key: str) -> list[tuple[str, Fields]]:
        """The objects within a nested object, by their names."""
        part = self.part(key)
        return [(name, part.part(name)) for name in part.values]

    def whole_list(self, key: str, most: int) -> Ids:
        """A list of whole numbers from 0 to `most`, int64 ``[n]``."""
        values = self.typed(key, list, "a list of whole numbers")
        for value in values:
            if not is_whole(value, most):
                raise self.fault(key, f"holds {shorten(value)}, not a number from 0 to {most}")
        return np.array(values, np.int64)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.typed(key, list, "a list of names")
        if not all(isinstance(value, str) for value in values):
            raise self.fault(key, "is not a list of names")
        return tuple(values)

    def files(self, key: str) -> tuple[dict[str, Any], ...]:
        """A list of ``{"file": name, "rows": count}``."""
        entries = self.typed(key, list, "a list of files")
        for entry in entries:
            good = isinstance(entry, dict) and isinstance(entry.get("file"), str)
            if not good or not is_whole(entry.get("rows"), MOST):
                raise self.fault(key, f"holds {shorten(entry)}, not a file and its rows")
        return tuple(entries)

    def fault(self, key: str, what: str) -> VtError:
        """The error of a field: `what` says what it is or has."""
        return self.error(f"{self.where}: field '{self.prefix}{key}' {what}; {self.remedy}.")


def is_whole(value: object, most: int) -> bool:
    """Whether `value` is a whole number from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def write_json(path: str | Path, values: Mapping[str, Any], error: type[VtError] = OutputError) -> None:
    """Write an object atomically, one field per line. Raises `error`."""
    write_atomically(path, object_text(values), error)


def object_text(values: Mapping[str, Any]) -> bytes:
    """An object as JSON, one field per line."""
    lines = (f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in values.items())
    return _encode("{\n" + ",\n".join(lines) + "\n}\n")


def _encode(text: str) -> bytes:
    # A lone surrogate (a file name that is not UTF-8) becomes the escape that JSON has for it.
    return text.encode("utf-8", "backslashreplace")


def write_atomically(path: str | Path, content: str | bytes, error: type[VtError] = OutputError) -> None:
    """Write a temporary file beside `path` and rename it. Raises `error` and leaves nothing behind.

    A symbolic link is followed. A device or a pipe is written in place.
    """
    if isinstance(content, str):
        content = _encode(content)
    try:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            Path(path).write_bytes(content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except (OSError, ValueError) as fault:  # ValueError: a name with a null character
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be written ({reason}).") from fault


def write_together(contents: Mapping[Path, bytes], error: type[VtError] = OutputError) -> None:
    """Write several files. A fault in writing one leaves all as they were: none is renamed before all are
    complete. Raises `error`. Files that exist must be regular ones.
    """
    staged: dict[Path, Path] = {}
    path = None
    try:
        for path, content in contents.items():
            target = Path(os.path.realpath(path))
            if target.exists() and not target.is_file():
                raise error(f"{path}: cannot be written (not a regular file).")
            staged[target] = _stage(target, content)
        for target, temporary in staged.items():
            os.replace(temporary, target)
    except (OSError, ValueError) as fault:  # ValueError: a name with a null character
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be written ({reason}).") from fault
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _replace(target: Path, content: bytes) -> None:
    temporary = _stage(target, content)
    try:
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _stage(target: Path, content: bytes) -> Path:
    """Write a temporary file beside `target`, and return its path."""
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}")
    # Created by open() and not by mkstemp(), so that the kernel applies the umask. Reading the umask means
    # setting it, for every thread of the process.
    try:
        # In the try block: Python raises an interrupt that came during the call right after it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
