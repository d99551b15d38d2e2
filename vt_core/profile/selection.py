"""From counts to a static set: the paper's stages (VocabTailor, algorithm 1), a budget, and the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vt_core.errors import DataError, OptionError
from vt_core.prior import DEFAULT_PRIOR, rank_prior
from vt_core.profile.counts import Counts
from vt_core.profile.language_filter import Mask
from vt_core.task import TaskVocabulary
from vt_core.token_bytes import TokenTable
from vt_core.vocabulary import Ids

DEFAULT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Stages:
    """How a static set is chosen. Either a tolerance or a number of rows ends it.

    Raises OptionError for values out of range.
    """

    tolerance: float | None = DEFAULT_TOLERANCE
    """Share of the examples, from 0 up to 1, that may lose a token."""
    rows: int | None = None
    """Ids in the static set, the prior's included; goes before `tolerance`."""
    prior: int = DEFAULT_PRIOR
    """Ordinary ids of the rank prior; 0 for no prior at all."""
    input_aware: bool = True
    """Whether an example's input ids count as provided."""

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise OptionError(f"A tolerance of {self.tolerance} is not from 0 up to 1.")
        if self.rows is not None and self.rows < 1:
            raise OptionError(f"A budget of {self.rows} rows is not at least 1.")
        if self.prior < 0:
            raise OptionError(f"A prior of {self.prior} ids is not at least 0.")


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
    frequency = counts.needed if stages.input_aware else counts.written
    sizes = {"vocabulary": vocab_rows, "corpus": int(np.count_nonzero(counts.written[:vocab_rows]))}
    ids = np.flatnonzero(frequency[:vocab_rows])
    if stages.input_aware:
        sizes["input-aware"] = len(ids)
    if allowed is not None:
        ids = ids[allowed[ids]]
        sizes["language"] = len(ids)
    prior = rank_prior(table, stages.prior, allowed) if stages.prior else np.empty(0, np.int64)
    prior = prior[prior < vocab_rows]
    if stages.rows is not None:
        ids = most_frequent(ids, frequency)[: stages.rows]
        sizes["rows"] = len(ids)
        prior = np.setdiff1d(prior, ids)[: stages.rows - len(ids)]
    elif stages.tolerance is not None:
        ids = within_tolerance(ids, frequency, counts.examples, stages.tolerance)
        sizes["tolerance"] = len(ids)
    ids = np.union1d(ids, prior).astype(np.int64)
    sizes["prior"] = len(ids)
    padded = np.zeros(vocab_rows, np.int64)
    padded[: len(frequency)] = frequency[:vocab_rows]
    return TaskVocabulary(
        name=name,
        model=model,
        tokenizer_digest=counts.tokenizer_digest,
        vocab_size=vocab_rows,
        ids=ids,
        counts=padded[ids],
        examples=counts.examples,
        prior=stages.prior,
        languages=tuple(languages),
        tolerance=None if stages.rows is not None else stages.tolerance,
        stages=sizes,
        source=counts.source,
    )


def most_frequent(ids: Ids, frequency: Ids) -> Ids:
    """Ids by falling frequency; of two that are as frequent, the higher id first: pruning order, reversed."""
    return ids[np.lexsort((ids, frequency[ids]))][::-1]


def within_tolerance(ids: Ids, frequency: Ids, examples: int, tolerance: float) -> Ids:
    """What is left after pruning the rarest ids, ties by id, sorted.

    The pruned document frequencies add up to `tolerance * examples` at the most, so no more examples than
    that lose a token.
    """
    # Fraction: 0.29 * 100 is 28.999999999999996 in floating point.
    budget = int(Fraction(repr(tolerance)) * examples)
    rarest = most_frequent(ids, frequency)[::-1]
    pruned = int(np.searchsorted(np.cumsum(frequency[rarest]), budget, side="right"))
    return np.sort(rarest[pruned:])
