"""Regular expressions that split text before a byte-level BPE merges, for the tokenizers library."""

from __future__ import annotations

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def words(digits: str, marks: str = "") -> str:
    """Contractions, words with a leading sign, numbers, signs, line ends, spaces: cl100k's descendants.

    Args:
        digits: what a number is.
        marks: what belongs to words besides letters.
    """
    letters = rf"[\p{{L}}{marks}]" if marks else r"\p{L}"
    signs = rf"[^\s\p{{L}}{marks}\p{{N}}]"
    return rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{signs}+[\r\n]*|{_REST}"


def cased_words(digits: str, suffix: str = "") -> str:
    """The same with words cut where lower case ends: o200k and Mistral's Tekken.

    Args:
        digits: what a number is.
        suffix: what may follow a word.
    """
    lead = r"[^\r\n\p{L}\p{N}]?"
    found = rf"{lead}{_UPPER}*{_LOWER}+{suffix}|{lead}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{found}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"


#: Mistral's Tekken.
TEKKEN = cased_words(r"\p{N}")
