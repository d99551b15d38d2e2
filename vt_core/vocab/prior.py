"""The rank prior: ids that any task is likely to need, known from the tokenizer alone.

Ids of a BPE vocabulary are in merge order, so the first ones are the most frequent pieces of the corpus that
the tokenizer was trained on. Single characters are added explicitly, because SentencePiece vocabularies have
them last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vt_core.types import Ids
from vt_core.vocab.token_bytes import TokenTable

#: Ordinary ids to take.
DEFAULT_PRIOR = 8192

#: Ranges of characters that are words. There are thousands, so they are taken by rank as ordinary ids are.
#: Adding them all took 7,000 more rows for Chinese (Gemma 3, 150 held-out sentences) and lowered the share of
#: missing tokens only from 1.26 to 1.12 %.
_WORD_CHARACTERS = ((0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def rank_prior(
    table: TokenTable, n: int = DEFAULT_PRIOR, allowed: npt.NDArray[np.bool_] | None = None
) -> Ids:
    """Single-character and byte tokens, and the first `n` ordinary ids, sorted int64 ``[m]``.

    Ideographs and Hangul syllables are not added as characters; they count among the first `n`.

    Args:
        n: ordinary ids to take.
        allowed: bool ``[table.size]``, the ids that a language filter keeps. Without it the single characters
            are those of Latin-1, and all byte tokens and ordinary tokens are allowed.
    """
    ordinary, byte_tokens = table.ordinary_ids(), table.byte_ids()
    if allowed is not None:
        ordinary, byte_tokens = ordinary[allowed[ordinary]], byte_tokens[allowed[byte_tokens]]
    is_letter = _is_latin_1 if allowed is None else _is_letter
    characters = [id for id in ordinary.tolist() if is_letter(_character(table.bytes[id]))]
    return np.unique(np.concatenate([np.array(characters, np.int64), byte_tokens, ordinary[:n]]))


def _character(value: bytes | None) -> str:
    """The character that a token is, or an empty text if it is not exactly one."""
    if value is None or len(value) > 4:
        return ""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return ""
    return text if len(text) == 1 else ""


def _is_latin_1(character: str) -> bool:
    return "" < character < "\u0100"


def _is_letter(character: str) -> bool:
    return character != "" and not any(low <= ord(character) <= high for low, high in _WORD_CHARACTERS)
