"""Self-profiling: the model writes the outputs that are counted, in its own style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vt_core.errors import DataError, PromptError
from vt_core.profile.checkpoint import Checkpoint
from vt_core.profile.counting import chunks_from
from vt_core.profile.counts import Counts
from vt_core.profile.layout import BadRow, Layout
from vt_core.profile.readers import Row
from vt_core.profile.running import Running, Tallies, accumulate
from vt_core.profile.tally import Tally, is_blank, load_tokenizer, parsed
from vt_core.vocab.active import Ids

Generate = Callable[[str, int], Iterable[int]]
"""Full ids that the model writes after a prompt, at most so many tokens."""


def count_own_outputs(
    files: Sequence[str | Path],
    tokenizer_json: str | Path,
    start: Counts,
    layout: Layout,
    generate: Generate,
    *,
    max_tokens: int = 256,
    limit: int | None = None,
    always: Ids | None = None,
    skip_bad: bool = False,
    checkpoint: Checkpoint | None = None,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Counts:
    """Counts of what a model writes for the inputs of the first `limit` rows, added to `start`.

    The outputs in the files are not looked at. `always` are ids that are active anyway, such as the end of
    the text: they are not counted. With a `checkpoint` the count goes on where an earlier one stopped.

    Raises:
        DataError: a file or a row that cannot be used, or a prompt that the model refuses.
        TokenizerError: the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(tokenizer_json)
    dropped = frozenset(() if always is None else always.tolist())

    def one(row: Row, tally: Tally) -> None:
        prompt = layout.prompt_text(parsed(row))
        written = [id for id in generate(prompt, max_tokens) if id not in dropped]
        tally.add(tokenizer.encode(prompt, add_special_tokens=False).ids, written)

    def tallies(running: Running) -> Tallies:
        for file, chunk in chunks_from(files, running.position):
            for index, row in enumerate(chunk.rows):
                if limit is not None and running.rows >= limit:
                    return
                tally = Tally(chunk.file, rows=1, blank_rows=int(is_blank(row)))
                try:
                    if not tally.blank_rows:
                        one(row, tally)
                except (BadRow, PromptError) as error:
                    if not skip_bad:
                        raise DataError(f"{chunk.where(index)}: {error}") from error
                    tally.bad_rows = 1
                yield file, tally

    return accumulate(tallies, start, checkpoint, on_rows)
