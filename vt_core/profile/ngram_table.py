"""Makes the n-gram table of a task from counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from vt_core.profile.counts import Counts
from vt_core.profile.ngram_counts import MIN_COUNT
from vt_core.vocab.ngrams import (
    BEGIN,
    END,
    SEED,
    NgramTable,
    Section,
    context_hashes,
    extend_hash,
    extend_hashes,
)
from vt_core.vocab.token_bytes import TokenTable

#: Frequent continuations that a table shows as text.
SAMPLES = 12
#: Tokens of the most frequent beginning that it shows.
BEGINNING = 24


def make_ngram_table(
    counts: Counts, tokens: TokenTable, rows: int, name: str, model: str = "", min_count: int = MIN_COUNT
) -> NgramTable:
    """The table of counted outputs.

    Args:
        rows: V. Ids from there on are left out.
        name: name of the task.
        model: name of the model, for messages.
        min_count: times that a token must have followed a context.
    """
    sections = counts.ngrams.sections(rows, min_count)
    return NgramTable(
        tokenizer_digest=counts.tokenizer_digest,
        sections=sections,
        name=name,
        model=model,
        examples=counts.examples,
        min_count=min_count,
        samples=tuple(_samples(sections, tokens)),
    )


def _samples(sections: tuple[Section, ...], tokens: TokenTable) -> list[dict[str, Any]]:
    """The most frequent beginning of an output, and what most often follows single tokens."""
    if not sections:
        return []
    section = sections[0]
    # The hashes of single tokens are the only ones that are turned back into text.
    hashes = extend_hashes(np.full(tokens.size, SEED, np.uint64), np.arange(tokens.size))
    places = np.searchsorted(section.hashes, hashes)
    places[places == len(section)] = 0
    known = np.flatnonzero(section.hashes[places] == hashes)
    most = known[np.lexsort((known, -section.counts[places[known]].astype(np.int64)))][:SAMPLES]
    samples = [_sample(section, int(places[id]), tokens.text(int(id)), tokens) for id in most]
    begin = section.index(extend_hash(SEED, BEGIN))
    if begin is None:
        return samples
    first = _sample(section, begin, "", tokens)
    return [{**first, "next": _beginning(sections, tokens)}, *samples]


def _sample(section: Section, at: int, context: str, tokens: TokenTable) -> dict[str, Any]:
    token, count, share = section.entry(at)
    return {
        "context": context,
        "next": "" if token == END else tokens.text(token),
        "count": count,
        "share": round(share / 0xFFFF, 4),
    }


def _beginning(sections: tuple[Section, ...], tokens: TokenTable) -> str:
    """The text that begins an output if each token is the most frequent one."""
    table, text = NgramTable("", sections), [BEGIN]
    while len(text) <= BEGINNING:
        found = table.find(context_hashes(text, table.longest))
        if found is None or found.token == END:
            break
        text.append(found.token)
    return b"".join(tokens.bytes[id] or b"" for id in text[1:]).decode("utf-8", "backslashreplace")
