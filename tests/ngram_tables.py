"""Small n-gram tables, written entry by entry."""

from __future__ import annotations

import numpy as np

from vt_core.vocab.ngrams import Section, context_hashes, make_section


def sections(entries: dict[tuple[int, ...], tuple[int, int, int]]) -> tuple[Section, ...]:
    """Sections of contexts, each with its next token, that token's count, and the context's count."""
    made = []
    for order in range(1, max(map(len, entries), default=0) + 1):
        rows = sorted(
            (context_hashes(context, order)[-1], *entry)
            for context, entry in entries.items()
            if len(context) == order
        )
        hashes, *columns = [[row[n] for row in rows] for n in range(4)]
        made.append(make_section(np.array(hashes, np.uint64), *map(np.array, columns)))
    return tuple(made)
