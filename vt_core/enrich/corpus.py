"""The outputs of a corpus as ids, for choosing n-grams."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vt_core.enrich.selection import SEPARATOR
from vt_core.errors import DataError
from vt_core.profile.batch_counts import ExampleReader, PartialCounts
from vt_core.profile.batches import to_batch
from vt_core.profile.readers import read_chunks
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.merges import Merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Texts that are kept to check the new tokenizer with.
SAMPLE_TEXTS = 200


@dataclass(frozen=True)
class Outputs:
    """The outputs of a corpus."""

    ids: npt.NDArray[np.int32]  #: with `SEPARATOR` after each output
    examples: int
    bad_rows: int  #: rows that were skipped
    samples: tuple[str, ...]  #: the first prompts and outputs

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.examples

    def merged_tokens(self, merges: Merges) -> int:
        """Number of tokens after rewriting each output with merged tokens."""
        ends = np.flatnonzero(self.ids == SEPARATOR)
        return sum(len(merges.apply(text[text != SEPARATOR].tolist())) for text in np.split(self.ids, ends))


def read_outputs(
    files: Sequence[str | Path],
    tokenizer: Tokenizer,
    row_format: RowFormat,
    *,
    merges: Merges | None = None,
    skip_bad: bool = False,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Outputs:
    """Encode the outputs of corpus files.

    Args:
        merges: merged tokens that the model has already.
        skip_bad: skip and count rows that cannot be used.
        on_rows: called with the number of rows of each chunk.

    Raises:
        DataError: a file or row cannot be used, or no row has an output.
    """
    reader = ExampleReader(tokenizer, row_format, skip_bad, merges=merges)
    counts = PartialCounts()
    ids = array("i")
    examples = 0
    samples: list[str] = []
    for file in files:
        for chunk in read_chunks(file, columns=row_format.columns):
            for prompt, output in reader.examples(to_batch(chunk), counts):
                ids.extend(output)
                ids.append(SEPARATOR)
                examples += 1
                if len(samples) < SAMPLE_TEXTS:
                    samples += [tokenizer.decode(prompt), tokenizer.decode(output)]
            on_rows(len(chunk.numbers))
    if len(ids) == examples:
        raise DataError(
            f"No row of {', '.join(map(str, files))} has an output; enriching needs texts of the task."
        )
    return Outputs(np.array(ids, np.int32), examples, counts.totals["bad_rows"], tuple(samples))
