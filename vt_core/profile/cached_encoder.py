"""Tokenizes texts word by word, with a cache: words recur, so most texts need little work.

A *word boundary* here is the place before a single space between two visible characters. Many tokenizers
treat the two sides of such a boundary independently. Then the ids of a text are those of its words in a row.
`splits_at_words` inspects a tokenizer's components to find out; if unsure, texts are tokenized whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from vt_core.vocab.token_bytes import SPACE_MARK
from vt_core.vocab.tokenizer import library_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Words in the cache, about 50 MB. A cache with more is emptied.
MAX_WORDS = 200_000

#: Bytes of the longest word in the cache. Longer ones rarely recur.
MAX_WORD_BYTES = 24

_BEFORE, _AFTER = r"\w!-=?-~", r"\w!-~"
_BOUNDARY = re.compile(f"(?<=[{_BEFORE}])(?= [{_AFTER}])")

#: Normalizers that never combine a space with the character before or after it.
_LOCAL_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")

_LETTERS_FIRST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Patterns whose matches contain a space only at the start, or consist of white space.
_ENDS_AT_BOUNDARIES = (
    _LETTERS_FIRST % r"\p{N}",  # Qwen
    _LETTERS_FIRST % r"\p{N}{1,3}",  # Llama 3
    # DeepSeek V3
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)  # fmt: skip
#: Patterns whose matches contain no space.
_HOLDS_NO_SPACE = (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")


class CachedEncoder:
    """Encodes texts without adding special tokens. The ids are exactly the tokenizer's own."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._by_words = splits_at_words(tokenizer)
        self._cache: dict[str, tuple[int, ...]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The full ids of each text."""
        if not self._by_words:
            return self._encode(texts)
        split = [_BOUNDARY.split(text) for text in texts]
        cache = self._cache
        new = list(set(chain.from_iterable(split)).difference(cache))
        cache.update(zip(new, map(tuple, self._encode(new)), strict=True))
        ids = [list(chain.from_iterable(map(cache.__getitem__, words))) for words in split]
        for word in new:
            if len(word.encode()) > MAX_WORD_BYTES:
                del cache[word]
        if len(cache) > MAX_WORDS:
            cache.clear()
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        with library_errors("the tokenizer fails to encode a row"):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def splits_at_words(tokenizer: Tokenizer) -> bool:
    """Whether the ids of every text are those of its words, concatenated. False if that is not certain."""
    from tokenizers import models

    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.dropout:
        return False
    space = _normalized_space(_components(tokenizer.normalizer, "normalizers"))
    if space is None or _added_tokens_span_words(tokenizer, space):
        return False
    splits = _components(tokenizer.pre_tokenizer, "pretokenizers")
    if not all(_respects_boundaries(split, space) for split in splits):
        return False
    return any(_splits_at_boundaries(split) for split in splits) or _no_token_spans_words(tokenizer, space)


def _components(component: Any, key: str) -> list[dict[str, Any]]:
    """Settings of a normalizer or pre-tokenizer, or of each member if it is a sequence."""
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    return settings[key] if settings["type"] == "Sequence" else [settings]


def _normalized_space(normalizers: list[dict[str, Any]]) -> str | None:
    """What normalizers turn a space into; None if they may change more around it."""
    space = " "
    for settings in normalizers:
        replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
        if settings == replaced:
            space = SPACE_MARK
        elif settings["type"] not in _LOCAL_NORMALIZERS:
            return None
    return space


def _added_tokens_span_words(tokenizer: Tokenizer, space: str) -> bool:
    boundary = re.compile(f"[{_BEFORE}][ {space}]")
    normalize = (lambda text: text) if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str
    return any(
        token.lstrip
        or token.rstrip
        or token.single_word
        or boundary.search(token.content)
        or boundary.search(normalize(token.content))
        for token in tokenizer.get_added_tokens_decoder().values()
    )


def _respects_boundaries(settings: dict[str, Any], space: str) -> bool:
    """Whether a pre-tokenizer splits a word alone exactly as within its text."""
    kind = settings["type"]
    if kind == "Split" and settings["pattern"] == {"String": " "}:
        return space != " "  # then the pattern never matches
    if kind == "Split":
        pattern = settings["pattern"].get("Regex")
        known = pattern in (*_ENDS_AT_BOUNDARIES, *_HOLDS_NO_SPACE)
        return known and settings["behavior"] == "Isolated" and not settings["invert"] and space == " "
    if kind == "ByteLevel":
        return not settings["add_prefix_space"] and (space == " " or not settings["use_regex"])
    return kind == "Digits"


def _splits_at_boundaries(settings: dict[str, Any]) -> bool:
    if settings["type"] == "ByteLevel":
        return settings["use_regex"]
    return settings["type"] == "Split" and settings["pattern"].get("Regex") in _ENDS_AT_BOUNDARIES


def _no_token_spans_words(tokenizer: Tokenizer, space: str) -> bool:
    """Whether no token contains a word boundary. Then no merge crosses one."""
    model = tokenizer.model
    if model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    vocabulary = tokenizer.get_vocab()
    boundary = re.compile(f"[{_BEFORE}]{space}")
    return space in vocabulary and not any(map(boundary.search, vocabulary))
