"""From counts to a static set: the paper's stages (VocabTailor, algorithm 1), a budget, and the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vt_core.errors import DataError, OptionError
from vt_core.profile.counts import Counts
from vt_core.profile.language_filter import Mask
from vt_core.vocab.active import Ids
from vt_core.vocab.prior import DEFAULT_PRIOR, rank_prior
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

DEFAULT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Stages:
    """How a static set is chosen. Either a tolerance or a number of rows ends it.

    Raises OptionError for values out of range.
    """

    tolerance: float = DEFAULT_TOLERANCE
    """Share of the examples, from 0 up to 1, that may lose a token."""
    rows: int | None = None
    """Ids in the static set instead: the most frequent, then, where there is room, the prior."""
    prior: int = DEFAULT_PRIOR
    """Ordinary ids of the rank prior; 0 for no prior at all."""
    input_aware: bool = True
    """Whether an example's input ids count as provided."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise OptionError(f"A tolerance of {self.tolerance} is not from 0 up to 1.")
        if self.rows is not None and self.rows < 1:
            raise OptionError(f"A budget of {self.rows} rows is not at least 1.")
        if self.prior < 0:
            raise OptionError(f"A prior of {self.prior} ids is not at least 0.")

    def frequency(self, counts: Counts, vocab_rows: int) -> Ids:
        """The counts that decide, int64 [vocab_rows]."""
        column = (counts.needed if self.input_aware else counts.written)[:vocab_rows]
        return np.concatenate([column, np.zeros(vocab_rows - len(column), np.int64)])


def select(
    counts: Counts,
    table: TokenTable,
    vocab_rows: int,
    stages: Stages,
    *,
    languages: Sequence[str] = (),
    allowed: Mask | None = None,
    name: str = "task",
    model: str = "",
) -> TaskVocabulary:
    """The static vocabulary of a counted corpus for a model with `vocab_rows` rows.

    `allowed` [table.size] is what the filter of `languages` keeps.
    Raises DataError for counts without an example.
    """
    if counts.examples == 0:
        files = ", ".join(entry["file"] for entry in counts.source)
        raise DataError(f"No row of {files or 'the corpus'} has an output text; there is nothing to profile.")
    frequency = stages.frequency(counts, vocab_rows)
    sizes = {"vocabulary": vocab_rows, "corpus": int(np.count_nonzero(counts.written[:vocab_rows]))}
    ids = np.flatnonzero(frequency)
    if stages.input_aware:
        sizes["input-aware"] = len(ids)
    if allowed is not None:
        ids = ids[allowed[ids]]
        sizes["language"] = len(ids)
    ranking = most_frequent(ids, frequency)
    prior = ordered_prior(table, vocab_rows, stages.prior, allowed)
    if stages.rows is not None:
        ids = with_prior(ranking, prior)[: stages.rows]
        sizes["rows"] = len(ids)
    else:
        ids = within_tolerance(ranking, frequency, counts.examples, stages.tolerance)
        sizes["tolerance"] = len(ids)
        ids = with_prior(ids, prior)
        sizes["prior"] = len(ids)
    ids = np.sort(ids)
    return TaskVocabulary(
        name=name,
        model=model,
        tokenizer_digest=counts.tokenizer_digest,
        vocab_size=vocab_rows,
        ids=ids,
        counts=frequency[ids],
        examples=counts.examples,
        prior=stages.prior,
        languages=tuple(languages),
        tolerance=None if stages.rows is not None else stages.tolerance,
        stages=sizes,
        source=counts.source,
    )


def most_frequent(ids: Ids, frequency: Ids) -> Ids:
    """Ids by falling frequency; of two as frequent ones the higher first: pruning order, reversed."""
    return ids[np.lexsort((ids, frequency[ids]))][::-1]


def ordered_prior(table: TokenTable, vocab_rows: int, n: int, allowed: Mask | None) -> Ids:
    """The rank prior of `n` ids, characters and bytes first, then by rank; nothing where `n` is 0."""
    if n == 0:
        return np.empty(0, np.int64)
    prior = with_prior(rank_prior(table, 0, allowed), rank_prior(table, n, allowed))
    return prior[prior < vocab_rows]


def with_prior(ids: Ids, prior: Ids) -> Ids:
    """`ids`, and after them those of the prior that are not among them."""
    return np.concatenate([ids, prior[~np.isin(prior, ids)]])


def within_tolerance(ranking: Ids, frequency: Ids, examples: int, tolerance: float) -> Ids:
    """The ranking without the rarest ids, whose frequencies add up to `tolerance * examples` at the most.

    No more examples than that lose a token.
    """
    # Fraction: 0.29 * 100 is 28.999999999999996 in floating point.
    budget = int(Fraction(repr(tolerance)) * examples)
    pruned = int(np.searchsorted(np.cumsum(frequency[ranking[::-1]]), budget, side="right"))
    return ranking[: len(ranking) - pruned]
