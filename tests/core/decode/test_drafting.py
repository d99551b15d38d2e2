from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ngram_tables import sections
from vt_core.decode.drafting import Acceptance, Drafter, ReadCosts, best_length
from vt_core.decode.drafting.acceptance import context_kind, corpus_kind
from vt_core.vocab.ngrams import BEGIN, END, NgramTable

EOS = 9
texts = st.lists(st.integers(0, 8), max_size=30)


def table(entries: dict[tuple[int, ...], tuple[int, int, int]]) -> NgramTable:
    return NgramTable("digest", sections(entries))


SQL = table(
    {
        (BEGIN,): (1, 10, 10),
        (1,): (2, 8, 10),
        (2,): (7, 6, 10),
        (BEGIN, 1): (3, 9, 10),
        (1, 2): (4, 9, 9),
        (2, 4): (END, 9, 9),
    }
)


def drafter(*tables: NgramTable, prompt: list[int] | None = None, rows: int = 100) -> Drafter:
    made = Drafter(Acceptance(), tables, rows=rows, eos_ids=[EOS])
    made.begin(prompt or [])
    return made


def test_longest_context_wins():
    made = drafter(SQL)
    made.extend([5, 1, 2])
    assert made.draft(1).ids == [4]
    assert made.draft(1, pending=[2]).ids == [7]


def test_output_begins_after_the_prompt():
    # The prompt's last token is 1; what follows 1 in the middle of outputs is not asked for.
    assert drafter(SQL, prompt=[5, 1]).draft(2).ids == [1, 3]


def test_draft_ends_with_the_end_of_the_text():
    made = drafter(SQL)
    made.extend([5, 1, 2])
    assert made.draft(16).ids == [4, EOS]
    without_eos = Drafter(Acceptance(), [SQL], rows=100)
    without_eos.extend([5, 1, 2])
    assert without_eos.draft(16).ids == [4]


def test_end_is_the_one_of_the_last_request():
    acceptance = Acceptance()

    def end(eos_ids: list[int]) -> list[int]:
        made = Drafter(acceptance, [SQL], rows=100, eos_ids=eos_ids)
        made.extend([5, 1, 2, 4])
        return made.draft(1).ids

    assert end([EOS, 8]) == [EOS]
    Drafter(acceptance, rows=100, eos_ids=[EOS, 8]).extend([1, 8])
    assert end([EOS, 8]) == [8]
    assert end([EOS]) == [EOS]


def test_ids_without_a_row_are_not_drafted():
    assert drafter(table({(1,): (50, 9, 9)}), prompt=[3], rows=50).draft(4, pending=[1]).ids == []
    assert drafter(table({(1,): (50, 9, 9)}), prompt=[3], rows=51).draft(4, pending=[1]).ids == [50]


def test_repeats_of_the_prompt_are_drafted_without_a_table():
    made = drafter(prompt=[1, 2, 3, 4, 5, 6, 1, 2])
    assert made.draft(3).ids == [3, 4, 5]
    made.extend([3])
    assert made.draft(2, pending=[4]).ids == [5, 6]


def test_what_followed_last_is_drafted():
    assert drafter(prompt=[1, 2, 1, 2, 1, 3, 1]).draft(1).ids == [3]


def test_of_two_tables_the_longer_match_wins():
    other = table({(5,): (6, 50, 50), (4, 5): (7, 5, 5)})
    made = drafter(table({(5,): (8, 90, 90)}), other, prompt=[0])
    made.extend([4, 5])
    assert made.draft(1).ids == [7]
    assert made.draft(1, pending=[3, 5]).ids == [8]


@given(texts, texts, texts)
def test_draft_changes_nothing(prompt, output, pending):
    made, again = (drafter(SQL, prompt=prompt) for _ in range(2))
    for each in (made, again):
        each.extend(output)
    made.draft(16, pending)
    assert made.draft(16) == again.draft(16)
    made.extend(pending)
    again.extend(pending)
    assert made.draft(16) == again.draft(16)


@given(texts, texts)
def test_drafted_ids_and_rates_are_in_range(prompt, output):
    made = drafter(SQL, prompt=prompt, rows=8)
    made.extend(output)
    drafted = made.draft(5)
    assert len(drafted.ids) == len(drafted.rates) <= 5
    assert all(id in {*prompt, *output, *range(8), EOS} for id in drafted.ids)
    assert all(0 < rate < 1 for rate in drafted.rates)


def test_rates_follow_what_was_right():
    acceptance = Acceptance()
    kinds = corpus_kind(3, 0.9), context_kind(1, 1)
    before = [acceptance.rate(kind) for kind in kinds]
    for _ in range(200):
        acceptance.learn(kinds[0], True)
        acceptance.learn(kinds[1], False)
    assert acceptance.rate(kinds[0]) > 0.98 > before[0]
    assert acceptance.rate(kinds[1]) < 0.02 < before[1]
    for _ in range(3000):
        acceptance.learn(kinds[0], False)
    assert acceptance.rate(kinds[0]) < 0.2


