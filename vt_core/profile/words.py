"""Ids of texts by their words: words recur where texts do not, so that most need the tokenizer only once.

A *seam* is the place before a space that stands alone between two visible characters. Where a tokenizer
treats what is on one side of a seam as if the other side were not there, the ids of a text are those of its
pieces between seams, one after another; `has_seams` tells from a tokenizer's parts whether it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from vt_core.vocab.token_bytes import SPACE_MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_WORDS = 200_000
"""Words that are remembered, about 50 MB; with more of them all are forgotten."""

LONGEST_WORD = 24
"""Bytes of the longest piece that is remembered: a longer one hardly comes again."""

_BEFORE, _AFTER = r"\w!-=?-~", r"\w!-~"
_SEAM = re.compile(f"(?<=[{_BEFORE}])(?= [{_AFTER}])")

_LOCAL_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")
"""None of them joins anything to a space that follows it, nor a space to what stands before it."""

_LETTERS_FIRST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDS_AT_SEAMS = (
    _LETTERS_FIRST % r"\p{N}",  # Qwen
    _LETTERS_FIRST % r"\p{N}{1,3}",  # Llama 3
    # DeepSeek V3
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)  # fmt: skip
"""Patterns of which a match holds a space only where it begins with it, or nothing but white space."""

_HOLDS_NO_SPACE = (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")


class WordEncoder:
    """Ids of texts, without special tokens, as the tokenizer itself gives them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seams = has_seams(tokenizer)
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Full ids of each text."""
        if not self._seams:
            return self._encode(texts)
        pieces = [_SEAM.split(text) for text in texts]
        known = self._known
        new = list(set(chain.from_iterable(pieces)).difference(known))
        known.update(zip(new, map(tuple, self._encode(new)), strict=True))
        ids = [list(chain.from_iterable(map(known.__getitem__, words))) for words in pieces]
        for piece in new:
            if len(piece.encode()) > LONGEST_WORD:
                del known[piece]
        if len(known) > MOST_WORDS:
            known.clear()
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def has_seams(tokenizer: Tokenizer) -> bool:
    """Whether the ids of any text are those of its pieces between seams; False where that is not known."""
    from tokenizers import models

    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.dropout:
        return False
    space = _space(_parts(tokenizer.normalizer, "normalizers"))
    if space is None or _added_tokens_reach_over(tokenizer, space):
        return False
    splits = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    if not all(_keeps_seams(split, space) for split in splits):
        return False
    return any(_cuts_at_seams(split) for split in splits) or _never_merges_over(tokenizer, space)


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """Settings of a normalizer or pre-tokenizer, those of a sequence one by one."""
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    return settings[key] if settings["type"] == "Sequence" else [settings]


def _space(normalizers: list[dict[str, Any]]) -> str | None:
    """What normalizers make of a space; None where they may do more to a seam."""
    space = " "
    for settings in normalizers:
        replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
        if settings == replaced:
            space = SPACE_MARK
        elif settings["type"] not in _LOCAL_NORMALIZERS:
            return None
    return space


def _added_tokens_reach_over(tokenizer: Tokenizer, space: str) -> bool:
    over = re.compile(f"[{_BEFORE}][ {space}]")
    normalize = (lambda text: text) if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str
    return any(
        token.lstrip
        or token.rstrip
        or token.single_word
        or over.search(token.content)
        or over.search(normalize(token.content))
        for token in tokenizer.get_added_tokens_decoder().values()
    )


def _keeps_seams(settings: dict[str, Any], space: str) -> bool:
    """Whether a pre-tokenizer cuts the pieces between seams as it cuts them in the text."""
    kind = settings["type"]
    if kind == "Split" and settings["pattern"] == {"String": " "}:
        return space != " "  # it finds none
    if kind == "Split":
        pattern = settings["pattern"].get("Regex")
        known = pattern in (*_ENDS_AT_SEAMS, *_HOLDS_NO_SPACE)
        return known and settings["behavior"] == "Isolated" and not settings["invert"] and space == " "
    if kind == "ByteLevel":
        return not settings["add_prefix_space"] and (space == " " or not settings["use_regex"])
    return kind == "Digits"


def _cuts_at_seams(settings: dict[str, Any]) -> bool:
    if settings["type"] == "ByteLevel":
        return settings["use_regex"]
    return settings["type"] == "Split" and settings["pattern"].get("Regex") in _ENDS_AT_SEAMS


def _never_merges_over(tokenizer: Tokenizer, space: str) -> bool:
    """Whether no token holds a seam, so that no merge reaches over one, wherever the text is cut."""
    model = tokenizer.model
    if model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    vocabulary = tokenizer.get_vocab()
    over = re.compile(f"[{_BEFORE}]{space}")
    return space in vocabulary and not any(map(over.search, vocabulary))
