"""The profiler: makes a task vocabulary from corpus files and a tokenizer, and measures its coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vt_core.errors import DataError, VocabularyError
from vt_core.profile.accumulator import CountAccumulator
from vt_core.profile.batch_counts import ExampleReader, PartialCounts
from vt_core.profile.batches import to_batch
from vt_core.profile.checkpoint import Checkpoint
from vt_core.profile.counting import count_files
from vt_core.profile.counts import Counts
from vt_core.profile.coverage import Coverage
from vt_core.profile.language_filter import Mask, allowed_ids
from vt_core.profile.ngram_counts import MIN_COUNT
from vt_core.profile.ngram_table import make_ngram_table
from vt_core.profile.own_outputs import Generate, count_own_outputs
from vt_core.profile.readers import read_chunks
from vt_core.profile.row_format import RowFormat
from vt_core.profile.selection import Stages, most_frequent, ordered_prior, select, with_prior
from vt_core.types import Ids
from vt_core.vocab.merges import Merges
from vt_core.vocab.ngrams import NgramTable
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Files = Sequence[str | Path]


@dataclass(frozen=True)
class Profiler:
    """Profiles tasks for one model.

    Its methods raise DataError for files and rows that cannot be used, TokenizerError for the tokenizer, and
    OptionError for an unknown language.
    """

    tokenizer_json: Path
    #: Rows of the model's table, V; None uses the size of the tokenizer.
    vocab_rows: int | None = None
    #: Name of the model, stored in task vocabularies for error messages.
    model: str = ""
    #: Fields of the corpus and the prompt around the input.
    row_format: RowFormat = field(default_factory=RowFormat)
    #: Skip and count rows that cannot be used, instead of raising DataError.
    skip_bad: bool = False
    #: Tokens of the longest n-grams to count for a table; 0 counts none.
    ngrams: int = 0

    @cached_property
    def table(self) -> TokenTable:
        return TokenTable.load(self.tokenizer_json)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_json)

    @cached_property
    def reader(self) -> ExampleReader:
        """Turns corpus rows into ids."""
        merges = Merges.beside(self.tokenizer_json)
        return ExampleReader(self.tokenizer, self.row_format, self.skip_bad, self.contexts, merges)

    @cached_property
    def digest(self) -> str:
        return self.table.digest()

    @property
    def rows(self) -> int:
        return self.table.size if self.vocab_rows is None else self.vocab_rows

    @property
    def contexts(self) -> int:
        """Tokens of the longest context: an n-gram without its last token."""
        return max(self.ngrams - 1, 0)

    @property
    def always(self) -> Ids:
        """Ids that are active in every request, whatever the task."""
        return self.table.special_ids(self.rows)

    def empty(self) -> Counts:
        """Counts without any example."""
        return Counts.empty(self.digest, self.table.size, self.contexts)

    def load_counts(self, path: str | Path) -> Counts:
        """Read a counts file. Raises VocabularyError, also for counts of another tokenizer."""
        counts = Counts.load(path)
        if counts.tokenizer_digest != self.digest:
            raise VocabularyError(
                f"{path} was counted with tokenizer {counts.tokenizer_digest[:12]}, but the model has "
                f"tokenizer {self.digest[:12]}; count the corpus again with this model."
            )
        return counts

    def count(
        self,
        files: Files,
        *,
        processes: int = 1,
        spans: Sequence[range] | None = None,
        checkpoint: Checkpoint | None = None,
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> Counts:
        """Count corpus files; see `count_files` for the arguments."""
        return count_files(
            files,
            self.reader,
            self.empty(),
            processes=processes,
            spans=spans,
            checkpoint=checkpoint,
            on_rows=on_rows,
        )

    def count_with(self, counts: Iterable[pa.RecordBatch]) -> Counts:
        """Add up what an engine counted.

        >>> profiler.count_with(count_with_spark(["s3a://bucket/corpus.jsonl"], profiler.reader, session))

        Raises DataError if a row cannot be used, or the engine fails.
        """
        total = CountAccumulator(self.empty())
        for batch in counts:
            total.add(batch)
        return total.counts()

    def count_own(
        self,
        files: Files,
        generate: Generate,
        *,
        max_tokens: int = 256,
        limit: int | None = None,
        checkpoint: Checkpoint | None = None,
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> Counts:
        """Count what the model writes for the inputs of corpus files; see `count_own_outputs`."""
        return count_own_outputs(
            files,
            self.tokenizer_json,
            self.empty(),
            self.row_format,
            generate,
            max_tokens=max_tokens,
            limit=limit,
            always=self.always,
            skip_bad=self.skip_bad,
            checkpoint=checkpoint,
            on_rows=on_rows,
        )

    def select(
        self, counts: Counts, stages: Stages, languages: Sequence[str] = (), name: str = "task"
    ) -> TaskVocabulary:
        """The task vocabulary of counted files; see `select`."""
        return select(
            counts,
            self.table,
            self.rows,
            stages,
            languages=languages,
            allowed=self.allowed(languages),
            name=name,
            model=self.model,
        )

    def ngram_table(
        self, counts: Counts, name: str = "task", min_count: int = MIN_COUNT
    ) -> NgramTable | None:
        """The n-gram table of counted files; None if no n-gram occurs `min_count` times."""
        table = make_ngram_table(counts, self.table, self.rows, name, self.model, min_count)
        return table if table.sections else None

    def allowed(self, languages: Sequence[str]) -> Mask | None:
        """Ids that the language filter keeps, bool `[table.size]`; None if no language is given."""
        return allowed_ids(self.table, self.tokenizer, languages) if languages else None

    def cover(self, files: Files, rankings: Sequence[Ids]) -> list[Coverage]:
        """Coverage of the outputs of held-out files by each of several rankings of ids.

        Raises DataError if the files have no output.
        """
        coverages = [Coverage(ranking, self.table.size, self.always) for ranking in rankings]
        for file in files:
            for chunk in read_chunks(file, columns=self.row_format.columns):
                missing, tokens = [], 0
                for ids_in, ids_out in self.reader.examples(to_batch(chunk), PartialCounts()):
                    given = set(ids_in)
                    missing.append([id for id in ids_out if id not in given])
                    tokens += len(ids_out)
                for coverage in coverages:
                    coverage.add(missing, tokens)
        if coverages and coverages[0].tokens == 0:
            raise DataError(
                f"No row of {', '.join(map(str, files))} has an output text; give other --held-out files."
            )
        return coverages

    def held_out(
        self,
        task: TaskVocabulary,
        counts: Counts,
        files: Files,
        stages: Stages,
        miss_rates: Sequence[float] = (),
    ) -> tuple[TaskVocabulary, dict[str, Any]]:
        """Measure the coverage of held-out files.

        The curve of the report adds the most frequent ids first and then the rank prior, as a budget of rows
        does.

        Args:
            task: the vocabulary to measure.
            counts: the counts that `task` was selected from.
            files: the held-out corpus files.
            stages: the stages that `task` was selected with.
            miss_rates: miss rates for which the report gives the size, beside the usual ones.

        Returns:
            `task` with its coverage, and the report as JSON values.
        """
        allowed = self.allowed(task.languages)
        frequency = stages.frequency(counts, self.rows)
        ids = np.flatnonzero(frequency)
        ranking = most_frequent(ids if allowed is None else ids[allowed[ids]], frequency)
        prior = ordered_prior(self.table, self.rows, stages.prior, allowed)
        whole, any_size = self.cover(files, (task.ids, with_prior(ranking, prior)))
        summary = {
            "files": [Path(file).name for file in files],
            "rows": len(task.ids),
            "examples": whole.examples,
            "tokens": whole.tokens,
            "copied_share": whole.copied / whole.tokens,
            "token_coverage": float(whole.token_curve()[-1]),
            "example_coverage": float(whole.example_curve()[-1]),
        }
        report = {
            "task": task.name,
            "stages": dict(task.stages),
            "held_out": summary,
            "profiled_rows": len(ranking),
            **any_size.report((len(ranking),), miss_rates),
        }
        return replace(task, held_out=summary), report
