"""The language filter: keeps the ids that can occur in texts of the given languages (VocabTailor, stage 2).

It is exact: an id is kept if and only if its bytes are a substring of the UTF-8 encoding of some text over
the allowed characters, after the tokenizer's normalizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vt_core.profile.languages import Range, code_points, merged
from vt_core.profile.utf8_automaton import Utf8Substrings
from vt_core.vocab.token_bytes import SPACE_MARK, Kind, TokenTable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Mask = npt.NDArray[np.bool_]


def allowed_ids(table: TokenTable, tokenizer: Tokenizer, languages: Iterable[str]) -> Mask:
    """Ids that can occur in texts of these languages, bool `[table.size]`. Raises OptionError."""
    ranges = code_points(languages)
    if tokenizer.normalizer is not None:
        ranges = normalized(ranges, tokenizer.normalizer.normalize_str)
    accepted = Utf8Substrings(ranges).accepts_each([value or b"" for value in table.bytes])
    return accepted & (table.kinds != Kind.MISSING) & (table.kinds != Kind.UNUSED)


def normalized(ranges: Iterable[Range], normalize: Callable[[str], str]) -> list[Range]:
    """Code points of texts over `ranges` after `normalize`. SentencePiece's space mark counts as a space."""
    points: set[int] = set()
    for low, high in ranges:
        for point in range(low, high + 1):
            if not 0xD800 <= point <= 0xDFFF:
                points.update(map(ord, normalize(chr(point)).replace(SPACE_MARK, " ")))
    if normalize("e\u0301") == "\u00e9":
        _add_compositions(points, normalize)
    return merged((point, point) for point in points)


def _add_compositions(points: set[int], normalize: Callable[[str], str]) -> None:
    """Add the characters that a composing normalizer makes from an allowed character and an allowed mark."""
    found = True
    while found:
        found = False
        for point, base, mark in _compositions():
            if (
                base in points
                and mark in points
                and point not in points
                and normalize(chr(point)) == chr(point)
            ):
                points.add(point)
                found = True


@lru_cache(maxsize=1)
def _compositions() -> list[tuple[int, int, int]]:
    """All triples (composed character, the character without its last mark, that mark) of Unicode."""
    result = []
    for point in range(0x80, 0x20000):
        parts = unicodedata.normalize("NFD", chr(point)) if not 0xD800 <= point <= 0xDFFF else ""
        if len(parts) > 1 and len(shorter := unicodedata.normalize("NFC", parts[:-1])) == 1:
            result.append((point, ord(shorter), ord(parts[-1])))
    return result
