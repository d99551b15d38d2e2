from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake import FakeRows, fake_table
from vt_core.errors import OptionError, VocabularyError
from vt_core.vocab.heads import HEADS, FullHead, PreallocHead, head_class

REDUCED = [head for head in HEADS.values() if head is not FullHead]
TABLE = fake_table(rows=1500)
HIDDEN = np.random.default_rng(3).integers(-3, 4, size=(2, TABLE.shape[1])).astype(float)

batches = st.lists(st.lists(st.integers(0, len(TABLE) - 1), max_size=40), max_size=5)


@pytest.mark.parametrize("kind", REDUCED)
@settings(max_examples=30, deadline=None)
@given(static=st.sets(st.integers(0, len(TABLE) - 1), max_size=60), requests=st.lists(batches, max_size=3))
def test_logits_equal_gathered_columns_of_full_logits(kind, static, requests):
    head = kind(FakeRows(TABLE), len(TABLE))
    head.set_static(static)
    for request in requests:
        for batch in request:
            head.add(batch)
            assert np.array_equal(head.logits(HIDDEN), (HIDDEN @ TABLE.T)[:, head.vocabulary.ids])
        head.truncate()
        assert head.vocabulary.ids.tolist() == sorted(static)
        assert head.logits(HIDDEN).shape == (2, len(static))


@pytest.mark.parametrize("kind", REDUCED)
def test_static_rows_are_read_once_for_all_requests(kind):
    rows = FakeRows(TABLE)
    head = kind(rows, len(TABLE))
    head.set_static(range(100))
    for _ in range(3):
        assert head.add([5, 500, 501, 500]) == 2
        head.truncate()
    assert rows.reads == 100 + 3 * 2


@pytest.mark.parametrize("kind", REDUCED)
def test_locate_finds_the_row_of_every_active_id(kind):
    head = kind(FakeRows(TABLE), len(TABLE))
    head.set_static(range(0, 50, 2))
    head.add([7, 900, 3])
    for local, full in enumerate(head.vocabulary.ids):
        piece, row = head.locate(local)
        assert np.array_equal(piece[0][row], TABLE[full])
    with pytest.raises(IndexError):
        head.locate(head.vocabulary.size)


@pytest.mark.parametrize("kind", REDUCED)
def test_failed_read_leaves_only_static_rows(kind):
    rows = FakeRows(TABLE)
    head = kind(rows, len(TABLE))
    head.set_static([1, 2, 3])
    head.add([10])
    rows.fail = True
    with pytest.raises(OSError, match="the disk is gone"):
        head.add([11, 12])
    rows.fail = False
    assert head.vocabulary.ids.tolist() == [1, 2, 3]
    head.add([20])
    assert np.array_equal(head.logits(HIDDEN), HIDDEN @ TABLE[[1, 2, 3, 20]].T)


@pytest.mark.parametrize("kind", REDUCED)
def test_only_a_valid_static_set_replaces_the_old_one(kind):
    head = kind(FakeRows(TABLE), len(TABLE))
    head.set_static([1, 2])
    head.set_static([9, 4])
    assert np.array_equal(head.logits(HIDDEN), HIDDEN @ TABLE[[4, 9]].T)
    with pytest.raises((VocabularyError, IndexError)):
        head.set_static([len(TABLE)])
    assert np.array_equal(head.logits(HIDDEN), HIDDEN @ TABLE[[4, 9]].T)


def test_static_set_too_large_for_the_device_changes_nothing(monkeypatch):
    rows = FakeRows(TABLE)
    head = PreallocHead(rows, len(TABLE))
    head.set_static([1, 2])

    def full(ids, spare):
        raise MemoryError(f"no room for {len(ids) + spare} rows")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "read", full)
        with pytest.raises(MemoryError, match="no room for 1256 rows"):
            head.set_static(range(1000))
    head.add([20])
    assert np.array_equal(head.logits(HIDDEN), HIDDEN @ TABLE[[1, 2, 20]].T)


def test_spare_rows_are_not_multiplied():
    head = PreallocHead(FakeRows(TABLE), len(TABLE))
    head.set_static([1, 2])
    head.add([5])
    assert head.nbytes == (2 + PreallocHead.SPARE) * TABLE[0].nbytes
    assert head.logits(HIDDEN).shape == (2, 3)
    assert np.abs(head.logits(HIDDEN)).max() < 999


def test_buffer_grows_geometrically():
    rows = FakeRows(TABLE)
    head = PreallocHead(rows, len(TABLE))
    head.set_static([0])
    sizes = set()
    for full in range(1, 1400):
        head.add([full])
        sizes.add(head.nbytes)
    assert len(sizes) <= 5
    assert np.array_equal(head.logits(HIDDEN), HIDDEN @ TABLE[:1400].T)


def test_full_head_reads_every_row_once():
    rows = FakeRows(TABLE)
    head = FullHead(rows, len(TABLE))
    head.set_static([3])
    head.set_static([4])
    assert rows.reads == len(TABLE)
    assert head.add([7, 8]) == 0
    head.truncate()
    assert np.array_equal(head.logits(HIDDEN), HIDDEN @ TABLE.T)


def test_unknown_head_is_refused():
    with pytest.raises(
        OptionError, match="unknown head 'huge': choose one of prealloc, split, rebuild, full"
    ):
        head_class("huge")