def test_recent_share_follows_the_text():
    acceptance = Acceptance()
    assert acceptance.recent == 0.5
    made = Drafter(acceptance, rows=100)
    made.extend([1, 2] * 60)
    assert acceptance.recent > 0.9
    made.extend(range(3, 90))
    assert acceptance.recent < 0.1


def test_requests_teach_the_next_ones_without_drafting():
    acceptance = Acceptance()
    rates = []
    for _ in range(50):
        made = Drafter(acceptance, [SQL], rows=100, eos_ids=[EOS])
        made.begin([7])
        rates.append(made.draft(1).rates[0])
        made.extend([1, 3])
    assert rates[0] < rates[-1]


@pytest.mark.parametrize(
    ("rates", "costs", "length"),
    [
        ([], [1], 0),
        ([0.9, 0.9], [1, 1, 1], 2),  # a read of any length costs the same
        ([0.9, 0.9], [1, 2, 3], 0),  # cost is linear in the length
        ([0.9, 0.1], [1, 1.2, 1.4], 1),
        ([0.95] * 4, [1, 2.1, 2.1, 2.1, 2.1], 4),  # not convex: only a long draft pays
    ],
)
def test_best_length(rates, costs, length):
    assert best_length(rates, lambda tokens: costs[tokens - 1]) == length


def test_cost_of_taking_back_shortens_drafts():
    assert best_length([0.5], lambda tokens: 1.0, undo_s=0.9) == 1
    assert best_length([0.5], lambda tokens: 1.0, undo_s=1.1) == 0


def measured(*reads: tuple[int, float]) -> ReadCosts:
    """Costs of reads; the first read of each size, which does not count, is slow."""
    costs = ReadCosts()
    for size in dict(reads):
        costs.add(size, 99.0)
    for size, seconds in reads:
        costs.add(size, seconds)
    return costs


def test_first_read_of_a_size_is_not_counted():
    costs = ReadCosts()
    costs.add(1, 9.0)
    assert not costs.known
    costs.add(1, 1.0)
    assert costs.known and costs.seconds(1) == 1.0


def test_costs_between_measured_sizes_lie_on_a_line():
    costs = measured((1, 1.0), (4, 2.5))
    assert [costs.seconds(n) for n in (1, 2, 3, 4)] == pytest.approx([1.0, 1.5, 2.0, 2.5])


def test_reads_are_tried_up_to_twice_the_longest_measured_size():
    # Beyond it, another token costs as much as a read of its own, which never pays.
    assert [measured((1, 1.0)).seconds(n) for n in (2, 3)] == pytest.approx([1.2, 2.2])
    flat, steep = measured((1, 1.0), (2, 1.02)), measured((1, 1.0), (2, 2.0))
    assert [flat.seconds(n) for n in (4, 5)] == pytest.approx([1.06, 2.06])
    assert [steep.seconds(n) for n in (4, 5)] == pytest.approx([2.4, 3.4])


def test_one_slow_read_changes_no_cost():
    assert measured(*[(1, 1.0)] * 3, (1, 50.0), *[(1, 1.0)] * 2).seconds(1) == 1.0
    assert measured(*[(1, 1.0)] * 9, *[(1, 2.0)] * 5).seconds(1) == 2.0


def test_old_measurements_of_long_reads_are_forgotten():
    costs = measured((1, 1.0), (2, 50.0))
    assert costs.seconds(2) == 50
    for _ in range(2000):
        costs.add(1, 1.0)
    assert costs.seconds(2) == pytest.approx(1.2)
    costs.add(2, 1.1)
    assert costs.seconds(2) == 1.1


def test_costs_of_batches_need_no_read_of_one_token():
    costs = measured((4, 2.0))
    assert costs.known
    assert [costs.seconds(n) for n in (1, 4, 6)] == pytest.approx([2.0, 2.0, 2.2])


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 10)), min_size=1), st.integers(1, 60))
def test_no_cost_is_below_the_measured_ones(reads, tokens):
    assert measured(*reads).seconds(tokens) >= 0.999 * min(seconds for _, seconds in reads)


def test_drafting_stops_where_reads_cost_as_much_as_their_tokens():
    costs, lengths = measured((1, 1.0)), []
    for _ in range(400):
        lengths.append(best_length([0.8] * 16, costs.seconds))
        costs.add(1 + lengths[-1], 1.0 + lengths[-1])
    assert sum(length > 0 for length in lengths) < 8
    assert max(lengths) <= 7


def test_drafts_grow_where_reads_of_any_length_cost_the_same():
    costs, lengths = measured((1, 1.0)), []
    for _ in range(12):
        lengths.append(best_length([0.9] * 16, costs.seconds))
        costs.add(1 + lengths[-1], 1.0)
    assert lengths[0] == 1 and lengths[-1] == 16
