"""``generate --data``: many prompts, one line of JSON for each answer, in the order of the rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from vt_core.cli.streams import escape_text, progress, write_json
from vt_core.errors import OutputError, VtError

if TYPE_CHECKING:
    from vt_core import Generation, Model


#: A row's number, from 0, its file and line, and its prompt or what is wrong with it.
Row = tuple[int, tuple[str, "str | VtError"]]


@dataclass(frozen=True)
class Prompts:
    """The prompts of some files."""

    files: Sequence[Path]
    input_field: str | None  #: field of the input; None: ``input``
    template: str | None  #: text around ``{input}``; None: the input alone

    def __iter__(self) -> Iterator[tuple[str, str | VtError]]:
        """File and line of each row, and its prompt or what is wrong with it."""
        from vt_core.profile.row_format import make_row_format
        from vt_core.profile.rows import each_row_or_error

        form = make_row_format(None, self.input_field, None, self.template)
        return each_row_or_error(self.files, form.prompt_text, form.input_columns)

    def check(self) -> None:
        """Read the first row. Raises DataError where a file cannot be read."""
        next(iter(self), None)


def run(
    make_model: Callable[[], Model], prompts: Prompts, out: Path | None, options: Mapping[str, Any]
) -> None:
    """Answer all prompts.

    Args:
        make_model: loads the model; called when it is known that there is something to do.
        prompts: to answer.
        out: file for the answers; what it holds already is not computed again. None: standard output.
        options: of every request.

    Raises:
        DataError: a file cannot be read.
        OutputError: ``out`` cannot be written, or holds the answers of another run.
        VtError: some rows had errors; raised at the end.
    """
    prompts.check()
    with _Answers(out, options) as answers:
        rows = iter(enumerate(prompts))
        answers.skip(rows)
        if (first := next(rows, None)) is not None:
            _Run(make_model(), answers, options).answer(chain([first], rows))


class _Run:
    def __init__(self, model: Model, answers: _Answers, options: Mapping[str, Any]) -> None:
        self._model, self._answers, self._options = model, answers, options
        self._asked: dict[int, tuple[int, str, str | VtError]] = {}  #: row, place and prompt by index here
        self._failed = 0
        self._tokens = 0

    def answer(self, rows: Iterator[Row]) -> None:
        started = time.perf_counter()
        with progress("answered", " prompts") as advance:
            results = self._model.generate_many(
                self._prompts(rows), ordered=True, return_errors=True, **self._options
            )
            with contextlib.closing(results):
                for index, result in results:
                    row, where, prompt = self._asked.pop(index)
                    self._write(row, where, prompt, result)
                    advance(1)
        spent = time.perf_counter() - started
        if self._tokens:
            speed = self._tokens / spent
            click.echo(f"{self._tokens} tokens in {spent:.1f} s, {speed:.1f} tokens/s", err=True)
        if self._failed:
            rows_had = "1 row had an error" if self._failed == 1 else f"{self._failed} rows had errors"
            raise VtError(f"{rows_had}; see the lines above, and 'error' in the answers")

    def _prompts(self, rows: Iterator[Row]) -> Iterator[Any]:
        for index, (row, (where, prompt)) in enumerate(rows):
            self._asked[index] = row, where, prompt
            yield {"prompt": prompt}

    def _write(self, row: int, where: str, prompt: str | VtError, result: Generation | VtError) -> None:
        if isinstance(prompt, VtError):
            result = prompt  # says more than what a model says about such a prompt
        if isinstance(result, VtError):
            self._failed += 1
            told = str(result) if isinstance(prompt, VtError) else f"{where}: {result}"
            click.echo(escape_text(told), err=True)
            self._answers.write(row, where, prompt, {"error": told})
        else:
            self._tokens += result.stats.generated_tokens
            self._answers.write(row, where, prompt, result.to_dict())


class _Answers:
    """The file of answers: a line for each row, in order, with a key of prompt and options."""

    def __init__(self, path: Path | None, options: Mapping[str, Any]) -> None:
        self._path = path
        self._options = json.dumps(options, sort_keys=True, default=str)
        self._keys: list[str] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Answers:
        if self._path is None:
            return self
        try:
            self._file = open(self._path, "a+b")
            self._read_keys(self._file)
        except OSError as error:
            raise self._unwritable(error) from error
        except OutputError:
            self.__exit__()
            raise
        return self

    def _read_keys(self, file: IO[bytes]) -> None:
        file.seek(0)
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break  # the line that an interrupt left
            self._keys.append(self._key_of(line))
            whole += len(line)
        file.truncate(whole)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def skip(self, rows: Iterator[Row]) -> None:
        """Skip the rows whose answers are in the file. Raises OutputError for answers to other rows."""
        for line, key in enumerate(self._keys, 1):
            _, (where, prompt) = next(rows, (line, ("the end of the rows", "")))
            if key != self._key(where, prompt):
                raise OutputError(
                    f"{self._path}, line {line} answers another prompt than {where}, or with other options; "
                    "give another --out, or remove the file"
                )

    def write(self, row: int, where: str, prompt: str | VtError, values: Mapping[str, Any]) -> None:
        line = {"row": row, "source": where, "key": self._key(where, prompt), **values}
        if self._file is None:
            write_json(line)
            sys.stdout.flush()
            return
        content = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _key(self, where: str, prompt: str | VtError) -> str:
        text = where if isinstance(prompt, VtError) else prompt
        digest = hashlib.sha256(f"{self._options}\n{text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def _key_of(self, line: bytes) -> str:
        try:
            key = json.loads(line)["key"]
        except (ValueError, TypeError, LookupError, RecursionError):
            key = None
        if not isinstance(key, str):
            raise OutputError(f"{self._path} holds other lines than answers; give another --out")
        return key

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self._path} cannot be written ({error.strerror})")
