"""Self-profiling: count what the model itself writes, so that the counts match its style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vt_core.errors import DataError, PromptError
from vt_core.profile.accumulator import CountAccumulator, CountedChunks, accumulate
from vt_core.profile.batch_counts import PartialCounts
from vt_core.profile.checkpoint import Checkpoint
from vt_core.profile.counting import chunks_from
from vt_core.profile.counts import Counts
from vt_core.profile.readers import Row
from vt_core.profile.row_format import BadRow, RowFormat
from vt_core.profile.rows import is_blank, parse_row
from vt_core.types import Ids
from vt_core.vocab.ngrams import END
from vt_core.vocab.tokenizer import load_tokenizer

#: Generates full ids for a prompt, at most the given number of tokens.
Generate = Callable[[str, int], Iterable[int]]


def count_own_outputs(
    files: Sequence[str | Path],
    tokenizer_json: str | Path,
    start: Counts,
    row_format: RowFormat,
    generate: Generate,
    *,
    max_tokens: int = 256,
    limit: int | None = None,
    always: Ids | None = None,
    skip_bad: bool = False,
    checkpoint: Checkpoint | None = None,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Counts:
    """Count the texts that a model writes for the inputs of corpus files, added to `start`.

    The outputs in the files are ignored. N-grams are counted with special tokens; one at the end of a text
    ends it.

    Args:
        files: corpus files.
        tokenizer_json: the model's tokenizer.
        start: counts to add to.
        row_format: fields of the rows and the prompt around the input.
        generate: the model.
        max_tokens: most tokens per text.
        limit: rows to use; None uses all.
        always: ids that are active in every request, such as the end of text. They are not counted.
        skip_bad: skip and count rows that cannot be used.
        checkpoint: where to save and resume; None for neither.
        on_rows: called with the number of rows done.

    Raises:
        DataError: a file or a row cannot be used, or the model refuses a prompt.
        TokenizerError: the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(tokenizer_json)
    dropped = frozenset(() if always is None else always.tolist())

    def count(row: Row, counts: PartialCounts) -> None:
        prompt = row_format.prompt_text(parse_row(row))
        ids = list(generate(prompt, max_tokens))
        written = [id for id in ids if id not in dropped]
        counts.add(tokenizer.encode(prompt, add_special_tokens=False).ids, written)
        if written:
            counts.add_text([*ids[:-1], END] if ids[-1] in dropped else ids)

    def count_after(total: CountAccumulator) -> CountedChunks:
        for file, chunk in chunks_from(files, total.position, row_format.input_columns):
            for index, row in enumerate(chunk.rows):
                if limit is not None and total.rows >= limit:
                    return
                counts, blank = PartialCounts(start.ngrams.longest), is_blank(row)
                counts.files[chunk.file] += not blank
                try:
                    if not blank:
                        count(row, counts)
                except (BadRow, PromptError) as error:
                    if not skip_bad:
                        raise DataError(f"{chunk.where(index)}: {error}.") from error
                    counts.totals["bad_rows"] = 1
                yield file, 1, [counts.batch()]

    return accumulate(count_after, start, checkpoint, on_rows)
