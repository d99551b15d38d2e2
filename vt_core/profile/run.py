"""The profiler from end to end: corpus files and a tokenizer in, a task vocabulary and what it covers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vt_core.errors import DataError, VocabularyError
from vt_core.profile.checkpoint import Checkpoint
from vt_core.profile.counting import count_files
from vt_core.profile.counts import Counts
from vt_core.profile.coverage import Coverage
from vt_core.profile.language_filter import Mask, allowed_ids
from vt_core.profile.layout import Layout
from vt_core.profile.own_outputs import Generate, count_own_outputs
from vt_core.profile.readers import read_chunks
from vt_core.profile.selection import Stages, most_frequent, ordered_prior, select, with_prior
from vt_core.profile.tally import Tallier, load_tokenizer
from vt_core.vocab.active import Ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Files = Sequence[str | Path]


@dataclass(frozen=True)
class Profiler:
    """Profiles tasks for one model: its tokenizer, the rows of its table, and how corpora are read.

    Its methods raise DataError for files and rows that cannot be used, TokenizerError for the tokenizer, and
    OptionError for an unknown language.
    """

    tokenizer_json: Path
    vocab_rows: int | None = None
    """V; None takes the tokenizer's size."""
    model: str = ""
    """Name of the model, for messages of those who load the vocabulary."""
    layout: Layout = field(default_factory=Layout)
    skip_bad: bool = False

    @cached_property
    def table(self) -> TokenTable:
        return TokenTable.load(self.tokenizer_json)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_json)

    @cached_property
    def digest(self) -> str:
        return self.table.digest()

    @property
    def rows(self) -> int:
        return self.table.size if self.vocab_rows is None else self.vocab_rows

    @property
    def always(self) -> Ids:
        """Ids that are active whatever the task."""
        return self.table.special_ids(self.rows)

    def empty(self) -> Counts:
        """Counts of no corpus."""
        return Counts.empty(self.digest, self.table.size)

    def load_counts(self, path: str | Path) -> Counts:
        """A counts file of this tokenizer; raises VocabularyError."""
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
        checkpoint: Checkpoint | None = None,
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> Counts:
        """Counts of corpus files; see `count_files`."""
        return count_files(
            files,
            self.tokenizer_json,
            self.empty(),
            self.layout,
            processes=processes,
            skip_bad=self.skip_bad,
            checkpoint=checkpoint,
            on_rows=on_rows,
        )

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
        """Counts of what the model itself writes for the files' inputs; see `count_own_outputs`."""
        return count_own_outputs(
            files,
            self.tokenizer_json,
            self.empty(),
            self.layout,
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
        """The static vocabulary of counted files; see `select`."""
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

    def allowed(self, languages: Sequence[str]) -> Mask | None:
        """What the language filter keeps; None where no language is named."""
        return allowed_ids(self.table, self.tokenizer, languages) if languages else None

    def cover(self, files: Files, rankings: Sequence[Ids]) -> list[Coverage]:
        """Coverage of the outputs of held-out files by each of some rankings of ids."""
        coverages = [Coverage(ranking, self.table.size, self.always) for ranking in rankings]
        tallier = Tallier(self.tokenizer, self.layout, self.skip_bad)
        for file in files:
            for chunk in read_chunks(file):
                missing, tokens = tallier.missing(chunk)
                for coverage in coverages:
                    coverage.add(missing, tokens)
        if coverages and coverages[0].tokens == 0:
            raise DataError(
                f"No row of {', '.join(map(str, files))} has an output text; nothing is held out."
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
        """The task with its coverage of held-out files, and a report over all sizes.

        The curve takes the most frequent ids first and the rank prior after them, which is what a budget of
        rows takes. The report gives the sizes at `miss_rates` and at some others.
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
