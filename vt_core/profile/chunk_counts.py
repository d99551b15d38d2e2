"""Counts of one chunk of rows. Worker processes run this."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vt_core.errors import DataError
from vt_core.profile.cached_encoder import CachedEncoder
from vt_core.profile.readers import Chunk
from vt_core.profile.row_format import BadRow, RowFormat
from vt_core.profile.rows import is_blank, parse_row

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class ChunkCounts:
    """Counts of some rows of one file."""

    file: str
    #: Rows of the file, blank lines included.
    rows: int = 0
    blank_rows: int = 0
    #: Rows that were skipped because they could not be used.
    bad_rows: int = 0
    #: Rows with an output.
    examples: int = 0
    #: Output tokens of all examples.
    tokens: int = 0
    #: Output tokens that also occur in the input of their example.
    copied: int = 0
    #: Ids of outputs that are not in the input, each once per example.
    needed: array[int] = field(default_factory=lambda: array("q"))
    #: Ids of outputs, each once per example.
    written: array[int] = field(default_factory=lambda: array("q"))

    def add(self, ids_in: Sequence[int], ids_out: Sequence[int]) -> None:
        """Count one example. A row without output tokens is not an example."""
        if not ids_out:
            return
        seen = set(ids_out)
        new = seen.difference(ids_in)
        self.examples += 1
        self.needed.extend(new)
        self.written.extend(seen)
        self.tokens += len(ids_out)
        self.copied += len(ids_out) - sum(map(new.__contains__, ids_out))


class ChunkCounter:
    """Tokenizes and counts chunks of rows."""

    def __init__(self, tokenizer: Tokenizer, row_format: RowFormat, skip_bad: bool = False) -> None:
        """`skip_bad`: skip and count rows that cannot be used instead of raising DataError."""
        self._encode = CachedEncoder(tokenizer)
        self._row_format = row_format
        self._skip_bad = skip_bad

    def __call__(self, chunk: Chunk) -> ChunkCounts:
        """Counts of a chunk. Raises DataError for a row that cannot be used."""
        counts = ChunkCounts(chunk.file, len(chunk.rows))
        for ids_in, ids_out in self._encoded_rows(chunk, counts):
            counts.add(ids_in, ids_out)
        return counts

    def missing(self, chunk: Chunk) -> tuple[list[list[int]], int]:
        """The output tokens of each example that are not in its input, and the number of all output tokens.

        Raises DataError for a row that cannot be used.
        """
        missing, tokens = [], 0
        for ids_in, ids_out in self._encoded_rows(chunk, ChunkCounts(chunk.file)):
            given = set(ids_in)
            missing.append([id for id in ids_out if id not in given])
            tokens += len(ids_out)
        return missing, tokens

    def _encoded_rows(self, chunk: Chunk, counts: ChunkCounts) -> Iterator[tuple[list[int], list[int]]]:
        """Input and output ids of every usable row. Counts blank and bad rows in `counts`."""
        prompts, outputs = [], []
        for index, row in enumerate(chunk.rows):
            if is_blank(row):
                counts.blank_rows += 1
                continue
            try:
                prompt, output = self._row_format.texts(parse_row(row))
            except BadRow as error:
                if not self._skip_bad:
                    raise DataError(f"{chunk.where(index)}: {error}.") from None
                counts.bad_rows += 1
                continue
            if output:
                prompts.append(prompt)
                outputs.append(output)
        return zip(self._encode(prompts), self._encode(outputs), strict=True)
