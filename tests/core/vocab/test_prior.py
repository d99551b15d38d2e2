from __future__ import annotations

import numpy as np
import pytest

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece
from vt_core.vocab.prior import rank_prior
from vt_core.vocab.token_bytes import TokenTable

WORDS = [" the", " of", "ab"]


def test_prior_has_characters_that_come_last_in_the_file() -> None:
    table = TokenTable.from_json(sentencepiece(WORDS, "xyzé中"))
    prior = {table.bytes[id] for id in rank_prior(table, 2)}
    assert prior >= {character.encode() for character in "theofabxyzé "}
    assert prior >= {bytes([byte]) for byte in range(256)}
    assert "中".encode() not in prior


def test_prior_takes_the_first_ordinary_ids() -> None:
    table = TokenTable.from_json(sentencepiece(WORDS))
    for n, words in [(0, set()), (2, {b" t", b" th"}), (5, {b" t", b" th", b" the", b" o", b" of"})]:
        found = {table.bytes[id] for id in rank_prior(table, n)}
        assert {value for value in found if len(value or b"") > 1} == words


def test_byte_tokens_do_not_count_as_ordinary() -> None:
    table = TokenTable.from_json(byte_level(WORDS))
    assert table.ordinary_ids()[:128].tolist() == list(range(128))
    assert rank_prior(table, 128 + 1).tolist() == list(range(257))


def test_special_and_unused_ids_are_not_ordinary() -> None:
    extra = [added(256, "<|end|>"), added(257, "<unused0>"), added(258, "<think>", special=False)]
    assert rank_prior(TokenTable.from_json(byte_level((), extra)), 1000).tolist() == list(range(256))


@pytest.mark.parametrize("data", [byte_level(WORDS), sentencepiece(WORDS, "中")])
def test_language_filter_applies_before_counting(data: dict) -> None:
    table = TokenTable.from_json(data)
    allowed = np.array([value is not None and not value.startswith(b" t") for value in table.bytes])
    prior = rank_prior(table, 10**6, allowed)
    assert set(prior) == {*table.ordinary_ids()[allowed[table.ordinary_ids()]], *table.byte_ids()}
    first = table.ordinary_ids()[allowed[table.ordinary_ids()]][:130]
    assert set(first) <= set(rank_prior(table, 130, allowed))


def test_prior_is_sorted_without_duplicates() -> None:
    prior = rank_prior(TokenTable.from_json(byte_level(WORDS)), 200)
    assert prior.dtype == np.int64
    assert np.all(np.diff(prior) > 0)
