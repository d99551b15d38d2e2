"""Counts record batches of corpus rows. Local processes, Spark and Ray all run this function."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vt_core.errors import DataError, VtError
from vt_core.profile.batches import files_of, pieces, rows_of, where
from vt_core.profile.cached_encoder import CachedEncoder
from vt_core.profile.ngram_counts import NgramCounts
from vt_core.profile.row_format import BadRow, RowFormat
from vt_core.profile.rows import is_blank, parse_row
from vt_core.types import Ids
from vt_core.vocab.merges import Merges
from vt_core.vocab.ngrams import BEGIN, END

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Columns of the counts. The counts of two rows with the same kind and key add up.
SCHEMA = pa.schema(
    [
        #: `ids`, `ngrams`, `total`, `file`, or `error`.
        pa.field("kind", pa.string(), nullable=False),
        #: Ids: int32, little-endian, one after the other. N-grams: a record of `NgramCounts`. Else text: the
        #: total's name, the file, the message.
        pa.field("key", pa.binary(), nullable=False),
        #: Ids: examples with them in the output but not in the input.
        pa.field("needed", pa.int64(), nullable=False),
        #: Ids: examples with them in the output. N-grams: occurrences. Total: its value. File: its rows
        #: without blank lines.
        pa.field("written", pa.int64(), nullable=False),
    ]
)

#: Names of the totals, which are fields of `Counts`.
TOTALS = ("examples", "tokens", "copied", "bad_rows")

#: Ids to hold before they are counted, so that memory stays bounded in a partition of any size.
MAX_IDS = 4_000_000
#: The same of output tokens, for their n-grams.
MAX_TEXT = 1_000_000

Example = tuple[list[int], list[int]]


class ExampleReader:
    """Reads examples from batches: input and output ids. It can be sent to other processes."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        row_format: RowFormat,
        skip_bad: bool = False,
        contexts: int = 0,
        merges: Merges | None = None,
    ) -> None:
        """
        Args:
            skip_bad: skip and count rows that cannot be used.
            contexts: tokens of the longest contexts whose n-grams are counted; 0 counts none.
            merges: merged tokens of the model, which it writes outputs with.
        """
        self._tokenizer = tokenizer
        self._encode = CachedEncoder(tokenizer)
        self.row_format = row_format
        self.skip_bad = skip_bad
        self.contexts = contexts
        self.merges = merges or Merges()

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickling forgets whether special tokens are split.
        split = self._tokenizer.encode_special_tokens
        settings = (self.row_format, self.skip_bad, self.contexts, self.merges)
        return _make_reader, (self._tokenizer.to_str(), split, *settings)

    def examples(self, batch: pa.RecordBatch, counts: PartialCounts) -> Iterator[Example]:
        """Ids of every row with an output. Counts the rows of each file in `counts`.

        Raises:
            DataError: a row cannot be used. The message names it.
            TokenizerError: the tokenizer fails.
        """
        prompts, outputs = [], []
        files = files_of(batch)
        for index, row in enumerate(rows_of(batch)):
            blank = is_blank(row)
            counts.files[files[index]] += not blank
            if blank:
                continue
            try:
                prompt, output = self.row_format.texts(parse_row(row))
            except BadRow as error:
                if not self.skip_bad:
                    raise DataError(f"{where(batch, index, row)}: {error}.") from None
                counts.totals["bad_rows"] += 1
                continue
            if output:
                prompts.append(prompt)
                outputs.append(output)
        return zip(self._encode(prompts), map(self.merges.apply, self._encode(outputs)), strict=True)


class PartialCounts:
    """Counts of some rows, which grow row by row."""

    def __init__(self, contexts: int = 0) -> None:
        """`contexts`: tokens of the longest contexts whose n-grams are counted."""
        #: Rows of each file, without blank lines.
        self.files: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self._needed = array("q")
        self._written = array("q")
        self._contexts = contexts
        self._text = array("I")

    def add(self, ids_in: Sequence[int], ids_out: Sequence[int]) -> None:
        """Count one example. A row without output tokens is not an example."""
        if not ids_out:
            return
        seen = set(ids_out)
        new = seen.difference(ids_in)
        self._needed.extend(new)
        self._written.extend(seen)
        self.totals["examples"] += 1
        self.totals["tokens"] += len(ids_out)
        self.totals["copied"] += len(ids_out) - sum(map(new.__contains__, ids_out))

    def add_text(self, output: Sequence[int]) -> None:
        """Count the n-grams of an output: full ids, and `END` if the output is complete."""
        if self._contexts and output:
            self._text.extend((BEGIN, *output))

    @property
    def full(self) -> bool:
        """Whether the ids should be counted now, so that memory stays bounded."""
        return len(self._written) >= MAX_IDS or len(self._text) >= MAX_TEXT

    def batch(self) -> pa.RecordBatch:
        """The counts as a batch with the columns of `SCHEMA`."""
        written = np.bincount(np.asarray(self._written))
        needed = np.bincount(np.asarray(self._needed), minlength=len(written))
        ids = np.flatnonzero(written)
        names = [("total", name, self.totals[name]) for name in TOTALS]
        names += [("file", file, rows) for file, rows in self.files.items()]
        records, occurrences = NgramCounts.of(np.asarray(self._text, np.uint32), self._contexts).records()
        return pa.concat_batches(
            [
                _rows("ids", ids[:, None].astype("<i4").view(np.uint8), needed[ids], written[ids]),
                _rows("ngrams", records, np.zeros_like(occurrences), occurrences),
                *(_named_row(*row) for row in names),
            ]
        )


def count_batches(batches: Iterable[pa.RecordBatch], reader: ExampleReader) -> Iterator[pa.RecordBatch]:
    """Count the rows of batches.

    The counts of the parts of a corpus add up to those of the whole, however it is split.

    Args:
        batches: rows of a corpus, with the columns that `vt_core.profile.batches` describes.
        reader: turns rows into examples.

    Yields:
        Batches with the columns of `SCHEMA`. The last row has the kind `error` if a row cannot be used: an
        engine would try a failed task again, and report it in its own words.
    """
    counts = PartialCounts(reader.contexts)
    try:
        for piece in chain.from_iterable(map(pieces, batches)):
            for ids_in, ids_out in reader.examples(piece, counts):
                counts.add(ids_in, ids_out)
                counts.add_text([*ids_out, END])
            if counts.full:
                yield counts.batch()
                counts = PartialCounts(reader.contexts)
        yield counts.batch()
    except VtError as error:
        yield _named_row("error", str(error), 0)


def _rows(kind: str, keys: npt.NDArray[np.uint8], needed: Ids, written: Ids) -> pa.RecordBatch:
    """Rows of one kind. `keys`: the bytes of each key, `[n, bytes]`."""
    n, width = keys.shape
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * width)
    key = pa.Array.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(keys.tobytes())])
    return pa.record_batch([pa.repeat(kind, n), key, needed, written], schema=SCHEMA)


def _named_row(kind: str, name: str, value: int) -> pa.RecordBatch:
    row = {"kind": kind, "key": os.fsencode(name), "needed": 0, "written": value}
    return pa.RecordBatch.from_pylist([row], schema=SCHEMA)


def _make_reader(
    tokenizer: str,
    split_special: bool,
    row_format: RowFormat,
    skip_bad: bool,
    contexts: int,
    merges: Merges,
) -> ExampleReader:
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(tokenizer)
    fast.encode_special_tokens = split_special
    return ExampleReader(fast, row_format, skip_bad, contexts, merges)
