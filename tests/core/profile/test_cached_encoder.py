from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece, write
from vt_core.errors import TokenizerError
from vt_core.profile import cached_encoder
from vt_core.profile.cached_encoder import CachedEncoder, splits_at_words
from vt_core.vocab.tokenizer import load_tokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LETTERS_FIRST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = [" cat", " dog", "the", ", ", "12", " 12", "  ", "\n ", "d.", "\u00e9", " \u00e9"]


def split(pattern: Any, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def changed(base: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**base, **parts}


def with_model(base: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**base, "model": {**base["model"], **settings}}


BYTE_LEVEL = byte_level(WORDS)
PIECES = sentencepiece([word for word in WORDS if word != ", "], "abcdefghijklmnopqrstuvwxyz .,")
REGEX = sequence(split({"Regex": LETTERS_FIRST}), BYTES)

SPLIT = {
    "GPT-2": BYTE_LEVEL,
    "Qwen": changed(BYTE_LEVEL, normalizer={"type": "NFC"}, pre_tokenizer=REGEX),
    "compatible": changed(BYTE_LEVEL, normalizer={"type": "NFKC"}, pre_tokenizer=REGEX),
    "digits": changed(
        BYTE_LEVEL,
        pre_tokenizer=sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL["pre_tokenizer"]),
    ),
    "whole words": with_model(BYTE_LEVEL, ignore_merges=True),
    "SentencePiece": changed(PIECES, pre_tokenizer=split({"String": " "}, "MergedWithPrevious")),
    "added": byte_level(WORDS, [added(300, "<|end|>"), added(301, " a"), added(302, "dog")]),
}

WHOLE = {
    "a space before the text": changed(
        BYTE_LEVEL, pre_tokenizer={**BYTE_LEVEL["pre_tokenizer"], "add_prefix_space": True}
    ),
    "a mark before the text": changed(
        PIECES,
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, PIECES["normalizer"]],
        },
    ),
    "an unknown pattern": changed(
        BYTE_LEVEL, pre_tokenizer=sequence(split({"Regex": r"\w+ \w+"}), BYTES)
    ),
    "words end with their space": changed(
        BYTE_LEVEL, pre_tokenizer=sequence(split({"String": " "}, "MergedWithPrevious"), BYTES)
    ),
    "a token over two words": sentencepiece(["the cat"], "abcdefghijklmnopqrstuvwxyz ."),
    "no word for a space": sentencepiece(["the"]),
    "whole texts": with_model(PIECES, ignore_merges=True),
    "dropout": with_model(BYTE_LEVEL, dropout=0.5),
    "an added token over two words": byte_level(WORDS, [added(300, "the cat")]),
    "an added token that becomes two words": changed(
        byte_level(WORDS, [added(300, "the\u3000cat")]), normalizer={"type": "NFKC"}
    ),
    "an added token that takes spaces": byte_level(WORDS, [{**added(300, "cat"), "lstrip": True}]),
    "an added token that looks around": byte_level(WORDS, [{**added(300, "cat"), "single_word": True}]),
}  # fmt: skip


@pytest.fixture(scope="module", params=SPLIT)
def tokenizer(request: Any, tmp_path_factory: Any) -> Any:
    return load_tokenizer(write(tmp_path_factory.mktemp("tokenizer"), SPLIT[request.param]))


fragments = st.sampled_from(
    [" ", " ", " ", "  ", "\n", "\t", "a", "the", "cat", " dog", "X", "12", "'s", ".", ",", "!?", "(",
     "<|end|>", "_", "\u00e9", "e\u0301", "\u4e2d", "\u00bd", "\ufe70", "\u3000", "\u2581", "\U0001f600"]
)  # fmt: skip
texts = st.lists(st.lists(fragments, max_size=12).map("".join), max_size=8)


@settings(deadline=None, max_examples=60)
@given(texts=texts)
def test_cached_encoder_gives_the_ids_of_the_tokenizer(tokenizer: Any, texts: list[str]) -> None:
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert splits_at_words(tokenizer)
    encode = CachedEncoder(tokenizer)
    assert encode(texts) == expected
    assert encode(texts) == expected


@pytest.mark.parametrize("case", WHOLE)
def test_text_is_not_split_if_the_tokenizer_may_look_across_words(tmp_path: Path, case: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, WHOLE[case]))
    assert not splits_at_words(tokenizer)


def test_word_is_tokenized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = CachedEncoder(load_tokenizer(write(tmp_path, BYTE_LEVEL)))
    asked: list[list[str]] = []
    whole = encode._encode

    def note(texts: Any) -> list[list[int]]:
        asked.append(sorted(texts))
        return whole(texts)

    monkeypatch.setattr(encode, "_encode", note)
    encode(["the cat the cat", "the dog"])
    encode(["the cat. A  b"])
    assert asked == [[" cat", " dog", " the", "the"], [" A  b", " cat."]]


def test_cache_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_encoder, "MAX_WORDS", 2)
    encode = CachedEncoder(load_tokenizer(write(tmp_path, BYTE_LEVEL)))
    encode(["the " + "long" * 10])
    assert list(encode._cache) == ["the"]
    encode(["a b"])
    assert not encode._cache


def test_panic_of_the_library_is_an_error(tmp_path: Path) -> None:
    slow = changed(BYTE_LEVEL, pre_tokenizer=split({"Regex": "(a+)+$"}))
    encode = CachedEncoder(load_tokenizer(write(tmp_path, slow)))
    with pytest.raises(TokenizerError, match="fails to encode a row"):
        encode(["a" * 40 + "b"])
