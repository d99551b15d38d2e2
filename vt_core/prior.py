"""The rank prior: ids that any task is likely to need, known from the tokenizer alone.

Ids of a BPE vocabulary are in merge order, so the first ones are the most frequent pieces of the corpus that
the tokenizer was trained on. Single characters are named one by one: SentencePiece vocabularies hold them
last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vt_core.token_bytes import TokenTable
from vt_core.vocabulary import Ids

DEFAULT_PRIOR = 8192


def rank_prior(
    table: TokenTable, n: int = DEFAULT_PRIOR, allowed: npt.NDArray[np.bool_] | None = None
) -> Ids:
    """Single-character and byte tokens, and the first `n` ordinary ids; sorted int64.

    `allowed` is [table.size] bool, the ids that a language filter keeps. Without it the single characters are
    those of ASCII and Latin-1, and every byte token and ordinary token counts.
    """
    ordinary, byte_tokens = table.ordinary_ids(), table.byte_ids()
    limit = 0x100 if allowed is None else 0x110000
    if allowed is not None:
        ordinary, byte_tokens = ordinary[allowed[ordinary]], byte_tokens[allowed[byte_tokens]]
    characters = [id for id in ordinary.tolist() if _code_point(table.bytes[id]) < limit]
    return np.unique(np.concatenate([np.array(characters, np.int64), byte_tokens, ordinary[:n]]))


def _code_point(value: bytes | None) -> int:
    """Code point of a token that is one whole character, else one past Unicode's last."""
    if value is None or len(value) > 4:
        return 0x110000
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return 0x110000
    return ord(text) if len(text) == 1 else 0x110000
