"""Merged tokens are decoded like their parts, and prompts are encoded as before."""

from __future__ import annotations

import pytest

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece, write
from vt_core.enrich import MergeableTokenizer
from vt_core.errors import TokenizerError
from vt_core.vocab.merges import Merges
from vt_core.vocab.token_bytes import TokenTable, tokenizer_digest
from vt_core.vocab.tokenizer import load_tokenizer

WORDS = [" in", " the", " cat"]
TEXT = " in the cat in theé\n"


def opened(tmp_path, data):
    return MergeableTokenizer(write(tmp_path / "base", data))


def merge(tokenizer, *texts):
    """Merge the tokens of each text into one; whether each was added."""
    return [tokenizer.add(tuple(tokenizer.library.encode(text).ids)) for text in texts]


@pytest.mark.parametrize("family", [byte_level, sentencepiece])
def test_decoding_equals_that_of_the_parts(family, tmp_path):
    tokenizer = opened(tmp_path, family(WORDS, extra=[added(900, "<|end|>")]))
    assert tokenizer.first_id == 901
    assert merge(tokenizer, " in the", " the cat", "é\n") == [True, True, True]
    tokenizer.write(tmp_path, [TEXT])
    written = load_tokenizer(tmp_path / "tokenizer.json")
    merges = Merges.beside(tmp_path / "tokenizer.json")
    assert merges == tokenizer.merges and list(merges) == [901, 902, 903]
    ids = written.encode(TEXT).ids
    assert ids == tokenizer.library.encode(TEXT).ids
    merged = merges.apply(ids)
    assert (merged[0], merged[-1]) == (901, 903) and merges.expand(merged) == ids
    assert written.decode(merged) == TEXT
    table = TokenTable.load(tmp_path / "tokenizer.json")
    assert table.bytes[901:] == [b" in the", b" the cat", "é\n".encode()]
    assert tokenizer_digest(tmp_path / "tokenizer.json") != tokenizer_digest(tokenizer.path)
    assert written.token_to_id("<|end|>") == 900


def test_added_tokens_outside_of_the_vocabulary_keep_their_ids(tmp_path):
    tokenizer = opened(tmp_path, byte_level(WORDS, extra=[added(300, "<|a|>"), added(280, "<|b|>")]))
    assert merge(tokenizer, " in the") == [True]
    tokenizer.write(tmp_path)
    written = load_tokenizer(tmp_path / "tokenizer.json")
    assert [written.token_to_id(token) for token in ("<|a|>", "<|b|>")] == [300, 280]
    assert written.decode([301]) == " in the"


def test_spellings_that_exist_are_refused(tmp_path):
    tokenizer = opened(tmp_path, byte_level(WORDS))
    letters = tuple(b" in")
    assert not tokenizer.add(letters)  # " in" is a token
    assert merge(tokenizer, " in the", " in the") == [True, False]


def test_halves_of_characters_are_refused_by_sentencepiece_only(tmp_path):
    half = sentencepiece().copy()["model"]["vocab"]["<0xC3>"]
    assert not opened(tmp_path / "s", sentencepiece()).add((half, half))
    assert opened(tmp_path / "b", byte_level()).add((0xC3, 0xC3))


def test_with_ignore_merges_whole_words_are_refused(tmp_path):
    data = byte_level([" in", " the"])
    data["model"]["ignore_merges"] = True
    tokenizer = opened(tmp_path, data)
    assert merge(tokenizer, " cat", " in the") == [False, True]
    tokenizer.write(tmp_path, [" in the cat cat"])


def test_special_tokens_are_never_parts_but_runs_of_white_space_are(tmp_path):
    extra = [added(900, "<|end|>"), added(901, "\n\n", special=False), added(902, "<b>", special=False)]
    usable = opened(tmp_path, byte_level(extra=extra)).for_selection()["token_bytes"]
    assert usable[900:] == [None, b"\n\n", None] and usable[:2] == [b"\0", b"\1"]


def test_an_enriched_tokenizer_takes_more(tmp_path):
    first = opened(tmp_path, byte_level(WORDS))
    merge(first, " in the")
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    first.write(tmp_path / "1")
    second = MergeableTokenizer(tmp_path / "1" / "tokenizer.json")
    assert second.known == first.merges
    assert second.for_selection()["token_bytes"][first.first_id] == b" in the"
    merge(second, " the cat")
    second.write(tmp_path / "2", [TEXT])
    assert list(Merges.beside(tmp_path / "2" / "tokenizer.json")) == [first.first_id, second.first_id]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "Unigram", "vocab": [["a", 0.0]]}, "a Unigram tokenizer would use added pieces"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    ],
)
def test_tokenizers_that_cannot_hold_merged_tokens_are_refused(change, reason, tmp_path):
    data = byte_level()
    data["model"].update(change)
    with pytest.raises(TokenizerError, match=reason):
        opened(tmp_path, data)


def test_a_decoder_that_changes_merged_tokens_is_refused_by_name(tmp_path):
    data = sentencepiece(WORDS)
    data["decoder"] = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": True,
    }
    tokenizer = opened(tmp_path, data)
    merge(tokenizer, " in the")
    with pytest.raises(TokenizerError, match=r"decoder \(Metaspace\)"):
        tokenizer.write(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '{"5": [1]}',
        '{"x": [1, 2]}',
        '{"5": [1, 2], "6": [5, 1]}',
        '{"5": [1, 2], "6": [1, 2]}',
        "[]",
    ],
)
def test_damaged_merges_are_refused(content, tmp_path):
    (tmp_path / "merges.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"merges\.json"):
        Merges.beside(tmp_path / "tokenizer.json")


def test_merging_takes_the_longest_from_left_to_right():
    merges = Merges({10: (1, 2), 11: (1, 2, 3), 12: (2, 3), 13: (3, 3)})
    assert merges.apply([1, 2, 3, 3, 3, 2, 3, 1]) == [11, 13, 12, 1]
    assert merges.expand([11, 13, 12, 1]) == [1, 2, 3, 3, 3, 2, 3, 1]
    assert Merges().apply((1, 2)) == [1, 2]
