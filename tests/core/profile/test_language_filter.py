from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece
from tests.core.profile.test_languages import SAMPLES
from tests.core.profile.test_utf8_automaton import Witnesses
from vt_core.profile.language_filter import allowed_ids, normalized
from vt_core.profile.languages import KNOWN, Range, code_points
from vt_core.vocab.token_bytes import TokenTable

WORDS = [*(word for sample in SAMPLES.values() for word in sample.split()), "the", " the", "  ", "\n\n"]
# Tokens that begin and end inside characters. Byte-level merges make such tokens.
PIECES = [b"\xad\xe4", b"\xb8\xad\xe5", b"\x80\x9d\n", b" \xd0", b"\xa0\xd1\x80"]

TOKENIZERS: dict[str, dict[str, Any]] = {
    "byte-level": byte_level([*WORDS, *PIECES]),
    "byte-level, NFC": byte_level([*WORDS, *PIECES], normalizer={"type": "NFC"}),
    "byte-level, NFKC": byte_level(WORDS, normalizer={"type": "NFKC"}),
    "SentencePiece": sentencepiece([word for word in WORDS if word.isprintable()], "\n\t"),
}


@cache
def loaded(name: str) -> tuple[TokenTable, Tokenizer]:
    return TokenTable.from_json(TOKENIZERS[name]), Tokenizer.from_str(json.dumps(TOKENIZERS[name]))


@cache
def kept(name: str, language: str) -> frozenset[int]:
    table, tokenizer = loaded(name)
    return frozenset(allowed_ids(table, tokenizer, [language]).nonzero()[0].tolist())


@cache
def texts(language: str) -> st.SearchStrategy[str]:
    """Texts of a language. All ranges are equally likely, and their ends as likely as all between."""
    ranges = code_points([language])
    points = st.sampled_from(ranges).flatmap(lambda r: st.one_of(st.sampled_from(r), st.integers(*r)))
    known = [word for word in SAMPLES[language].split() if _within(ranges, word)]
    return st.lists(st.one_of(points.map(chr), st.sampled_from(known)), max_size=8).map("".join)


def _within(ranges: list[Range], word: str) -> bool:
    return all(any(low <= ord(character) <= high for low, high in ranges) for character in word)


def is_kept(name: str, language: str, text: str) -> bool:
    _, tokenizer = loaded(name)
    return kept(name, language).issuperset(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_tokens_of_texts_in_the_language_are_kept(name: str, data: st.DataObject) -> None:
    language = data.draw(st.sampled_from(sorted(KNOWN)))
    assert is_kept(name, language, data.draw(texts(language)))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("language", KNOWN)
def test_tokens_of_range_ends_are_kept(name: str, language: str) -> None:
    for low, high in code_points([language]):
        assert is_kept(name, language, chr(low)) and is_kept(name, language, chr(high)), (low, high)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("language", ["en", "pl", "ru", "he", "th", "vi", "ko", "math", "code"])
def test_token_is_kept_iff_some_text_contains_it(name: str, language: str) -> None:
    table, tokenizer = loaded(name)
    ranges = code_points([language])
    if tokenizer.normalizer is not None:
        ranges = normalized(ranges, tokenizer.normalizer.normalize_str)
    witnesses = Witnesses(ranges)
    for id in range(table.size):
        witness = witnesses.text(table.bytes[id] or b"")
        assert (id in kept(name, language)) == (witness is not None), (id, table.tokens[id])
        assert witness is None or (table.bytes[id] or b"") in witness.encode()


def test_parts_of_characters_follow_their_language() -> None:
    table, _ = loaded("byte-level")
    ids = {value: id for id, value in enumerate(table.bytes)}
    chinese, russian = kept("byte-level", "zh"), kept("byte-level", "ru")
    assert ids[b"\xad\xe4"] in chinese and ids[b"\xad\xe4"] not in russian
    assert ids[b" \xd0"] in russian and ids[b" \xd0"] not in chinese
    assert ids[b"\xe4"] in chinese and ids[b"\xe4"] not in russian


def test_byte_tokens_follow_their_language() -> None:
    russian = kept("SentencePiece", "ru")
    assert 1 + 0xD0 in russian and 1 + 0x0A in russian
    assert 1 + 0xE4 not in russian and 1 + 0x41 not in russian


def test_unused_and_missing_ids_are_dropped() -> None:
    data = byte_level((), [added(258, "<unused0>"), added(259, "<think>", special=False)])
    mask = allowed_ids(TokenTable.from_json(data), Tokenizer.from_str(json.dumps(data)), ["en"])
    assert mask[256:].tolist() == [False, False, False, True]


def test_characters_are_normalized() -> None:
    def upper(text: str) -> str:
        return text.upper().replace(" ", "\u2581")

    assert normalized([(0x20, 0x20), (0x61, 0x63), (0xDF, 0xDF)], upper) == [
        (0x20, 0x20),
        (0x41, 0x43),
        (0x53, 0x53),
    ]


def test_composing_normalizer_adds_composed_characters() -> None:
    from tokenizers.normalizers import NFC, NFD

    parts = [(0x61, 0x61), (0x302, 0x302), (0x323, 0x323)]  # a, circumflex, dot below
    composed = {0xE2, 0x1EA1, 0x1EAD}  # and both marks at once
    assert {low for low, _ in normalized(parts, NFC().normalize_str)} == {0x61, 0x302, 0x323} | composed
    assert normalized(parts, NFD().normalize_str) == parts
