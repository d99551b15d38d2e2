from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.errors import VocabularyError
from vt_core.vocab.active import ActiveVocabulary

ROWS = 50
id_lists = st.lists(st.integers(0, ROWS - 1))


@given(id_lists, st.lists(id_lists))
def test_local_and_full_ids_are_inverse(static, batches):
    vocabulary = ActiveVocabulary(ROWS)
    vocabulary.set_static(static)
    for batch in batches:
        vocabulary.add(batch)
    ids = vocabulary.ids.tolist()
    assert len(set(ids)) == len(ids)
    assert set(ids) == set(static).union(*batches)
    assert vocabulary.local(ids).tolist() == list(range(len(ids)))
    absent = [full for full in range(ROWS) if full not in ids]
    assert (vocabulary.local(absent) == -1).all()


@given(id_lists, id_lists, id_lists)
def test_truncate_leaves_sorted_static_ids(static, first, second):
    vocabulary = ActiveVocabulary(ROWS)
    vocabulary.set_static(static)
    vocabulary.add(first)
    vocabulary.truncate()
    assert vocabulary.ids.tolist() == sorted(set(static))
    assert vocabulary.add(second).tolist() == list(dict.fromkeys(i for i in second if i not in static))


def test_dynamic_ids_keep_their_order():
    vocabulary = ActiveVocabulary(ROWS)
    vocabulary.set_static([5, 3])
    assert vocabulary.add([9, 3, 7, 9]).tolist() == [9, 7]
    assert vocabulary.ids.tolist() == [3, 5, 9, 7]
    assert (vocabulary.static_size, vocabulary.dynamic_size, vocabulary.size) == (2, 2, 4)
    assert 7 in vocabulary and 8 not in vocabulary and -1 not in vocabulary and ROWS not in vocabulary


def test_second_static_set_replaces_the_first():
    vocabulary = ActiveVocabulary(ROWS)
    vocabulary.set_static([1, 2])
    vocabulary.add([9])
    vocabulary.set_static([4])
    assert vocabulary.ids.tolist() == [4]
    assert vocabulary.local([1, 2, 9]).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("bad", [-1, ROWS, ROWS + 7])
def test_id_without_a_row_changes_nothing(bad):
    vocabulary = ActiveVocabulary(ROWS)
    vocabulary.set_static([1])
    with pytest.raises(VocabularyError, match=f"token id {bad} has no row .* {ROWS} rows"):
        vocabulary.add([2, bad])
    with pytest.raises(VocabularyError):
        vocabulary.set_static([bad])
    assert vocabulary.ids.tolist() == [1]


def test_growth_keeps_ids():
    vocabulary = ActiveVocabulary(2000)
    vocabulary.set_static(range(100))
    for start in range(100, 2000, 37):
        vocabulary.add(range(start, min(start + 37, 2000)))
    assert np.array_equal(vocabulary.ids, np.arange(2000))
