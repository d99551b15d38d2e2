from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece
from vt_core.errors import DataError, OptionError
from vt_core.profile.counts import Counts
from vt_core.profile.selection import Stages, most_frequent, ordered_prior, select, within_tolerance
from vt_core.vocab.prior import rank_prior
from vt_core.vocab.token_bytes import TokenTable

TABLE = TokenTable.from_json(byte_level(["the cat", " dog"], [added(300, "<|end|>")]))
DIGEST = TABLE.digest()


def counts(needed: dict[int, int], written: dict[int, int] | None = None, examples: int = 100) -> Counts:
    columns = []
    for values in (needed, needed if written is None else written):
        column = np.zeros(TABLE.size, np.int64)
        column[list(values)] = list(values.values())
        columns.append(column)
    return Counts(DIGEST, *columns, examples=examples, source=({"file": "a.jsonl", "rows": examples},))


def test_pruning_order_is_frequency_then_id() -> None:
    frequency = np.array([5, 1, 1, 3, 2, 1])
    ranking = most_frequent(np.arange(6), frequency)
    assert ranking.tolist() == [0, 3, 4, 5, 2, 1]
    for tolerance, kept in [
        (0.0, 6),
        (0.0999, 6),
        (0.1, 5),
        (0.2, 4),
        (0.3, 3),
        (0.49, 3),
        (0.5, 2),
        (0.79, 2),
        (0.8, 1),
    ]:
        assert within_tolerance(ranking, frequency, 10, tolerance).tolist() == ranking[:kept].tolist()


def test_tolerance_is_computed_exactly() -> None:
    frequency = np.array([29, 50])
    assert 0.29 * 100 < 29
    assert within_tolerance(np.array([1, 0]), frequency, 100, 0.29).tolist() == [1]


examples_of_sets = st.lists(st.frozensets(st.integers(0, 12), max_size=6), min_size=1, max_size=30)


@given(examples_of_sets, st.floats(0, 0.99))
def test_at_most_the_tolerated_examples_lose_a_token(
    examples: list[frozenset[int]], tolerance: float
) -> None:
    frequency = np.array([sum(id in example for example in examples) for id in range(13)])
    ranking = most_frequent(np.flatnonzero(frequency), frequency)
    kept = set(within_tolerance(ranking, frequency, len(examples), tolerance).tolist())
    losing = sum(not example <= kept for example in examples)
    assert losing <= Fraction(tolerance) * len(examples)


@given(examples_of_sets, st.floats(0, 0.99))
def test_pruning_uses_the_whole_tolerance(examples: list[frozenset[int]], tolerance: float) -> None:
    frequency = np.array([sum(id in example for example in examples) for id in range(13)])
    ranking = most_frequent(np.flatnonzero(frequency), frequency)
    kept = within_tolerance(ranking, frequency, len(examples), tolerance)
    pruned = ranking[len(kept) :]
    assert frequency[pruned].sum() <= tolerance * len(examples) + 1e-9
    if len(kept):
        assert frequency[pruned].sum() + frequency[kept[-1]] > tolerance * len(examples) - 1e-9


@given(st.dictionaries(st.integers(0, 255), st.integers(1, 100), min_size=1), st.integers(1, 300))
def test_budget_takes_the_most_frequent_ids_first(needed: dict[int, int], rows: int) -> None:
    task = select(counts(needed), TABLE, 300, Stages(rows=rows, prior=5))
    prior = set(ordered_prior(TABLE, 300, 5, None).tolist())
    assert len(task.ids) == min(rows, len(prior | set(needed)))
    best = sorted(needed, key=lambda id: (needed[id], id), reverse=True)[:rows]
    assert set(best) <= set(task.ids.tolist()) <= set(best) | prior
    assert task.tolerance is None


def test_stages_report_their_sizes() -> None:
    mask = np.zeros(TABLE.size, np.bool_)
    mask[:256] = True
    corpus = counts({97: 50, 98: 1, 99: 1, 258: 40}, {97: 50, 98: 1, 99: 1, 100: 9, 258: 60})
    task = select(
        corpus, TABLE, 310, Stages(0.01, prior=0), languages=("en",), allowed=mask, name="t", model="m"
    )
    assert dict(task.stages) == {
        "vocabulary": 310,
        "corpus": 5,
        "input-aware": 4,
        "language": 3,
        "tolerance": 2,
        "prior": 2,
    }
    assert task.ids.tolist() == [97, 99]
    assert task.counts.tolist() == [50, 1]
    assert (task.name, task.model, task.languages, task.examples) == ("t", "m", ("en",), 100)
    assert (task.tokenizer_digest, task.vocab_size, task.source) == (DIGEST, 310, corpus.source)


def test_without_input_awareness_all_output_ids_count() -> None:
    corpus = counts({97: 5}, {97: 5, 98: 7})
    task = select(corpus, TABLE, 301, Stages(0.0, prior=0, input_aware=False))
    assert task.ids.tolist() == [97, 98]
    assert task.counts.tolist() == [5, 7]
    assert "input-aware" not in task.stages


def test_prior_ids_have_count_zero() -> None:
    task = select(counts({258: 7}), TABLE, 301, Stages(prior=200))
    assert set(task.ids.tolist()) == {258, *rank_prior(TABLE, 200).tolist()}
    assert task.counts.sum() == 7
    assert task.prior == 200


def test_prior_respects_languages_and_rows() -> None:
    mask = np.zeros(TABLE.size, np.bool_)
    mask[[97, 200, 258]] = True
    task = select(counts({97: 7}), TABLE, 201, Stages(prior=200), languages=("x",), allowed=mask)
    assert task.ids.tolist() == [97, 200]


def test_ids_beyond_the_table_are_left_out() -> None:
    assert select(counts({97: 5, 258: 5}), TABLE, 258, Stages(prior=0)).ids.tolist() == [97]


def test_prior_starts_with_single_characters() -> None:
    table = TokenTable.from_json(sentencepiece([" the cat"], "xyz"))
    order = ordered_prior(table, table.size, 3, None)
    assert sorted(order.tolist()) == rank_prior(table, 3).tolist()
    assert [table.bytes[id] for id in order[-3:].tolist()] == [b" t", b" th", b" the"]
    assert len(ordered_prior(table, table.size, 0, None)) == 0


def test_corpus_without_an_output_is_refused() -> None:
    with pytest.raises(DataError, match=r"No row of a\.jsonl has an output text"):
        select(counts({}, examples=0), TABLE, 301, Stages())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1.0}, "tolerance of 1.0 is out of range"),
        ({"tolerance": -0.1}, "tolerance of -0.1"),
        ({"tolerance": float("nan")}, "tolerance of nan"),
        ({"rows": 0}, "budget of 0 rows"),
        ({"prior": -1}, "prior of -1 ids"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Stages(**options)
