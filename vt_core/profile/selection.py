"""Selects the static set from counts: the stages of VocabTailor (algorithm 1), a budget, the rank prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vt_core.errors import DataError, OptionError
from vt_core.profile.counts import Counts
from vt_core.profile.language_filter import Mask
from vt_core.types import Ids
from vt_core.vocab.prior import DEFAULT_PRIOR, rank_prior
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

#: Share of the examples that may lose a token.
DEFAULT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Stages:
    """Settings of the selection. Raises OptionError for values out of range."""

    #: Share of the examples that may lose a token, at least 0 and below 1. Unused if `rows` is given.
    tolerance: float = DEFAULT_TOLERANCE
    #: Size of the static set: the most frequent ids, then the rank prior. None: use `tolerance`.
    rows: int | None = None
    #: Ordinary ids of the rank prior; 0 for no prior, not even single characters.
    prior: int = DEFAULT_PRIOR
    #: Whether ids of the input count as provided by the prompt.
    input_aware: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise OptionError(
                f"A tolerance of {self.tolerance} is out of range; it must be at least 0 and below 1."
            )
        if self.rows is not None and self.rows < 1:
            raise OptionError(f"A budget of {self.rows} rows is out of range; it must be at least 1.")
        if self.prior < 0:
            raise OptionError(f"A prior of {self.prior} ids is out of range; it must be at least 0.")

    def frequency(self, counts: Counts, vocab_rows: int) -> Ids:
        """The document frequencies that the selection uses, int64 `[vocab_rows]`."""
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
    """Select the task vocabulary of a counted corpus.

    Args:
        counts: the document frequencies.
        table: the tokenizer's tokens.
        vocab_rows: rows of the model's table, V.
        stages: settings of the selection.
        languages: names of the languages that `allowed` was made for; stored in the result.
        allowed: ids that the language filter keeps, bool `[table.size]`; None for no filter.
        name: name of the task.
        model: name of the model; stored in the result.

    Raises:
        DataError: the counts have no example.
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
    """Ids by descending frequency, then by descending id: the reverse of the pruning order."""
    return ids[np.lexsort((ids, frequency[ids]))][::-1]


def ordered_prior(table: TokenTable, vocab_rows: int, n: int, allowed: Mask | None) -> Ids:
    """The rank prior of `n` ids: single characters and bytes, then ids by rank. Empty if `n` is 0."""
    if n == 0:
        return np.empty(0, np.int64)
    prior = with_prior(rank_prior(table, 0, allowed), rank_prior(table, n, allowed))
    return prior[prior < vocab_rows]


def with_prior(ids: Ids, prior: Ids) -> Ids:
    """`ids`, followed by the ids of the prior that are not among them."""
    return np.concatenate([ids, prior[~np.isin(prior, ids)]])


def within_tolerance(ranking: Ids, frequency: Ids, examples: int, tolerance: float) -> Ids:
    """`ranking` without its rarest ids, as many as have frequencies that add up to `tolerance * examples`.

    At most that many examples lose a token.
    """
    # As a fraction, because 0.29 * 100 is 28.999999999999996 in floating point.
    budget = int(Fraction(repr(tolerance)) * examples)
    pruned = int(np.searchsorted(np.cumsum(frequency[ranking[::-1]]), budget, side="right"))
    return ranking[: len(ranking) - pruned]
