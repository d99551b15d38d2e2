"""Counting one chunk of rows: the work of one process."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vt_core.errors import DataError, TokenizerError
from vt_core.profile.layout import BadRow, Layout
from vt_core.profile.readers import Chunk, Row, read_chunks
from vt_core.profile.words import WordEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")


@dataclass
class Tally:
    """Counts of some rows of one file. `needed` and `written` hold an id once for each of its examples."""

    file: str
    rows: int = 0
    """Rows of the file, blank lines included."""
    blank_rows: int = 0
    bad_rows: int = 0
    examples: int = 0
    tokens: int = 0
    copied: int = 0
    needed: array[int] = field(default_factory=lambda: array("q"))
    written: array[int] = field(default_factory=lambda: array("q"))

    def add(self, ids_in: Sequence[int], ids_out: Sequence[int]) -> None:
        """One example; one without output tokens is none."""
        if not ids_out:
            return
        seen = set(ids_out)
        new = seen.difference(ids_in)
        self.examples += 1
        self.needed.extend(new)
        self.written.extend(seen)
        self.tokens += len(ids_out)
        self.copied += len(ids_out) - sum(map(new.__contains__, ids_out))


class Tallier:
    """Tokenizes chunks and counts them."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout, skip_bad: bool = False) -> None:
        self._encode = WordEncoder(tokenizer)
        self._layout = layout
        self._skip_bad = skip_bad

    def __call__(self, chunk: Chunk) -> Tally:
        """Counts of a chunk; raises DataError for a row that cannot be used, unless bad rows are skipped."""
        tally = Tally(chunk.file, len(chunk.rows))
        for ids_in, ids_out in self._pairs(chunk, tally):
            tally.add(ids_in, ids_out)
        return tally

    def missing(self, chunk: Chunk) -> tuple[list[list[int]], int]:
        """Output tokens of each example that are not in its input, and how many output tokens there are.

        Raises DataError for a row that cannot be used, unless bad rows are skipped.
        """
        missing, tokens = [], 0
        for ids_in, ids_out in self._pairs(chunk, Tally(chunk.file)):
            given = set(ids_in)
            missing.append([id for id in ids_out if id not in given])
            tokens += len(ids_out)
        return missing, tokens

    def _pairs(self, chunk: Chunk, tally: Tally) -> Iterator[tuple[list[int], list[int]]]:
        """Input and output ids of every usable row; notes the others in `tally`."""
        prompts, outputs = [], []
        for index, row in enumerate(chunk.rows):
            if is_blank(row):
                tally.blank_rows += 1
                continue
            try:
                prompt, output = self._layout.texts(parsed(row))
            except BadRow as error:
                if not self._skip_bad:
                    raise DataError(f"{chunk.where(index)}: {error}.") from None
                tally.bad_rows += 1
                continue
            if output:
                prompts.append(prompt)
                outputs.append(output)
        return zip(self._encode(prompts), self._encode(outputs), strict=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, without padding and truncation; raises TokenizerError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every fault
        raise TokenizerError(f"{path}: not a tokenizer that can be read ({error}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def each_row(files: Sequence[str | Path], make: Callable[[Any], T]) -> Iterator[T]:
    """What `make` makes of every row of some files, blank lines left out.

    Raises DataError for a file, or a row for which `make` raises BadRow, named by file and line.
    """
    for file in files:
        for chunk in read_chunks(file):
            for index, row in enumerate(chunk.rows):
                if is_blank(row):
                    continue
                try:
                    made = make(parsed(row))
                except BadRow as error:
                    raise DataError(f"{chunk.where(index)}: {error}.") from None
                yield made


def is_blank(row: Row) -> bool:
    """Whether a row is an empty line."""
    return isinstance(row, bytes) and row.isspace()


def parsed(row: Row) -> Any:
    """What a row holds; raises BadRow."""
    if not isinstance(row, bytes):
        return row
    try:
        return json.loads(row)
    except (ValueError, RecursionError):
        raise BadRow("not valid JSON") from None
