"""Standard streams of any encoding, closed or full, and text that is safe to show on a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from vt_core.errors import OutputError

#: Control characters apart from tab and line feed: a terminal obeys them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: Controls that JSON allows unescaped.
_JSON_CONTROLS = re.compile("[\x7f-\x9f]")


class PipeClosed(OSError):
    """The reader of standard output has closed the pipe: it has what it wants."""


class _Output(io.FileIO):
    """Standard output, whose faults are errors of this package."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise PipeClosed from error
        except OSError as error:
            raise OutputError(f"standard output cannot be written ({error.strerror})") from error


def prepare_streams() -> None:
    """Make the standard streams of this process usable whatever the caller passed.

    - A closed stream is opened again, so that no other file gets its number. Writing to a closed standard
      output, or reading a closed standard input, is an error; messages to a closed standard error are lost.
    - Standard output raises OutputError when it cannot be written.
    - Characters that the encoding of standard output lacks are replaced. ASCII, which Python assumes where no
      locale is set, becomes UTF-8.
    """
    # The wrong direction makes the first use of the stream fail.
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _reopen_closed(descriptor, mode)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "rb", closefd=False)), "utf-8")
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    if encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968", "646"):
        encoding = "utf-8"
    output = io.BufferedWriter(_Output(1, "wb", closefd=False))
    sys.stdout = io.TextIOWrapper(output, encoding, "replace", line_buffering=os.isatty(1))
    if sys.stderr is None:
        errors = io.BufferedWriter(io.FileIO(2, "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(errors, "utf-8", "backslashreplace", line_buffering=True)


def _reopen_closed(descriptor: int, mode: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, mode)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def discard_output() -> None:
    """Send what standard output still holds to the null device, so that Python's last flush succeeds."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def write_text(text: str) -> None:
    """Write generated text to standard output at once. On a terminal, control characters are escaped."""
    # Not click.echo, which looks for colors to strip in every piece.
    sys.stdout.write(escape_text(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write a JSON value and a line feed to standard output. Characters are escaped where the encoding
    cannot be trusted to have them.
    """
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not utf8)
    text = _JSON_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    # JSON has the same escape for lone surrogates (file names that are not UTF-8) as Python.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def escape_text(text: str) -> str:
    """Text with its control characters shown as ``\\x1b`` and the like; tabs and line feeds are kept."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class _EchoHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(escape_text(self.format(record)), err=True)


@contextmanager
def log_shown(shown: bool) -> Iterator[None]:
    """While entered, show the package's log messages on stderr, one line each, if ``shown``."""
    logger, handler = logging.getLogger("vt"), _EchoHandler()
    level = logger.level
    if shown:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def progress(text: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr; gives the function that moves it on."""
    from tqdm import tqdm

    # disable=None shows no bar if stderr is not a terminal.
    with tqdm(total=total, unit=unit, unit_scale=True, disable=None, desc=text) as bar:
        yield bar.update
